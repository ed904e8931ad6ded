"""Neuron paths: scores against plain hooks, completeness, the toy ViT's findings, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab.attribution import neuron_path
from lwlab.errors import BadInput, MissingSite
from lwlab.models import toys

TEXTS = ["the cat sat on", "a dog went to"]


@pytest.fixture
def vit(toy):
    return toy("vit")


@pytest.fixture
def pictures():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


ANSWERS = [1, 4, 7]


def by_hooks(module, downs, x, answer, column, fixed, layer, alphas):
    """The slopes of one example by plain hooks and one forward a step: fixed is {layer: unit}."""
    clean = {}

    def keep(k):
        return lambda m, args: clean.__setitem__(k, args[0][0, column].detach().clone())

    hooks = [d.register_forward_pre_hook(keep(k)) for k, d in enumerate(downs)]
    module(x)
    for h in hooks:
        h.remove()
    total = {k: torch.zeros(()) for k in fixed}
    own = torch.zeros_like(clean[layer])
    for alpha in alphas:
        leaves = {}

        def put(k, alpha=alpha, leaves=leaves):
            def hook(m, args):
                h = args[0].clone()
                row = h[0, column].detach().clone()
                if k == layer:
                    row = alpha * clean[k]
                else:
                    row[fixed[k]] = alpha * clean[k][fixed[k]]
                leaves[k] = row.requires_grad_()
                if k != layer:  # only the fixed unit is cut off from what lies before it
                    kept = h[0, column].clone()
                    kept[fixed[k]] = leaves[k][fixed[k]]
                    h[0, column] = kept
                else:
                    h[0, column] = leaves[k]
                return (h,)

            return hook

        hooks = [downs[k].register_forward_pre_hook(put(k)) for k in (*fixed, layer)]
        out = module(x).logits[0]
        out = out if out.dim() == 1 else out[-1]
        out.softmax(-1)[answer].backward()
        for h in hooks:
            h.remove()
        own += leaves[layer].grad / len(alphas)
        for k, unit in fixed.items():
            total[k] = total[k] + leaves[k].grad[unit] / len(alphas)
    held = sum((clean[k][u] for k, u in fixed.items()), torch.zeros(()))
    return (held + clean[layer]) * (sum(total.values(), torch.zeros(())) + own)


def test_scores_equal_plain_hooks_in_a_vit(vit, pictures):
    found = neuron_path.find(vit, pictures, ANSWERS, steps=4, rows=8)
    downs = [layer.mlp.fc2 for layer in vit.module.vit.layers]
    for i in range(3):
        fixed = {}
        for layer in range(vit.n_layers):
            said = by_hooks(
                vit.module, downs, pictures[i : i + 1], ANSWERS[i], 0, fixed, layer,
                [0.0, 0.25, 0.5, 0.75],
            )  # fmt: skip
            got = found.candidate.isel(example=i, layer=layer).values
            assert np.allclose(said.detach(), got, atol=1e-6, rtol=1e-3)
            fixed[layer] = int(found.unit[i, layer])
            assert fixed[layer] == int(said.argmax())
            assert float(found.score[i, layer]) == pytest.approx(float(said.max()), abs=1e-6)


def test_scores_equal_plain_hooks_in_a_decoder(toy):
    model = toy("llama")
    found = neuron_path.find(model, TEXTS, [5, 9], steps=3, rule="midpoint")
    downs = [layer.mlp.down_proj for layer in model.module.model.layers]
    ids = torch.tensor(model.tokenizer([TEXTS[1]])["input_ids"])
    fixed = {0: int(found.unit[1, 0])}
    alphas = [1 / 6, 3 / 6, 5 / 6]
    said = by_hooks(model.module, downs, ids, 9, ids.shape[1] - 1, fixed, 1, alphas)
    assert np.allclose(said.detach(), found.candidate[1, 1], atol=1e-6, rtol=1e-3)


def test_the_first_layers_scores_add_up_and_the_left_sum_is_slower(vit, pictures):
    gaps = {}
    for steps, rule in ((20, "left"), (200, "left"), (20, "midpoint"), (100, "midpoint")):
        found = neuron_path.find(vit, pictures, ANSWERS, steps=steps, rule=rule)
        gap = found.candidate.sum("neuron")[:, 0] - found.whole[:, 0]
        gaps[steps, rule] = float(abs(gap).max() / abs(found.whole[:, 0]).max())
    assert gaps[100, "midpoint"] < 1e-3
    assert gaps[200, "left"] < gaps[20, "left"] / 5
    assert gaps[20, "midpoint"] < gaps[20, "left"]


def test_intervening_is_the_multiplication_it_says(vit, pictures):
    found = neuron_path.find(vit, pictures, ANSWERS, steps=2)
    same = neuron_path.intervene(vit, pictures, ANSWERS, found.unit, 1.0)
    assert np.allclose(same.after, same.base, atol=1e-7)
    paths = found.unit.values.copy()
    got = neuron_path.intervene(vit, pictures, ANSWERS, paths, 3.0)
    one = neuron_path.intervene(vit, pictures, ANSWERS, paths, 3.0, layers=[0, 1, 2])
    assert np.allclose(one.after, got.after)
    assert not np.allclose(
        neuron_path.intervene(vit, pictures, ANSWERS, paths, 3.0, layers=1).after, got.after
    )
    hooks = []
    for k, layer in enumerate(vit.module.vit.layers):

        def times(m, args, k=k):
            h = args[0].clone()
            h[torch.arange(3), 0, torch.tensor(paths[:, k])] *= 3.0
            return (h,)

        hooks.append(layer.mlp.fc2.register_forward_pre_hook(times))
    with torch.no_grad():
        p = vit.module(pictures).logits.softmax(-1)
    for h in hooks:
        h.remove()
    assert np.allclose(got.after, p[torch.arange(3), torch.tensor(ANSWERS)], atol=1e-6)


def test_overlap_finds_what_was_planted_and_nothing_else():
    rng = np.random.default_rng(0)
    groups = np.repeat(range(4), 8)
    planted = np.stack([groups * 3, groups * 2, rng.integers(50, size=32)], 1)
    found = neuron_path.overlap(planted, groups, draws=500)
    assert float(found.same) > 0.4
    assert float(found.other) < 0.1
    assert float(found.p) < 0.01
    nothing = neuron_path.overlap(rng.integers(5, size=(32, 3)), groups, draws=500)
    assert float(nothing.p) > 0.05
    a, b = planted[0], planted[1]
    jaccard = len({*enumerate(a)} & {*enumerate(b)}) / len({*enumerate(a)} | {*enumerate(b)})
    pair = neuron_path.overlap(np.stack([a, b, planted[9]]), [0, 0, 1], draws=5)
    assert float(pair.same) == pytest.approx(jaccard)


@pytest.mark.slow
def test_the_trained_vit_has_paths_by_class():
    model, data = toys.trained("vit-digits"), lw.tasks.digits()
    x, y = data.test_x[:60], data.test_y[:60]
    found = neuron_path.find(model, x, y)
    joint = neuron_path.intervene(model, x, y, found.unit)
    active = neuron_path.intervene(model, x, y, neuron_path.largest(model, x, y))
    drawn = neuron_path.intervene(model, x, y, neuron_path.at_random(60, 4, 128))
    drop = [float((r.base - r.after).mean()) for r in (joint, active, drawn)]
    assert drop[0] > drop[1] > 0
    assert drop[0] > 3 * drop[2]
    assert float(neuron_path.overlap(found.unit, y, draws=200).p) < 0.05


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: neuron_path.find(m, x, [1, 2]), BadInput, "3 inputs need as many answers"),
        (lambda m, x: neuron_path.find(m, x, [1, 2, 10]), BadInput, "not all among the 10"),
        (lambda m, x: neuron_path.find(m, x, ANSWERS, steps=0), BadInput, "steps=0"),
        (lambda m, x: neuron_path.find(m, x, ANSWERS, rule="right"), BadInput, "rule='right'"),
        (lambda m, x: neuron_path.intervene(m, x, ANSWERS, [[0, 0, 99]] * 3), BadInput, "0 to 39"),
        (lambda m, x: neuron_path.intervene(m, x, ANSWERS, [[0, 0]] * 3), BadInput, r"\[3, 3\]"),
        (lambda m, x: neuron_path.overlap([[1], [2]], [0, 0]), BadInput, "pairs of one class"),
    ],
)
def test_what_cannot_work_is_refused(vit, pictures, call, error, words):
    with pytest.raises(error, match=words):
        call(vit, pictures)


def test_models_and_texts_that_do_not_fit_are_refused(toy):
    with pytest.raises(MissingSite, match="neurons"):
        neuron_path.find(toy("mamba"), TEXTS, [1, 2])
    with pytest.raises(BadInput, match="unequal length"):
        neuron_path.find(toy("llama"), ["the cat", "the cat sat on"], [1, 2])
