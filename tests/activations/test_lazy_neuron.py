"""Lazy neurons: counts against loops, the argument against its formula, networks getting lazy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import lwlab as lw
from lwlab.activations import (
    activity,
    course,
    energy,
    first_move,
    noisy,
    rectified,
    rectifies,
    top_k,
    train_two_layer,
)
from lwlab.activations.lazy_mlp import TwoLayer
from lwlab.errors import BadInput, Diverged, MissingSite
from lwlab.models import toys

TEXTS = ["the cat sat on the mat", "a dog went to the park and saw a man"]


@pytest.fixture(scope="module")
def relu() -> lw.Model:
    module, _ = toys.tiny("gpt2", activation_function="relu")
    return lw.wrap(module, tokenizer=toys.tokenizer(), name="relu")


def by_hooks(model: lw.Model, text: str) -> list[torch.Tensor]:
    """Each layer's activations of one text, [positions, neurons], by plain hooks."""
    kept: list[torch.Tensor] = []
    handles = [
        block.mlp.act.register_forward_hook(lambda _m, _x, out: kept.append(out[0]))
        for block in model.module.transformer.h
    ]
    with torch.no_grad():
        model.module(model.tokens([text]).ids)
    for handle in handles:
        handle.remove()
    return kept


def test_counts_equal_a_loop_over_tokens_and_neurons(relu):
    found = activity(relu, TEXTS)
    fires = torch.zeros(3, relu.d_mlp)
    tokens = 0
    for i, text in enumerate(TEXTS):
        kept = by_hooks(relu, text)
        tokens += len(kept[0])
        for layer, a in enumerate(kept):
            share = np.mean([sum(float(v) > 0 for v in row) / len(row) for row in a])
            assert float(found.nonzero[i, layer]) == pytest.approx(share, abs=1e-12)
            fires[layer] += (a > 0).sum(0)
    assert np.allclose(found.fires, fires / tokens), "padding of the shorter text counts nothing"
    assert 0.3 < float(found.nonzero.mean()) < 0.7


def test_energy_equals_a_loop(toy, relu):
    for model in (toy("gpt2"), toy("llama"), relu):
        found = energy(model, TEXTS, shares=(0.5, 0.9))
        h = lw.cache(model, TEXTS, "neurons").neurons
        for i in range(2):
            for layer in range(3):
                rows = h.isel(prompt=i, layer=layer).dropna("position").values.astype(float) ** 2
                for k, share in enumerate((0.5, 0.9)):
                    counts = []
                    for row in rows:
                        held, n = 0.0, 0
                        for v in sorted(row, reverse=True):
                            if held >= share * row.sum():
                                break
                            held, n = held + v, n + 1
                        counts.append(n / len(row))
                    assert float(found[k, i, layer]) == pytest.approx(np.mean(counts), abs=2e-3)
    later = energy(relu, TEXTS, skip=2)
    assert not np.allclose(later, energy(relu, TEXTS))


def test_pictures_and_encoders(toy):
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert energy(toy("vit"), x).sizes["prompt"] == 3
    assert energy(toy("bert"), TEXTS).notnull().all()


def test_who_rectifies(toy, relu):
    assert rectifies(relu)
    assert rectifies(toy("opt")) == isinstance(
        toy("opt").module.get_submodule("model.decoder.layers.0.activation_fn"), nn.ReLU
    )
    assert not rectifies(toy("gpt2"))
    assert not rectifies(toy("llama"))
    gated, _ = toys.tiny("llama", hidden_act="relu")
    model = lw.wrap(gated, tokenizer=toys.tokenizer(), name="relu-glu")
    g = lw.cache(model, TEXTS[0], "mlp_gate").mlp_gate.values
    assert activity(model, TEXTS[0]).nonzero.values[0] == pytest.approx((g > 0).mean((0, 2, 3)))


def test_rectified_counts_every_call():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU6()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.act(self.conv(x)) - 0.2).mean((2, 3))

    torch.manual_seed(0)
    module, x = Twice(), torch.randn(2, 3, 8, 8)
    model = SimpleNamespace(
        name="twice", checksum="", module=module, device=torch.device("cpu"), dtype=torch.float32
    )
    found = rectified(model, x)
    first = module.conv(x).clamp(0, 6)
    second = (first - 0.2).clamp(0, 6)
    assert found.place.values.tolist() == ["act", "act (2)"]
    for k, a in enumerate((first, second)):
        assert found[:, k].values == pytest.approx((a > 0).float().mean((1, 2, 3)).tolist())
    assert not module.act._forward_hooks, "the hooks are taken off"


def test_the_first_move_is_the_formula_and_its_sign():
    found = first_move(400, 64, 5, seed=3)
    g = torch.Generator().manual_seed(3)
    p = torch.randn(400, 64, generator=g)
    v = torch.randn(400, 5, 64, generator=g) / 8
    y = torch.randint(5, (400,), generator=g)
    for d in range(0, 400, 40):
        r = (v[d] @ p[d].relu()).softmax(0)
        r[y[d]] -= 1  # dl/df
        slope = [float(r @ v[d, :, i]) for i in range(64) if p[d, i] > 0]
        assert float(found.active[d]) == pytest.approx(np.mean(slope), abs=1e-6)
    assert float(found.inactive.max()) == 0.0
    many = first_move().active
    assert float(many.mean()) > 5 * float(many.std()) / len(many) ** 0.5


