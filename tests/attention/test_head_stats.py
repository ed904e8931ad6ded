"""`lw.attention.stats` against the patterns that `lw.cache` reads, on every architecture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import lwlab as lw
from lwlab.attention import tap
from lwlab.errors import BadInput, MissingSite
from lwlab.models import toys

PROMPTS = ["the king saw the queen in Paris and the man", "Mary went to the store"]
ARCHS = sorted(set(toys.ARCHS) - {"vit", "mamba"})


def from_pattern(A: np.ndarray[Any, Any], sink: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """The statistics by their formulas from patterns [..., query, key], NaN beyond the end."""
    i = np.arange(A.shape[-1])
    real = ~np.isnan(A[..., 0])
    A = np.nan_to_num(A.astype(float))
    out = {
        "entropy": -np.where(A > 0, A * np.log(np.where(A > 0, A, 1)), 0).sum(-1),
        "sink_mass": A[..., :sink].sum(-1),
        "mean_distance": (A * abs(i[:, None] - i)).sum(-1),
        "column_mass": A.sum(-2),
    }
    return {name: np.where(real, value, np.nan) for name, value in out.items()}


def agree(found: xr.Dataset, pattern: xr.DataArray, sink: int = 1, atol: float = 1e-5) -> None:
    for name, want in from_pattern(pattern.values, sink).items():
        np.testing.assert_allclose(found[name], want, atol=atol, err_msg=name)


@pytest.mark.parametrize("arch", ARCHS)
def test_they_are_those_of_the_models_own_patterns(toy: Any, arch: str) -> None:
    model = toy(arch)
    found = lw.attention.stats(model, PROMPTS)
    assert found.entropy.dims == ("prompt", "layer", "head", "position")
    agree(found, lw.cache(model, PROMPTS, "attn_pattern").attn_pattern)
    lengths = model.tokens(PROMPTS).lengths.numpy()
    sums = found.column_mass.sum("position")
    np.testing.assert_allclose(sums, np.broadcast_to(lengths[:, None, None], sums.shape), rtol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "t5", "gpt2"])
def test_the_model_runs_as_it_does(toy: Any, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass that is listened to gives the streams of any other."""
    monkeypatch.setattr(tap, "_STEP", 4)
    model = toy(arch)
    data = lw.tracing.engine.batch(model, PROMPTS)
    with torch.no_grad():
        plain = model.module(*data.args, **data.inputs)
        with tap.listening(model, {}):
            heard = model.module(*data.args, **data.inputs)
        after = model.module(*data.args, **data.inputs)
    torch.testing.assert_close(heard[0], plain[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(after[0], plain[0])


def test_padding_on_either_side_changes_nothing(toy: Any) -> None:
    model = toy("llama")
    right = lw.attention.stats(model, PROMPTS)
    left = lw.attention.stats(model, model.tokens(PROMPTS, padding_side="left"))
    alone = lw.attention.stats(model, PROMPTS[1])
    for name in right.data_vars:
        np.testing.assert_allclose(left[name], right[name], atol=1e-5)
        np.testing.assert_allclose(right[name][1, ..., :5], alone[name][0], atol=1e-5)
        assert bool(right[name][1, ..., 5:].isnull().all())


def test_layers_and_sink_choose(toy: Any) -> None:
    model = toy("gemma2")
    found = lw.attention.stats(model, PROMPTS, [2, 0], sink=3)
    assert found.layer.values.tolist() == [2, 0]
    assert found.attrs["sink"] == 3
    pattern = lw.cache(model, PROMPTS, "attn_pattern", layers=[2, 0]).attn_pattern
    agree(found, pattern, sink=3)


def test_what_cannot_work_is_refused(toy: Any) -> None:
    with pytest.raises(MissingSite, match="attn_pattern"):
        lw.attention.stats(toy("mamba"), PROMPTS)
    for arguments in ({"layers": 3}, {"sink": 0}, {"layers": []}):
        with pytest.raises(BadInput):
            lw.attention.stats(toy("llama"), PROMPTS, **arguments)
    with pytest.raises(BadInput, match="pictures"):
        lw.attention.stats(toy("vit"), PROMPTS)
    with pytest.raises(BadInput, match="given no tokens"):
        lw.attention.stats(toy("vit"), torch.zeros(1, 3, 16, 16))


def test_nobody_listens_afterwards_even_after_an_error(toy: Any) -> None:
    model = toy("llama")

    def fail(heard: tap.Heard) -> None:
        raise RuntimeError("heard")

    data = lw.tracing.engine.batch(model, PROMPTS)
    with pytest.raises(RuntimeError, match="heard"), tap.listening(model, {0: fail}):
        model.module(**data.inputs)
    assert not tap._LISTENERS
    assert model.module.config._attn_implementation != tap.NAME
    module = tap.attention_module(model, 0)
    module.sinks = torch.zeros(4)
    try:
        with pytest.raises(BadInput, match="learned sinks"):
            lw.attention.stats(model, PROMPTS)
    finally:
        del module.sinks


def test_smollm2_looks_at_its_first_token(smollm2: lw.Model) -> None:
    """Attention sinks: arXiv:2309.17453, arXiv:2410.10781."""
    text = "When Mary and John went to the store, John gave a drink to Mary and they went home."
    found = lw.attention.stats(smollm2, text)
    agree(found, lw.cache(smollm2, text, "attn_pattern").attn_pattern, atol=3e-5)
    later = found.isel(position=slice(4, None))
    by_layer = later.sink_mass.mean(("prompt", "head", "position"))
    assert float(by_layer.sel(layer=slice(15, 24)).mean()) > 0.5
    assert float(by_layer.sel(layer=0)) < 0.2
    uniform = np.log(found.position.values + 1)
    assert bool((found.entropy <= uniform + 1e-5).all())
