"""AdaMerging: its slope is that measured by differences; only coefficients learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from test_lines import nudged, weights

import lwlab as lw
from lwlab.errors import BadInput, Diverged, UnknownName
from lwlab.merging import Vectors, adamerging, combine, measure, vectors


def ids(seed: int, n: int = 6) -> torch.Tensor:
    return torch.randint(3, 20, (n, 8), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def two(toy: Any) -> tuple[Vectors, dict[str, torch.Tensor]]:
    base = toy("llama")
    v = vectors(base, {"a": nudged(base, 1, 0.2), "b": nudged(base, 2, 0.2)})
    return v, {"a": ids(1), "b": ids(2)}


def objective(v: Vectors, texts: dict[str, torch.Tensor], c: np.ndarray) -> float:
    import xarray as xr

    array = xr.DataArray(c, {"task": v.tasks, "tensor": v.tensors}, ("task", "tensor"))
    return float(measure(combine(v, array), texts).entropy.mean("text").sum())


def test_nought_is_the_base_and_one_is_the_expert(two: Any) -> None:
    v, texts = two
    tuned = {k: {n: v.tau[k][n] + w for n, w in weights(v.base).items()} for k in v.tasks}
    assert all(torch.equal(w, weights(v.base)[n]) for n, w in weights(combine(v, 0.0)).items())
    for k in v.tasks:
        one = combine(v, {j: float(j == k) for j in v.tasks})
        assert all(torch.allclose(w, tuned[k][n], atol=1e-7) for n, w in weights(one).items())
    # The differentiable merge computes what the merged model does.
    for start in (0.0, 0.3):
        found = adamerging.learn(v, texts, steps=1, batch=400, start=start)
        whole = measure(combine(v, start), texts)
        np.testing.assert_allclose(found.entropy[0], whole.entropy.mean("text"), atol=0.03)


@pytest.mark.parametrize("level", ["task", "layer"])
def test_the_first_step_goes_down_the_slope_measured_by_differences(level: Any, two: Any) -> None:
    v, texts = two
    one = {k: t[:1].expand(4, -1) for k, t in texts.items()}  # every draw is the same text
    found = adamerging.learn(v, one, level=level, steps=1, rate=1e-2, batch=4)
    moved = (found.coefficient[1] - found.coefficient[0]).values
    np.testing.assert_allclose(found.coefficient[0].values, 0.3, atol=1e-7)
    texts = {k: t[:1] for k, t in texts.items()}
    wide = len(v.tensors)
    for i in range(2):
        for j in range(wide) if level == "layer" else [0]:
            up, down = (np.full((2, wide), 0.3) for _ in range(2))
            where = (i, j) if level == "layer" else (i, slice(None))
            up[where] += 0.02
            down[where] -= 0.02
            slope = objective(v, texts, up) - objective(v, texts, down)
            if abs(slope) > 1e-3:  # Adam's first step is the rate times the sign
                assert moved[i, j] == pytest.approx(-math.copysign(1e-2, slope), rel=1e-2)
    if level == "task":
        assert np.ptp(moved, axis=1).max() == 0


def test_entropy_falls_and_more_coefficients_fall_further(two: Any) -> None:
    v, texts = two
    ends = {
        level: adamerging.learn(v, texts, level=level, steps=60, rate=1e-2, batch=6, seed=3)
        for level in ("task", "layer")
    }
    last = {k: objective(v, texts, d.coefficient[-1].values) for k, d in ends.items()}
    first = objective(v, texts, np.full((2, len(v.tensors)), 0.3))
    assert last["layer"] < last["task"] + 0.02
    assert last["layer"] < first
    c = ends["layer"].coefficient
    assert float(c.min()) >= 0
    assert float(c.max()) <= 1
    assert float(c[-1].std()) > 0.01


def test_only_coefficients_learn(two: Any) -> None:
    v, texts = two
    before = {n: w.detach().clone() for n, w in weights(v.base).items()}
    adamerging.learn(v, texts, steps=2, rate=0.1)
    for n, w in weights(v.base).items():
        assert torch.equal(w, before[n])
        assert w.grad is None
    assert all(t.grad is None for tau in v.tau.values() for t in tau.values())


def test_runs_repeat_and_labels_steer_only_where_asked(two: Any) -> None:
    v, texts = two
    a, b = (adamerging.learn(v, texts, steps=5, rate=1e-2) for _ in range(2))
    assert a.identical(b)
    seen = adamerging.learn(v, texts, steps=5, rate=1e-2, by="loss")
    assert not np.array_equal(seen.coefficient, a.coefficient)
    assert seen.attrs["by"] == "loss"


def test_the_premise_is_a_rank_correlation_of_whole_measurements(two: Any) -> None:
    from scipy.stats import spearmanr

    v, texts = two
    found = adamerging.premise(v, texts, draws=5, top=0.5)
    assert float(found.coefficient.max()) <= 0.5
    expected = spearmanr(found.entropy, found.loss).statistic
    assert float(found.rank_correlation) == pytest.approx(expected)
    c = dict(zip(v.tasks, found.coefficient[2].values.tolist(), strict=True))
    again = measure(combine(v, c), texts)
    assert float(found.entropy[2]) == pytest.approx(float(again.entropy.mean()), abs=1e-6)
    assert float(found.loss[2]) == pytest.approx(float(again.loss.mean()), abs=1e-6)


def test_a_second_architecture_with_biases_and_norms(toy: Any) -> None:
    base = toy("gpt2")
    v = vectors(base, {"a": nudged(base, 1), "b": nudged(base, 2)})
    found = adamerging.learn(v, {"a": ids(1), "b": ids(2)}, steps=3, rate=1e-2)
    assert any(n.endswith("bias") for n in found.tensor.values)
    assert (combine(v, found.coefficient[-1]).module.config.model_type) == "gpt2"


def test_what_cannot_work_is_refused_before_learning(two: Any, toy: Any) -> None:
    v, texts = two
    with pytest.raises(BadInput, match="no texts for b"):
        adamerging.learn(v, {"a": texts["a"]})
    with pytest.raises(UnknownName, match="no level 'layers'; did you mean 'layer'"):
        adamerging.learn(v, texts, level="layers")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="no objective 'accuracy'"):
        adamerging.learn(v, texts, by="accuracy")  # type: ignore[arg-type]
    for bad in ({"steps": 0}, {"batch": 0}, {"rate": math.nan}, {"start": 1.5}, {"rate": 0.0}):
        with pytest.raises(BadInput, match=f"{next(iter(bad))}="):
            adamerging.learn(v, texts, **bad)
    with pytest.raises(BadInput, match="three draws"):
        adamerging.premise(v, texts, draws=2)
    bert = toy("bert")
    with pytest.raises(BadInput, match="need a decoder"):
        adamerging.learn(vectors(bert, {"a": nudged(bert, 1)}), {"a": texts["a"]})


def test_an_objective_that_stops_being_a_number_says_so(two: Any) -> None:
    v, texts = two
    v.tau["a"][v.tensors[0]].fill_(math.inf)  # type: ignore[union-attr]
    with pytest.raises(Diverged, match="at step 0"):
        adamerging.learn(v, texts, steps=1)


def test_it_serves_as_a_model(two: Any) -> None:
    v, texts = two
    found = adamerging.learn(v, texts, steps=2, rate=1e-2)
    merged = combine(v, found.coefficient[-1], name="AdaMerging")
    assert merged.name.endswith("AdaMerging")
    lens = lw.cache(merged, texts["a"], "resid_post")
    assert lens.sizes["layer"] == v.base.n_layers
