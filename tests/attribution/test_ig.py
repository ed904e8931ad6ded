"""Integrated gradients: captum's numbers at the embeddings, completeness in the limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lwlab.attribution import Pair, atp, ig, relp
from lwlab.errors import BadInput


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_scores_at_the_first_stream_equal_captum(steps: int, toy_ioi: Any) -> None:
    captum = pytest.importorskip("captum.attr")
    model, task = toy_ioi("llama")
    clean, corrupt = task.tokens(model).ids, task.tokens(model, "corrupt").ids

    def metric(ids: torch.Tensor, answer: torch.Tensor, foil: torch.Tensor) -> torch.Tensor:
        z = model.module(input_ids=ids, use_cache=False).logits[:, -1]
        return (z.gather(1, answer) - z.gather(1, foil)).squeeze(1)

    method = captum.LayerIntegratedGradients(metric, model.module.model.embed_tokens)
    expected = method.attribute(
        clean, corrupt, n_steps=steps, method="riemann_middle",
        additional_forward_args=(task.answer_ids[:, None], task.foil_ids[:, None]),
    )  # fmt: skip
    got = ig.scores(model, task, ["resid_pre"], 0, steps=steps, normalise=False)
    np.testing.assert_allclose(got.values[0, :, 0], expected.sum(-1).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gpt_neox", "gpt2", "gemma2"])
def test_the_sum_over_positions_tends_to_the_whole_effect(arch: str, toy_ioi: Any) -> None:
    model, task = toy_ioi(arch)
    gaps = []
    for steps in (1, 8, 64):
        score = ig.scores(model, task, ["resid_pre"], 0, steps=steps)
        gaps.append(abs(float(score.mean("prompt").sum()) - 1))
    assert gaps[2] < 2e-3
    assert gaps[2] <= gaps[1] + 1e-6


def test_the_gap_is_told_and_closed_where_that_is_asked(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    rough = ig.scores(model, task, ["resid_pre"], 0, steps=2, normalise=False)
    clean, corrupt = (m.numpy() for m in Pair.of(model, task).metrics())
    missing = np.abs(rough.values[0, :, 0].sum(1) - (clean - corrupt))
    share = missing.max() / np.abs(clean - corrupt).mean()
    assert rough.attrs["completeness_gap"] == pytest.approx(float(share), rel=1e-4)
    assert rough.attrs["steps"] == 2
    assert "converged" not in rough.attrs
    closed = ig.scores(model, task, "mlp_out", steps=2, tolerance=float(share) / 20)
    assert closed.attrs["converged"]
    assert closed.attrs["completeness_gap"] <= share / 20
    n = closed.attrs["steps"]
    assert n in (4, 8, 16, 32, 64)
    by_hand = ig.scores(model, task, "mlp_out", steps=n)
    np.testing.assert_allclose(closed.values, by_hand.values, atol=1e-7)
    with pytest.warns(UserWarning, match="ig: after 4 steps") as seen:
        open_ = ig.scores(model, task, "mlp_out", steps=2, tolerance=1e-9, max_steps=4)
    assert seen[0].filename == __file__
    assert not open_.attrs["converged"]
    for bad in ({"tolerance": -1.0}, {"tolerance": 0.1, "max_steps": 3}):
        with pytest.raises(BadInput, match=r"tolerance|max_steps"):
            ig.scores(model, task, steps=5, **bad)


def test_the_whole_path_is_not_the_slope_at_its_start(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    start = atp.scores(model, task, normalise=False).values
    path = ig.scores(model, task, steps=5, normalise=False).values
    assert np.abs(start - path).max() > 1e-3
    assert relp.study(model, task, ["ig"]).score.attrs["units"] == ""
