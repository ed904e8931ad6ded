"""Remote runs, packed and unpacked as for a server, give what local runs give; the rest says no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from cloudpickle import list_registry_pickle_by_value

import lwlab as lw
from lwlab.errors import BadInput, FetchError, MissingSite, RunError
from lwlab.models import far, toys
from lwlab.models.model import Model

PROMPTS = ["hello world again", "the cat sat on the mat"]
ARCHS = ("llama", "gpt2", "gemma2", "gpt_neox", "qwen2")


@pytest.fixture(params=ARCHS)
def pair(request: pytest.FixtureRequest, toy: Callable[[str], Model]) -> tuple[Model, Model]:
    """A model, and the same model whose runs are sent."""
    here = toy(request.param)
    return here, far.packed(here)


@pytest.fixture
def sent(toy: Callable[[str], Model]) -> Model:
    return far.packed(toy("llama"))


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    assert set(a.data_vars) == set(b.data_vars)
    for k in a.data_vars:
        np.testing.assert_array_equal(a[k].values, b[k].values, err_msg=str(k))


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 3] - logits[:, 5]


def test_every_site_comes_back_bit_for_bit(pair: tuple[Model, Model]) -> None:
    here, there = pair
    sites = [s for s in here.sites() if s != "attn_pattern"]
    same(lw.cache(here, PROMPTS, sites), lw.cache(there, PROMPTS, sites))


def test_edits_and_what_they_noted_come_back(pair: tuple[Model, Model]) -> None:
    here, there = pair
    factor = torch.tensor(0.5)
    edits: dict[str, Any] = {"resid_pre.1": lambda h: h * factor, "head_out.0.1": 0.0}
    a = lw.patch(here, PROMPTS, edits, positions=[-1], read="mlp_out")
    b = lw.patch(there, PROMPTS, edits, positions=[-1], read="mlp_out")
    same(a, b)
    assert a.attrs["edits"] == b.attrs["edits"]
    assert "fired 1, changed by 0.5" in b.attrs["edits"][0]
    same(
        lw.ablate(here, PROMPTS, "mlp_out.1", how="mean"),
        lw.ablate(there, PROMPTS, "mlp_out.1", how="mean"),
    )


def test_gradients_are_taken_over_there(pair: tuple[Model, Model]) -> None:
    here, there = pair
    sites = ["resid_pre", "head_out", "q", "mlp_out"]
    same(lw.grads(here, PROMPTS, metric, sites), lw.grads(there, PROMPTS, metric, sites))
    with pytest.raises(BadInput, match="no gradient"):
        lw.grads(there, PROMPTS, lambda z: torch.ones(len(z)), "resid_pre")


def test_layers_are_skipped_repeated_and_silenced(pair: tuple[Model, Model]) -> None:
    here, there = pair
    layers: list[Any] = [0, 1, 1, "attn.0"]
    same(
        lw.chain(here, PROMPTS, layers, streams=True),
        lw.chain(there, PROMPTS, layers, streams=True),
    )


def test_text_is_the_same_and_ends_where_it_would(toy: Callable[[str], Model]) -> None:
    here = toy("llama")
    there = far.packed(here)
    push: dict[str, Any] = {"resid_post.0": lambda h: 1.5 * h}
    for edits in (None, push):
        a, b = lw.generate(here, PROMPTS, 6, edits), lw.generate(there, PROMPTS, 6, edits)
        np.testing.assert_array_equal(a.ids.values, b.ids.values)
        assert list(a.text.values) == list(b.text.values)
    assert b.attrs["edits"] == ["resid_post.0: fired 6"]
    # the second token that comes is made the end of text: nothing may follow it
    stop = int(a.ids.values[0, 1])
    a, b = (lw.generate(m, PROMPTS[:1], 6, push, eos_token_id=stop) for m in (here, there))
    assert (b.ids.values[0, 1:] == -1).all()
    np.testing.assert_array_equal(b.ids.values[:, : a.ids.shape[1]], a.ids.values)


def test_lwlab_travels_only_while_something_is_sent(sent: Model) -> None:
    lw.cache(sent, PROMPTS, "resid_pre")
    assert "lwlab" not in list_registry_pickle_by_value()
    with pytest.raises(BadInput):
        lw.patch(sent, PROMPTS, {"resid_pre.1": lambda h: h * bool(sent)})
    assert "lwlab" not in list_registry_pickle_by_value()


def test_what_cannot_be_packed_is_said(sent: Model, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file, pytest.raises(BadInput, match="cannot be sent"):
        lw.patch(sent, PROMPTS, {"resid_pre.1": lambda h: h * bool(file)})
    with pytest.raises(BadInput, match="stays in its process"):
        lw.patch(sent, PROMPTS, {"resid_pre.1": lambda h: h * bool(sent)})


def test_what_needs_the_weights_is_refused_before_anything_is_sent(
    sent: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_a: Any, **_k: Any) -> None:
        raise AssertionError("something was sent")

    monkeypatch.setattr(sent.nn, "trace", never)
    for attempt in (
        lambda: sent.unembed(torch.zeros(1, sent.d_model or 0)),
        lambda: lw.rules(sent).__enter__(),
        lambda: lw.tasks.perplexity(sent, PROMPTS),
    ):
        with pytest.raises(BadInput, match="needs the weights here"):
            attempt()
    with pytest.raises(MissingSite, match="server's attention"):
        lw.cache(sent, PROMPTS, "attn_pattern")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model saved as transformers saves it."""
    module, _ = toys.tiny("gpt2")
    module.save_pretrained(tmp_path)
    toys.tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_server_s_model_has_no_weights_here_and_the_same_sites(folder: Path) -> None:
    full = lw.load(folder)
    far_away = lw.load(folder, remote="http://127.0.0.1:9")
    assert all(p.is_meta for p in far_away.module.parameters())
    assert set(far_away.sites()) == set(full.sites()) - {"attn_pattern"}
    assert "127.0.0.1:9" in repr(far_away)
    with pytest.raises(RunError, match=r"no answer from remote='http://127.0.0.1:9'"):
        lw.cache(far_away, "hello world", ["resid_pre", "q"])
    with pytest.raises(BadInput, match="needs the weights here"):
        far_away.unembed(torch.zeros(1, far_away.d_model or 0))
    # the folder's own forward pass, run by hand on the skeleton's plan, is the server's business
    again = replace(far_away, module=full.module, nn=full.nn, remote="local")
    same(lw.cache(full, PROMPTS, ["resid_pre", "q"]), lw.cache(again, PROMPTS, ["resid_pre", "q"]))


def test_bad_places_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="give True"):
        lw.load(folder, remote="ndif")
    with pytest.raises(BadInput, match="leave device="):
        lw.load(folder, remote=True, device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FetchError, match="configuration or tokenizer"):
        lw.load(tmp_path / "empty", remote=True)
