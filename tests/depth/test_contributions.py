"""Contributions: stream identity, formulas by plain hooks, position 0, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from depth_by_hand import TEXT, hooked

import lwlab as lw
from lwlab.depth import layer_contributions
from lwlab.errors import BadInput, MissingSite
from lwlab.models import toys

SHORT = "the king saw the queen"


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "gpt_neox", "phi", "olmo2", "mixtral"])
def test_stream_identity_and_formulas_hold(toy: Any, arch: str) -> None:
    model = toy(arch)
    r = layer_contributions(model, TEXT)
    assert float(r.identity_error.max()) < 2e-5
    with torch.no_grad():
        run = hooked(model, TEXT, {})
    h, y = run["pre"][:, 1:], run["block"][:, 1:]
    shape = run["pre"].shape
    a, m = (run[s].reshape(shape)[:, 1:] for s in ("attn_out", "mlp_out"))
    x = h if model.anatomy.parallel else h + a
    want = {"attention": (a, h), "mlp": (m, x), "layer": (a + m, h), "stream": (y, h)}
    for part, (w, v) in want.items():
        size = {"stream": h}.get(part, w)
        got = r.sel(part=part).isel(prompt=0)
        for name, value in (
            ("norm", size.norm(dim=-1)),
            ("relative", w.norm(dim=-1) / v.norm(dim=-1)),
            ("cosine", (w * v).sum(-1) / w.norm(dim=-1) / v.norm(dim=-1)),
        ):
            np.testing.assert_allclose(got[name], value, rtol=2e-3, atol=2e-5)
    assert float(abs(r.cosine).max()) <= 1 + 1e-5


def test_prompts_keep_their_own_positions_and_position_0_is_out(toy: Any) -> None:
    model = toy("llama")
    both = layer_contributions(model, [TEXT, SHORT])
    alone = layer_contributions(model, SHORT)
    n = alone.sizes["position"]
    assert both.position.values[0] == 1
    assert both.token_str.values[1, :n].tolist() == ["king", "saw", "the", "queen"]
    np.testing.assert_allclose(both.relative[:, 1, :, :n], alone.relative[:, 0], rtol=1e-4)
    assert bool(both.relative[:, 1, :, n:].isnull().all())
    whole = layer_contributions(model, SHORT, front=0)
    assert whole.position.values.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(whole.norm[..., 1:], alone.norm, rtol=1e-5)
    assert alone.attrs["front"] == 1
    assert both.attrs["n"] == 2


def test_models_and_prompts_that_cannot_work_are_refused(toy: Any) -> None:
    with pytest.raises(MissingSite, match="mixer_out"):
        layer_contributions(toy("mamba"), TEXT)
    with pytest.raises(BadInput, match="leaves no position"):
        layer_contributions(toy("llama"), [TEXT, "king"])
    with pytest.raises(BadInput, match="front"):
        layer_contributions(toy("llama"), TEXT, front=-1)
    module, _ = toys.tiny("bert")
    with pytest.raises(BadInput, match="normalises its stream"):
        layer_contributions(lw.wrap(module), torch.tensor([[5, 6, 7]]))
