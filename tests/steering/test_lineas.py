"""LinEAS: identities, a slow loop, optimal assignment, the sparse path, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance

import lwlab as lw
from lwlab.errors import BadInput, Diverged, MissingSite, UnknownName
from lwlab.steering import lineas, wasserstein

SOURCE = [
    "Mary and John went to the store",
    "the king was in France",
    "Mary gave a book to John",
    "John had a drink",
]
TARGET = [
    "the city of Rome is in Italy and",
    "the woman said that she",
    "the man had a book",
    "a b",
]
ARCHS = ["llama", "gpt2", "gemma2"]
Toy = Callable[[str], lw.Model]


@pytest.mark.parametrize(("n", "m"), [(6, 6), (4, 6), (5, 3), (1, 7)])
def test_distance_is_the_cheapest_assignment_and_scipys(n: int, m: int) -> None:
    g = torch.Generator().manual_seed(n + m)
    u, v = torch.randn(n, 3, generator=g), torch.randn(m, 3, generator=g) * 2 + 1
    for k in range(3):
        # copies make the samples equally many; then every plan is a permutation, no sorting needed
        a, b = (x[:, k].double().repeat_interleave(r).numpy() for x, r in ((u, m), (v, n)))
        cost = (a[:, None] - b[None]) ** 2
        best = cost[linear_sum_assignment(cost)].mean()
        assert float(wasserstein(u, v)[k]) == pytest.approx(best, rel=1e-5)
        first = wasserstein_distance(u[:, k].numpy(), v[:, k].numpy())
        assert float(wasserstein(u, v, p=1)[k]) == pytest.approx(first, rel=1e-5)


def by_hand(
    model: lw.Model, layers: list[int], scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """C by plain hooks, text by text and unit by unit, differentiable in both arguments."""

    seen: dict[int, torch.Tensor] = {}

    def hook(i: int, on: bool) -> Any:
        def change(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            z = (1 + scale[i]) * args[0] + shift[i] if on else args[0]
            seen[i] = z[0, 1:].mean(0)
            return (z, *args[1:])

        return change

    def means(texts: list[str], on: bool) -> torch.Tensor:
        rows = []
        for text in texts:
            handles = []
            for i, layer in enumerate(layers):
                mlp = model.module.get_submodule(model.anatomy.taps["mlp_in"].at(layer))
                handles.append(mlp.register_forward_pre_hook(hook(i, on)))
            model.module(input_ids=torch.tensor([model.tokenizer(text)["input_ids"]]))
            for handle in handles:
                handle.remove()
            rows.append(torch.stack([seen[i] for i in range(len(layers))]))
        return torch.stack(rows, 1)

    xi, eta = means(SOURCE, True), means(TARGET, False)
    total = torch.zeros(())
    for i in range(len(layers)):
        for k in range(xi.shape[-1]):
            pairs = zip(xi[i, :, k].sort().values, eta[i, :, k].sort().values)
            total = total + sum((a - b) ** 2 for a, b in pairs) / len(SOURCE) / xi.shape[-1]
    return total


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_loss_and_slopes_are_the_loops(arch: str, toy: Toy) -> None:
    model, layers = toy(arch), [0, 2]
    scale, shift = (torch.zeros(2, int(model.d_model or 0), requires_grad=True) for _ in "ab")
    total = by_hand(model, layers, scale, shift)
    want = torch.autograd.grad(total, [scale, shift])
    assert float(lineas.loss(model, SOURCE, TARGET, layers=layers).sum()) == pytest.approx(
        float(total.detach()), rel=1e-4
    )
    got = lineas.slopes(model, SOURCE, TARGET, layers)
    for name, slope in zip(("scale", "bias"), want):
        np.testing.assert_allclose(got[name].values, slope.numpy(), rtol=1e-3, atol=1e-6)


def test_training_is_torchs_adam(toy: Toy) -> None:
    model, layers = toy("llama"), [0, 2]
    scale, shift = (torch.zeros(2, int(model.d_model or 0), requires_grad=True) for _ in "ab")
    adam = torch.optim.Adam([scale, shift], lr=3e-3, eps=1e-12)
    losses = []
    for _ in range(5):
        adam.zero_grad()
        c = by_hand(model, layers, scale, shift)
        c.backward()
        losses.append(float(c.detach()))
        adam.step()
    maps = lineas.learn(model, SOURCE, TARGET, layers, steps=5, rate=3e-3)
    np.testing.assert_allclose(maps.loss.values[:5], losses, rtol=1e-4)
    assert np.corrcoef(maps.scale.values.ravel(), scale.detach().numpy().ravel())[0, 1] > 0.999


@pytest.mark.parametrize("arch", ARCHS)
def test_equal_sets_have_no_loss_and_no_slope_and_stay_where_they_are(arch: str, toy: Toy) -> None:
    model = toy(arch)
    assert float(lineas.loss(model, SOURCE, SOURCE[::-1]).sum()) < 1e-10
    slopes = lineas.slopes(model, SOURCE, SOURCE)
    assert float(abs(slopes.scale).max()) == float(abs(slopes["bias"]).max()) == 0
    maps = lineas.learn(model, SOURCE, SOURCE, steps=2)
    assert int(lineas.moved(maps).sum()) == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_training_lowers_the_loss_and_no_strength_is_the_base_bit_for_bit(
    arch: str, toy: Toy
) -> None:
    model = toy(arch)
    maps = lineas.learn(model, SOURCE, TARGET, rate=5e-3, steps=20)
    assert maps.loss.values[-1] < 0.8 * maps.loss.values[0]
    assert float(lineas.loss(model, SOURCE, TARGET, maps).sum()) == pytest.approx(
        float(maps.loss[-1]), rel=1e-4
    )
    off = lw.patch(model, SOURCE, lineas.edits(maps, 0.0))
    assert bool((off.logits == off.base_logits).all())
    on = lw.patch(model, SOURCE, lineas.edits(maps, 1.0))
    assert float(on.moved.min()) > 0
    assert lw.generate(model, SOURCE[:1], 3, lineas.edits(maps)).sizes["step"] <= 3


def test_strength_goes_from_the_base_to_the_map(toy: Toy) -> None:
    model = toy("llama")
    maps = lineas.lin_act(model, SOURCE, TARGET, 1)
    z = torch.randn(2, 3, int(model.d_model or 0))
    (half,) = lineas.edits(maps, 0.5).values()
    omega, b = (torch.as_tensor(maps[k].values[0]) for k in ("scale", "bias"))
    torch.testing.assert_close(half(z), 0.5 * z + 0.5 * ((1 + omega) * z + b))


@pytest.mark.parametrize("arch", ARCHS)
def test_closed_form_has_the_targets_mean_and_numpys_regression(arch: str, toy: Toy) -> None:
    model = toy(arch)
    at = model.anatomy.address("mlp_in.1")
    maps = lineas.lin_act(model, SOURCE, TARGET, 1, limit=1e9)
    reads = {}
    for name, texts, edits in (
        ("u", SOURCE, {}), ("v", TARGET, {}), ("moved", SOURCE, lineas.edits(maps)),
    ):  # fmt: skip
        rows = []
        for t in texts:
            if edits:
                x = lw.patch(model, t, edits, read="mlp_in", layers=1).mlp_in
            else:
                x = lw.cache(model, t, "mlp_in", 1).mlp_in
            rows.append(x.sel(layer=1).isel(prompt=0, position=slice(1, None)).mean("position"))
        reads[name] = np.stack([r.values for r in rows])
    assert str(at) == "mlp_in.1"
    scale = np.abs(reads["v"].mean(0)).max()
    np.testing.assert_allclose(reads["moved"].mean(0), reads["v"].mean(0), atol=1e-4 * scale)
    for k in range(0, reads["u"].shape[1], 7):
        slope, _ = np.polyfit(np.sort(reads["u"][:, k]), np.sort(reads["v"][:, k]), 1)
        assert float(maps.scale[0, k]) + 1 == pytest.approx(slope, rel=1e-2, abs=1e-3)


def test_incremental_maps_know_those_below(toy: Toy) -> None:
    model = toy("llama")
    once, step = (
        lineas.lin_act(model, SOURCE, TARGET, incremental=i, limit=100) for i in (False, True)
    )
    np.testing.assert_array_equal(once.scale[0], step.scale[0])  # nothing is below the first
    assert float(abs(once["bias"] - step["bias"]).max()) > 0
    left = [float(lineas.loss(model, SOURCE, TARGET, m).sum()) for m in (once, step)]
    assert left[1] < left[0]


def test_support_shrinks_as_the_penalty_grows_to_nothing_at_the_largest_slope(toy: Toy) -> None:
    model = toy("llama")
    slopes = lineas.slopes(model, SOURCE, TARGET)
    top = max(float(abs(slopes[k]).max()) for k in ("scale", "bias"))
    counts = [
        int(
            lineas.moved(lineas.learn(model, SOURCE, TARGET, steps=15, l1=s * top, rate=5e-3)).sum()
        )
        for s in (0, 0.1, 0.3, 0.6, 1.001)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 3 * counts[3] > 0
    assert counts[-1] == 0


def test_the_group_penalty_empties_whole_layers(toy: Toy) -> None:
    model = toy("llama")
    free = lineas.moved(lineas.learn(model, SOURCE, TARGET, steps=8, rate=5e-3))
    assert int(free.min()) > 0
    counts = []
    for weight in (1e-3, 1e-2, 0.03, 0.1, 1.0):
        maps = lineas.learn(model, SOURCE, TARGET, steps=8, rate=5e-3, group=weight)
        counts.append(lineas.moved(maps).values)
        sizes = set(counts[-1][counts[-1] > 0].tolist())
        assert all(s > 0.9 * int(free.max()) for s in sizes)  # a layer is in, or out
    assert (counts[-1] == 0).all()
    assert len({tuple(c > 0) for c in counts}) > 1


def test_the_proximal_map_minimises_what_it_says() -> None:
    """Sparse-group shrinkage against a blind minimisation, with one metric for all."""
    from scipy.optimize import minimize

    theta = torch.tensor([[[0.9, -0.05, 0.3]], [[-0.6, 0.0, 0.2]]])
    metric = torch.full_like(theta, 2.0)
    got = lineas._proximal(theta, metric, 0.2, 0.4).flatten().numpy()
    x0 = theta.flatten().numpy()

    def cost(x: Any) -> Any:
        near = 2.0 / 2 * ((x - x0) ** 2).sum()
        return near + 0.2 * np.abs(x).sum() + 0.4 * np.sqrt((x**2).sum() + 1e-12)

    best = minimize(cost, x0, method="Nelder-Mead", options={"maxiter": 20000, "xatol": 1e-7})
    assert cost(got) <= best.fun + 1e-6  # the blind search comes near, and never below
    np.testing.assert_allclose(got, best.x, atol=2e-2)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"target": []}, BadInput, "both classes need some"),
        ({"source": []}, BadInput, "both classes need some"),
        ({"layers": [0, 9]}, BadInput, "9"),
        ({"layers": []}, BadInput, "layers is empty"),
        ({"site": "mlp_inn"}, UnknownName, "mlp_in"),
        ({"site": "q"}, BadInput, "no vector at every position"),
        ({"steps": 0}, BadInput, "at least one step"),
        ({"rate": 0.0}, BadInput, "a rate"),
        ({"l1": -1.0}, BadInput, "penalties"),
        ({"first": 3}, BadInput, "leaves no token"),
        ({"rate": 50.0}, Diverged, "take a smaller one"),
    ],
)
def test_what_cannot_work_is_refused(
    change: dict[str, Any], error: type[Exception], says: str, toy: Toy
) -> None:
    asked: dict[str, Any] = {"source": SOURCE, "target": TARGET, "layers": None, **change}
    with pytest.raises(error, match=says):
        lineas.learn(toy("llama"), **asked)


def test_other_models_and_other_results_are_refused(toy: Toy) -> None:
    with pytest.raises(MissingSite):
        lineas.learn(toy("vit"), SOURCE, TARGET)
    vector = lw.steering.repe_reasoning.vectors(toy("llama"), SOURCE, TARGET)
    with pytest.raises(BadInput, match="no maps"):
        lineas.edits(vector.to_dataset(name="vector"))
    maps = lineas.lin_act(toy("llama"), SOURCE, TARGET)
    with pytest.raises(BadInput, match="finite"):
        lineas.edits(maps, float("nan"))
    with pytest.raises(BadInput, match="limit"):
        lineas.lin_act(toy("llama"), SOURCE, TARGET, limit=0)
    maps.scale[0, 0] = np.inf
    with pytest.raises(BadInput, match="NaN or infinity"):
        lineas.edits(maps)
