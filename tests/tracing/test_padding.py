"""Batches padded on either side give each prompt the numbers that it gets alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from reference import DECODERS, ENCODERS, PROMPTS

import lwlab as lw

Toy = Callable[[str], lw.Model]
BOTH = [
    (name, side)
    for name in [*DECODERS, *ENCODERS, "t5:encoder", "t5_gated:encoder"]
    for side in ("right", "left")
]
GENERATING = [pair for pair in BOTH if pair[0] in DECODERS]
each = pytest.mark.parametrize(("name", "side"), BOTH)


def close(batch: xr.DataArray, alone: xr.DataArray, row: int) -> None:
    """The row's own part is as it was alone, and all beyond its end is NaN."""
    own = batch.isel(prompt=row)
    for dim in {"position", "query"} & set(alone.dims):
        beyond = own.isel({dim: slice(alone.sizes[dim], None)})
        if dim == "position" or "query" not in alone.dims:
            assert bool(beyond.isnull().all())
        own = own.isel({dim: slice(alone.sizes[dim])})
    want = alone.isel(prompt=0).values
    assert own.values.shape == want.shape
    np.testing.assert_allclose(own.values, want, atol=1e-4 * max(1.0, float(abs(want).max())))


def padded(model: lw.Model, side: Any) -> Any:
    tokens = model.tokens(PROMPTS, side)
    assert tokens.padded
    assert bool((tokens.offsets > 0).any()) == (side == "left")
    return tokens


@each
def test_cache(name: str, side: str, toy: Toy) -> None:
    model = toy(name)
    sites = model.sites()
    batch = lw.cache(model, padded(model, side), sites)
    for row, prompt in enumerate(PROMPTS):
        alone = lw.cache(model, prompt, sites)
        for site in sites:
            close(batch[site], alone[site], row)
        n = alone.sizes["position"]
        assert batch.token_str.values[row].tolist() == [*alone.token_str.values[0], *[""] * (
            batch.sizes["position"] - n
        )]  # fmt: skip


@each
def test_cache_at_positions(name: str, side: str, toy: Toy) -> None:
    model = toy(name)
    batch = lw.cache(model, padded(model, side), "resid_post", positions=[0, -1, -2])
    for row, prompt in enumerate(PROMPTS):
        alone = lw.cache(model, prompt, "resid_post", positions=[0, -1, -2])
        close(batch.resid_post, alone.resid_post, row)
        words = prompt.split()
        assert batch.token_str.values[row].tolist() == [words[0], words[-1], words[-2]]


@each
def test_patch(name: str, side: str, toy: Toy) -> None:
    """A number at one position, an array over own positions, and a function of every column."""
    model = toy(name)
    has_logits = "logits" in model.sites()
    read = "resid_post"
    donor = torch.tensor(
        np.random.default_rng(0).normal(size=(12, model.d_model)), dtype=torch.float32
    )

    def both(value: Callable[[int], Any], positions: Any = None) -> None:
        for site in ("attn_out.0", "mixer_out.0", "resid_pre.1"):
            if site.split(".")[0] not in model.sites():
                continue
            longest = max(len(p.split()) for p in PROMPTS)
            batch = lw.patch(
                model, padded(model, side), {site: value(longest)}, positions=positions, read=read
            )
            for row, prompt in enumerate(PROMPTS):
                n = len(prompt.split())
                alone = lw.patch(model, prompt, {site: value(n)}, positions=positions, read=read)
                close(batch.resid_post, alone.resid_post, row)
                if has_logits:
                    close(batch.logits, alone.logits, row)
                    close(batch.base_logits, alone.base_logits, row)
                    close(batch.moved, alone.moved, row)

    both(lambda n: 0.5, positions=[-2, 0])
    both(lambda n: donor[:n])
    both(lambda n: lambda h: 2 * h)


