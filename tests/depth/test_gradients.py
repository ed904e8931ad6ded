"""Integrated gradients: completeness, the paper's sum by plain hooks, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from depth_by_hand import hooked

from lwlab.depth import integrated_gradients
from lwlab.errors import BadInput, MissingSite, UnknownName

PROMPT, ANSWER = "Mary gave a book to", " John and Anna"
ARCHS = ("llama", "gpt2", "gemma2", "gpt_neox")


def slow(model: Any, part: str, layer: int, steps: int) -> tuple[np.ndarray, float]:
    """The paper's left Riemann sum, one plain forward and backward a step."""
    site = {"layer": "block", "attention": "attn_out", "mlp": "mlp_out"}[part]
    text = PROMPT + ANSWER
    ids = model.tokens(text).ids[0]
    with torch.no_grad():
        x = hooked(model, text, {})[site][layer].reshape(len(ids), -1)
    b = x.mean(0)

    def value(r: float) -> tuple[torch.Tensor, torch.Tensor]:
        point = (b + r * (x - b)).requires_grad_(True)
        z = hooked(model, text, {(site, layer): lambda out: point.view(out.shape)})["logits"]
        p = z.softmax(-1)
        return point, sum(p[i - 1, ids[i]] for i in range(5, 8))

    total = torch.zeros(len(ids))
    for i in range(steps):
        point, f = value(i / steps)
        (grad,) = torch.autograd.grad(f, point)
        total += ((x - b) * grad).sum(-1) / steps
    return total.numpy(), float((value(1.0)[1] - value(0.0)[1]).detach())


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("part", ["layer", "attention", "mlp"])
def test_attributions_equal_the_papers_sum(toy: Any, arch: str, part: Any) -> None:
    model = toy(arch)
    want, change = slow(model, part, 1, 6)
    r = integrated_gradients(model, PROMPT, ANSWER, parts=part, layers=1, steps=6)
    np.testing.assert_allclose(r.attribution[0, 0], want, atol=1e-5)
    assert float(r.difference[0, 0]) == pytest.approx(change, abs=1e-5)
    assert float(r.total[0, 0]) == pytest.approx(float(want.sum()), abs=1e-5)
    assert int(r.steps[0, 0]) == 6


@pytest.mark.parametrize("arch", ARCHS)
def test_completeness_holds_and_adaptive_pieces_agree_with_many_steps(toy: Any, arch: str) -> None:
    model = toy(arch)
    r = integrated_gradients(model, PROMPT, ANSWER, layers=[0, 2])
    assert float((abs(r.gap) - 0.01 - 0.02 * abs(r.difference)).max()) <= 1e-6
    many = integrated_gradients(model, PROMPT, ANSWER, layers=[0, 2], steps=128, max_rows=32)
    np.testing.assert_allclose(r.attribution, many.attribution, atol=5e-3)
    assert int(r.steps.max()) <= 64


def test_a_path_with_a_peak_gets_more_steps() -> None:
    """F rises within 1/50 of the path: few fixed steps miss it, halving finds it."""
    from lwlab.depth.gradients import Path

    class Peaked(Path):
        def __init__(self) -> None:
            self.blocks, self.taken = type("B", (), {"n_positions": 1})(), 0

        def slopes(self, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            self.taken += len(r)
            r = r.clone().requires_grad_(True)
            f = torch.sigmoid(200 * (r - 0.61))
            (grad,) = torch.autograd.grad(f.sum(), r)
            return grad[:, None], f.detach()

    path = Peaked()
    total, change = path.adaptive(256)
    assert float(total[0]) == pytest.approx(1.0, abs=0.03)
    assert float(change) == pytest.approx(1.0)
    assert 5 < path.taken <= 256
    assert abs(float(Peaked().adaptive(5)[0][0]) - 1) > 0.1


def test_the_answer_after_its_own_prediction_gets_nothing(toy: Any) -> None:
    r = integrated_gradients(toy("llama"), PROMPT, ANSWER)
    assert float(abs(r.attribution.isel(position=-1)).max()) == 0.0


def test_the_model_is_left_without_gradients_and_the_number_of_rows_does_not_matter(
    toy: Any,
) -> None:
    model = toy("gpt2")
    a = integrated_gradients(model, PROMPT, ANSWER, layers=0, steps=5, max_rows=2)
    b = integrated_gradients(model, PROMPT, ANSWER, layers=0, steps=5, max_rows=8)
    np.testing.assert_allclose(a.attribution, b.attribution, atol=1e-6)
    assert all(p.grad is None for p in model.module.parameters())


@pytest.mark.parametrize(
    ("arch", "arguments", "error", "words"),
    [
        ("llama", {"parts": "heads"}, UnknownName, "attention"),
        ("llama", {"parts": []}, BadInput, "empty"),
        ("llama", {"answer": ""}, BadInput, "empty"),
        ("llama", {"layers": [9]}, BadInput, r"0\.\.2"),
        ("llama", {"steps": 0}, BadInput, "at least"),
        ("llama", {"max_steps": 4}, BadInput, "at least"),
        ("mamba", {"parts": "mlp"}, MissingSite, "attn_out"),
    ],
)
def test_what_cannot_work_is_refused(
    toy: Any, arch: str, arguments: Any, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        integrated_gradients(toy(arch), **{"prompt": PROMPT, "answer": ANSWER, **arguments})