def test_top_k_is_a_sort_and_its_gradient_passes_what_is_kept():
    a = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).relu().requires_grad_()
    kept = top_k(a, 7)
    for row, out in zip(a.detach(), kept.detach(), strict=True):
        want = torch.zeros(40)
        for i in sorted(range(40), key=lambda i: -float(row[i]))[:7]:
            want[i] = row[i]
        assert torch.equal(out, want)
    kept.sum().backward()
    assert torch.equal(a.grad != 0, kept != 0) or int((a.grad != 0).sum()) == 6 * 7
    assert top_k(a, 40) is a
    net, same = TwoLayer(5, 40, 3), TwoLayer(5, 40, 3, k=40)
    same.load_state_dict(net.state_dict())
    x = torch.randn(9, 5)
    assert torch.equal(net(x), same(x)), "k = width is the plain network"


def test_training_is_the_plain_loop():
    d = lw.tasks.digits(flat=True)
    x, y = d.train_x[:200], d.train_y[:200]
    found = train_two_layer(x, y, width=32, epochs=3, batch=50, seed=1, test=(d.test_x, d.test_y))
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    g, adam = torch.Generator().manual_seed(1), torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(3):
        for part in torch.randperm(200, generator=g).split(50):
            adam.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            adam.step()
    assert float(found.loss[-1]) == pytest.approx(nn.functional.cross_entropy(net(x), y).item())
    assert float(found.nonzero[-1]) == pytest.approx(float((net[:2](x) > 0).float().mean()))
    right = (net(d.test_x).argmax(1) == d.test_y).float().mean()
    assert float(found.accuracy) == pytest.approx(float(right))
    few = train_two_layer(x, y, width=32, k=3, epochs=1)
    assert float(few.nonzero.max()) <= 3 / 32 + 1e-6


def test_noise_is_as_much_as_was_asked():
    y = torch.arange(1000) % 10
    assert torch.equal(noisy(y, 0.0), y)
    wrong = float((noisy(y, 0.4) != y).float().mean())
    assert wrong == pytest.approx(0.36, abs=0.03), "one in ten of those drawn is right by chance"
    assert float((noisy(y, 1.0) == y).float().mean()) == pytest.approx(0.1, abs=0.03)
    assert not torch.equal(noisy(y, 1.0, seed=1), noisy(y, 1.0, seed=2))


@pytest.mark.parametrize(
    ("call", "words", "kind"),
    [
        (lambda t: activity(t("gpt2"), TEXTS), "never exactly nought", BadInput),
        (lambda t: activity(t("llama"), TEXTS), r"energy\(\) measures", BadInput),
        (lambda t: course("toys/char-gpt2@{step}", [0], TEXTS), "never exactly", BadInput),
        (lambda t: course("toys/char-relu", [0], TEXTS), "has no {step}", BadInput),
        (lambda t: activity(t("mamba"), TEXTS), "neurons", MissingSite),
        (lambda t: energy(t("gpt2"), TEXTS, shares=(1.0,)), "between 0 and 1", BadInput),
        (lambda t: energy(t("gpt2"), TEXTS, skip=6), "leaves nothing of input 0", BadInput),
        (lambda t: energy(t("gpt2"), TEXTS, skip=99), "positions at most", BadInput),
        (lambda t: rectified(t("llama"), torch.zeros(1, 4)), "no nn.ReLU", MissingSite),
        (lambda t: first_move(1), "two or more", BadInput),
        (lambda t: top_k(torch.zeros(5), 0), "from 1 to 5", BadInput),
        (lambda t: top_k(torch.zeros(5), 6), "from 1 to 5", BadInput),
        (lambda t: noisy(torch.arange(3), 1.5), "from 0 to 1", BadInput),
        (lambda t: train_two_layer(torch.zeros(4, 2), torch.zeros(3).long()), "give", BadInput),
        (
            lambda t: train_two_layer(torch.zeros(4, 2), torch.arange(4), width=8, k=9),
            "from 1 to 8",
            BadInput,
        ),
        (
            lambda t: train_two_layer(torch.full((4, 2), torch.nan), torch.arange(4), epochs=1),
            "no number",
            Diverged,
        ),
    ],
)
def test_what_cannot_work_is_refused(toy, call, words, kind):
    with pytest.raises(kind, match=words):
        call(toy)


@pytest.mark.slow
def test_a_transformer_gets_lazy_on_text_and_on_random_labels():
    """The finding: half of the neurons at first; after 300 steps far fewer, whatever the labels."""
    net = lw.load("toys/char-relu")
    texts = lw.tasks.corpus("pydoc", tokens=100, model=net, n=4, seed=0)
    at = course("toys/char-relu@{step}", [0, 300], texts).mean("prompt")
    assert np.abs(at.sel(step=0) - 0.5).max() < 0.1
    assert (at.sel(step=300) < at.sel(step=0)).all()
    assert float(at.sel(step=300)[-1]) < 0.25
    random = toys.find("char-relu-random")(0).texts
    again = course("toys/char-relu-random@{step}", [0, 300], random).mean("prompt")
    assert (again.sel(step=300) < again.sel(step=0) - 0.03).all()
    assert toys.history("char-relu-random")["kept"][-1]["remembered"] > 0.9