@each
def test_grads(name: str, side: str, toy: Toy) -> None:
    model = toy(name)
    if "logits" not in model.sites():
        pytest.skip("no logits, no metric")
    sites = [s for s in ("embed", "resid_pre", "head_out", "k", "neurons", "attn_out", "mixer_out")
             if s in model.sites()]  # fmt: skip
    batch = lw.grads(model, padded(model, side), lambda z: z[:, 7] - z[:, 9], sites)
    for row, prompt in enumerate(PROMPTS):
        alone = lw.grads(model, prompt, lambda z: z[:, 7] - z[:, 9], sites)
        for site in sites:
            close(batch[site], alone[site], row)
            close(batch[f"{site}_value"], alone[f"{site}_value"], row)
        close(batch.metric, alone.metric, row)
        assert float(abs(alone.resid_pre).max()) > 1e-3


@each
def test_chain(name: str, side: str, toy: Toy) -> None:
    model = toy(name)
    if model.kind == "encoder-decoder":
        pytest.skip("chain refuses encoder-decoder models")
    order = [0, 2, 1, 1]
    batch = lw.chain(model, padded(model, side), order, streams=True)
    for row, prompt in enumerate(PROMPTS):
        alone = lw.chain(model, prompt, order, streams=True)
        close(batch.resid.transpose("prompt", ...), alone.resid.transpose("prompt", ...), row)
        for key in alone.data_vars.keys() - {"resid"}:
            close(batch[key], alone[key], row)


@pytest.mark.parametrize("edit", [None, "all", "last"])
@pytest.mark.parametrize(("name", "side"), GENERATING)
def test_generate(name: str, side: str, edit: str | None, toy: Toy) -> None:
    model = toy(name)
    push = torch.linspace(-1, 1, model.d_model)
    options: dict[str, Any] = {"eos_token_id": -1}  # random models end anywhere
    if edit:
        options |= {"edits": {"resid_post.1": lambda h: h + push}, "positions": edit}
    batch = lw.generate(model, padded(model, side), 5, **options)
    for row, prompt in enumerate(PROMPTS):
        alone = lw.generate(model, prompt, 5, **options)
        assert batch.ids.values[row].tolist() == alone.ids.values[0].tolist()
        assert alone.ids.shape == (1, 5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_decoder_does_not_see_the_padding_of_its_encoder(side: str, toy: Toy) -> None:
    model = toy("t5:decoder")
    sites = ["cross_out", "resid_post", "logits"]
    batch = lw.cache(model, padded(model, side), sites)
    slopes = lw.grads(model, padded(model, side), lambda z: z[:, 7], "resid_pre")
    for row, prompt in enumerate(PROMPTS):
        alone = lw.cache(model, prompt, sites)
        for site in sites:
            close(batch[site], alone[site], row)
        close(
            slopes.resid_pre, lw.grads(model, prompt, lambda z: z[:, 7], "resid_pre").resid_pre, row
        )


def test_ablation_by_the_mean_leaves_padding_out(toy: Toy) -> None:
    model = toy("llama")
    want = np.mean(
        np.concatenate([lw.cache(model, p, "mlp_out").mlp_out.values[0, 1] for p in PROMPTS]), 0
    )
    for side in ("right", "left"):
        got = lw.ablate(model, padded(model, side), "mlp_out.1", "mean", read="mlp_out")
        own = got.mlp_out.sel(layer=1).values
        own = own[~np.isnan(own).any(-1)]
        np.testing.assert_allclose(own, np.broadcast_to(want, own.shape), atol=1e-5)


def test_the_default_model_in_a_padded_batch(smollm2: lw.Model) -> None:
    prompts = ["When Mary and John went to the store, John gave a drink to", "Hello there, how are"]
    for side in ("right", "left"):
        tokens = smollm2.tokens(prompts, side)  # type: ignore[arg-type]
        batch = lw.cache(smollm2, tokens, ["resid_post", "logits"])
        for row, prompt in enumerate(prompts):
            alone = lw.cache(smollm2, prompt, ["resid_post", "logits"])
            for name in ("resid_post", "logits"):
                n = alone.sizes["position"]
                a, b = batch[name][row].isel(position=slice(n)), alone[name][0]
                # Position 0 carries an activation of several thousand: compare with its size.
                assert float(abs(a - b).max() / abs(b).max()) < 1e-4
