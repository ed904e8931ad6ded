"""Exact patching is what one plain forward for each cell gives, in every architecture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference import DECODERS, forward

import lwlab as lw
from lwlab.attribution import Pair, exact
from lwlab.attribution.answers import Reader
from lwlab.models.sites import Address


def components(model: lw.Model) -> tuple[str, ...]:
    return ("resid_pre", *model.anatomy.writes)


def slowly(model: lw.Model, task: Any, sites: tuple[str, ...]) -> np.ndarray:
    """One forward with plain torch hooks for each component, layer and position."""
    clean, corrupt = task.tokens(model), task.tokens(model, "corrupt")
    width, layers = clean.ids.shape[1], range(model.n_layers)
    at = [Address(s, i) for s in sites for i in layers]
    with torch.no_grad():
        _, values = forward(model, clean, at)
        base = task.metric(forward(model, corrupt)[0][:, -1])
        out = np.zeros((len(sites), len(task), len(layers), width))
        for j, site in enumerate(sites):
            for i in layers:
                new = values[Address(site, i)].reshape(len(task), width, -1)
                for p in range(width):

                    def put(old: torch.Tensor, new: torch.Tensor = new, p: int = p) -> torch.Tensor:
                        full = old.reshape(len(task), width, -1).clone()
                        full[:, p] = new[:, p]
                        return full.reshape(old.shape)

                    z, _ = forward(model, corrupt, edit={Address(site, i): put})
                    out[j, :, i, p] = task.metric(z[:, -1]) - base
    return out


@pytest.mark.parametrize("arch", DECODERS)
def test_every_cell_equals_one_forward_with_a_plain_hook(arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    sites = components(model)
    expected = slowly(model, task, sites)
    got = exact.scores(model, task, sites, normalise=False)
    assert got.dims == ("component", "prompt", "layer", "position")
    np.testing.assert_allclose(got.values, expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-2
    # What a causal model computes before the first changed token cannot change: not even a bit.
    first = int(task.positions["S2"][0])
    assert np.abs(expected[..., :first]).max() == 0
    assert np.abs(got.values[..., :first]).max() == 0


@pytest.mark.parametrize("memory", [200e3, 400e3])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3"])
def test_the_size_of_a_pass_changes_nothing(arch: str, memory: float, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    whole = exact.scores(model, task, normalise=False)
    small = exact.scores(model, task, normalise=False, memory=memory)
    np.testing.assert_allclose(small.values, whole.values, atol=1e-5)


def test_a_choice_of_layers_and_components_is_a_part_of_the_whole(toy_ioi: Any) -> None:
    model, task = toy_ioi("qwen3")
    whole = exact.scores(model, task)
    part = exact.scores(model, task, ["mlp_out"], [2, 1, -1])
    assert part.layer.values.tolist() == [1, 2]
    expected = whole.sel(component=["mlp_out"], layer=[1, 2])
    np.testing.assert_allclose(part.values, expected.values, atol=1e-5)


@pytest.mark.parametrize("site", ["resid_mid", "resid_post", "head_out", "q", "v", "neurons"])
def test_other_sites_can_be_patched_too(site: str, toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    got = exact.scores(model, task, [site], normalise=False)
    clean, corrupt = task.tokens(model), task.tokens(model, "corrupt")
    at, p = Address(site, 1), 11
    with torch.no_grad():
        _, values = forward(model, clean, [at])

        def put(old: torch.Tensor) -> torch.Tensor:
            new = old.clone()
            new[:, p] = values[at][:, p]
            return new

        z, _ = forward(model, corrupt, edit={at: put})
        base = task.metric(forward(model, corrupt)[0][:, -1])
    expected = (task.metric(z[:, -1]) - base).numpy()
    np.testing.assert_allclose(got.sel(layer=1, position=p).values[0], expected, atol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_only_changed_token_carries_the_whole_effect_at_layer_zero(
    arch: str, toy_ioi: Any
) -> None:
    model, task = toy_ioi(arch)
    at = {"component": "resid_pre", "layer": 0}
    score = exact.scores(model, task).sel(at)
    first = int(task.positions["S2"][0])
    assert float(score.mean("prompt").sel(position=first)) == pytest.approx(1, abs=1e-4)
    assert float(np.abs(score.sel(position=slice(first + 1, None))).max()) < 1e-4


def test_prompts_that_differ_from_the_second_token_on(toy: Any) -> None:
    model = toy("llama")
    task = lw.tasks.ioi(
        model, n=3, corruption="abc", names=["Mary", "John", "Tom", "Anna", "Paris"]
    )
    expected = slowly(model, task, ("resid_pre", "attn_out"))
    got = exact.scores(model, task, ("resid_pre", "attn_out"), normalise=False)
    np.testing.assert_allclose(got.values, expected, atol=1e-5)
    assert got.attrs["first_position"] == 1


@pytest.mark.parametrize("measure", ["logit_diff", "logit", "prob_diff", "log_prob"])
@pytest.mark.parametrize("arch", ["llama", "phi", "gemma2"])  # no bias, a bias, soft-capped logits
def test_metrics_are_those_of_the_whole_vocabulary(arch: str, measure: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    task = task.with_metric(measure)
    assert (Reader(Pair.of(model, task)).head is not None) == measure.startswith("logit")
    expected = slowly(model, task, ("mlp_out",))
    got = exact.scores(model, task, "mlp_out", normalise=False)
    np.testing.assert_allclose(got.values, expected, atol=1e-5)


def test_labels_say_what_and_where(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    got = exact.scores(model, task)
    assert got.attrs["model"] == "llama"
    assert got.attrs["task"] == "ioi"
    assert got.attrs["n"] == 4
    assert got.attrs["technique"] == "activation patching"
    assert got.attrs["normalised"] is True
    names = dict(zip(got.position.values.tolist(), got.position_str.values.tolist()))
    assert names[2] == "and"
    assert names[9] == " S2"
    assert names[1] == " IO/S1"
    assert got.group.values.tolist() == [0, 0, 1, 1]
