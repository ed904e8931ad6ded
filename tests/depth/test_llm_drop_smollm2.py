"""What is dropped on the default model, with the numbers of the catalogue's card."""

from __future__ import annotations

import pytest
import xarray as xr

import lwlab as lw
from lwlab.depth import drop_order, importance, remove

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def texts(smollm2: lw.Model) -> list[str]:
    return lw.tasks.corpus("pydoc", n=6, tokens=96, model=smollm2, seed=0)


@pytest.fixture(scope="module")
def scores(smollm2: lw.Model, texts: list[str]) -> xr.Dataset:
    return importance(smollm2, texts[:4])


def loss(model: lw.Model, texts: list[str]) -> float:
    return float(lw.tasks.perplexity(model, texts, 48).nll.mean())


def test_the_order_is_the_cards(scores: xr.Dataset) -> None:
    assert len({*drop_order(scores)[:6]} & {f"attn.{i}" for i in (25, 26, 7, 29, 9, 6, 28)}) >= 5
    s = scores.importance.sel(part="attn")
    assert s.sel(layer=[0, 1, 24]).values == pytest.approx([0.40, 0.15, 0.11], abs=0.04)
    assert float(s.drop_sel(layer=[0, 1, 24]).max()) < 0.05
    mlp = scores.importance.sel(part="mlp")
    assert mlp.sel(layer=[0, 29]).values == pytest.approx([0.94, 0.29], abs=0.05)


def test_eight_attentions_are_cheap_eight_mlps_are_not(
    smollm2: lw.Model, texts: list[str], scores: xr.Dataset
) -> None:
    base = loss(smollm2, texts[4:])
    rise = {
        name: loss(remove(smollm2, drop_order(scores, mode, kind=kind)[:8], check=False), texts[4:])
        - base
        for name, mode, kind in (
            ("attn", "attn", "similar"), ("mlp", "mlp", "similar"), ("worst", "attn", "reverse"),
        )
    }  # fmt: skip
    assert rise["attn"] < 1.2
    assert rise["mlp"] > rise["attn"] + 0.5
    assert rise["worst"] > rise["attn"] + 3
