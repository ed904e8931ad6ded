"""Grokking by addition: the equations against autograd and loops, and the paper's findings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lwlab import dynamics
from lwlab.dynamics import Run, addition, ascent, energy, energy_gradient, stages, train
from lwlab.errors import BadInput, Diverged


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_data_are_all_sums_once():
    problem = addition(7, 0.6, seed=3)
    both = torch.cat([problem.train, problem.test]).sort().values
    assert both.tolist() == list(range(49))
    assert len(problem.train) == round(0.6 * 49)
    for row in range(49):
        a, b = problem.x[row].nonzero().flatten().tolist()
        assert problem.labels[row] == (a + b - 7) % 7
    assert problem.targets.sum(1).abs().max() < 1e-6
    assert problem.critical == pytest.approx(2.7482 * math.log(7) / 7)
    placebo = addition(7, 0.6, seed=3, shuffled=True).labels
    assert placebo.sort().values.tolist() == problem.labels.sort().values.tolist()
    assert placebo.tolist() != problem.labels.tolist()
    assert addition(7, 0.6, seed=3).train.tolist() == problem.train.tolist()


def test_energy_and_its_gradient_equal_a_loop_and_autograd():
    problem = addition(6, 0.5)
    w = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    by_hand = torch.zeros(3, dtype=torch.float64)
    for k in range(3):
        for c in range(6):
            total = 0.0
            for a in range(6):
                for b in range(6):
                    target = float((a + b) % 6 == c) - 1 / 6
                    total += target * (w[a, k] + w[6 + b, k]) ** 2
            by_hand[k] += total**2 / 2
    assert torch.allclose(energy(w, problem), by_hand)
    for rows in (None, problem.train):
        leaf = w.clone().requires_grad_()
        energy(leaf, problem, rows).sum().backward()
        assert torch.allclose(energy_gradient(w, problem, rows), leaf.grad, atol=1e-12)


def test_backprop_is_what_autograd_sends_to_the_hidden_layer():
    run = Run(addition(7, 0.7), width=5)
    for _ in range(20):
        run.advance()
    x, y = run.problem.x[run.problem.train], run.problem.targets[run.problem.train]
    f = run.hidden(x).detach().requires_grad_()
    # The loss with the sample mean taken off the prediction, which is what P means.
    out = (f - f.mean(0)) @ run.v.detach()
    out = out - out.mean(1, keepdim=True)
    ((y - y.mean(0)) - out).square().sum().div(2).backward()
    g, centred = run.backprop()
    projected = g - g.mean(0)
    # V's rows are not centred over the outputs, but the residual is, so V^T needs no projection.
    assert torch.allclose(-f.grad, projected, atol=1e-5)
    assert centred.mean(0).abs().max() < 1e-6


def test_at_the_ridge_solution_the_signal_is_what_the_theory_says():
    run = Run(addition(7, 0.7), width=9, decay=0.01)
    x, y = run.problem.x[run.problem.train], run.problem.targets[run.problem.train]
    with torch.no_grad():
        f = run.hidden(x).double()
        f -= f.mean(0)
        y = y.double() - y.double().mean(0)
        normal = f.T @ f + run.eta * torch.eye(9, dtype=torch.float64)
        v = torch.linalg.solve(normal, f.T @ y)
        assert torch.allclose(run.ridge().double(), v, atol=1e-5)
        run.v.copy_(run.ridge())
        g, _ = run.backprop()
        kernel = torch.linalg.inv(f @ f.T + run.eta * torch.eye(len(f), dtype=torch.float64))
        said = run.eta * kernel @ y @ y.T @ f @ torch.linalg.inv(normal)
    assert torch.allclose(g.double(), said, atol=1e-5)


def test_every_maximum_is_one_frequency_of_energy_a_quarter_of_the_modulus():
    found = ascent(addition(11, 0.5), starts=24)
    assert float(found.slope.max()) < 1e-8
    assert float(found.purity.min()) > 0.999
    assert np.allclose(found.energy, 11 / 4, atol=1e-6)
    assert (found.frequency.sel(half="a") == found.frequency.sel(half="b")).all()
    assert set(found.frequency.values.ravel()) <= set(range(1, 6))
    even = ascent(addition(8, 0.5), starts=48)
    energies = {round(float(e), 4) for e in even.energy}
    assert energies <= {2.0, 4.0}, "M/4, and M/2 at the real frequency"


def test_it_groks_with_data_and_decay_and_not_without():
    problem = addition(23, 0.75)
    full = train(problem, every=25)
    assert float(full.test_accuracy[-1]) > 0.95
    ends = stages(full)
    assert ends["lazy"] < ends["alone"] <= 400
    between = full.sel(step=slice(125, 175))
    assert float(between.alignment.min()) > 0.3
    bare = train(problem, every=25, decay=0.0)
    assert float(bare.test_accuracy[-1]) < 0.3
    assert float(bare.sel(step=slice(125, 175)).alignment.max()) < 0.15
    assert math.isnan(stages(bare)["alone"])
    assert np.isnan(bare.ridge_gap).all()
    scarce = train(addition(23, 0.3), every=100)
    assert float(scarce.train_accuracy[-1]) == 1.0
    assert float(scarce.test_accuracy[-1]) < 0.1
    zero = train(problem, every=25, start="zero")
    assert stages(zero)["alone"] < ends["alone"]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_a_run_taken_up_is_the_run_not_cut_off(optimizer, tmp_path):
    problem, file = addition(7, 0.7), tmp_path / "run.pt"
    options = {"width": 8, "every": 5, "optimizer": optimizer}
    whole = train(problem, steps=30, **options)
    seen = []
    train(problem, steps=15, resume=file, **options)
    again = train(problem, steps=30, resume=file, watch=lambda s, r: seen.append(s), **options)
    assert seen == [20, 25, 30]
    assert again.identical(whole)
    with pytest.raises(BadInput, match=r"holds another run \(\{'decay'"):
        train(problem, steps=30, resume=file, **{**options, "decay": 0.1})


def test_a_diverged_run_says_so():
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+.*lower rate"):
        train(addition(7, 0.7), width=8, steps=300, rate=1e12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: addition(2), "modulus=2"),
        (lambda: addition(7, 0.0), "fraction=0.0"),
        (lambda: addition(7, 1.2), "fraction=1.2"),
        (lambda: train(addition(7), optimizer="sgd"), "optimizer='sgd'; there are adam, adamw"),
        (lambda: train(addition(7), start="one"), "start='one'"),
        (lambda: train(addition(7), activation="gelu"), "activation='gelu'; there are square"),
        (lambda: train(addition(7), width=0), "width=0"),
        (lambda: train(addition(7), rate=0.0), "rate=0.0"),
        (lambda: train(addition(7), decay=-1.0), "decay=-1.0"),
        (lambda: train(addition(7), steps=0), "steps=0"),
        (lambda: ascent(addition(7), starts=0), "fewer|starts|count from 1"),
        (lambda: Run(addition(7), decay=0.0).ridge(), "ridge solution needs eta > 0"),
    ],
)
def test_what_cannot_work_is_refused(call, words):
    with pytest.raises(BadInput, match=words):
        call()


def test_the_names_are_there():
    for name in dynamics.__all__:
        assert hasattr(dynamics, name)
