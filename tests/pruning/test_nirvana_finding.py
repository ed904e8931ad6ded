"""The paper's finding on trained models: the score knows what can go."""

from __future__ import annotations

import numpy as np

import lwlab as lw
from lwlab.pruning import allocate, prune, pruned_losses, scores


def test_nirvana_beats_random_and_magnitude_on_the_default_model(smollm2: lw.Model) -> None:
    texts = lw.tasks.corpus("pydoc", n=4, tokens=32, model=smollm2, seed=3)
    s = scores(smollm2, texts[:2])
    keeps = {
        "nirvana": allocate(s, 0.1),
        "random": allocate(scores(smollm2, criterion="random"), 0.1),
        "magnitude": allocate(scores(smollm2, criterion="magnitude"), 0.1),
    }
    nll = pruned_losses(smollm2, keeps, texts[2:]).nll.mean("prompt")
    best = float(nll.sel(cut="nirvana"))
    assert float(nll.sel(cut="whole")) < best < float(nll.sel(cut="random"))
    assert best + 2 < float(nll.sel(cut="magnitude"))
    widths = keeps["nirvana"].mlp.sum("neuron").values
    assert widths[:8].mean() > widths[-8:].mean() + 200  # late layers go first
    assert not np.any(widths % 8)


def test_a_trained_model_keeps_its_letters() -> None:
    model = lw.load("toys/char-llama")
    texts = lw.tasks.corpus("pydoc", n=12, tokens=96, model=model, seed=0)
    keeps = {f"random {i}": allocate(scores(model, criterion="random", seed=i), 0.2)
             for i in range(3)}  # fmt: skip
    keeps["nirvana"] = allocate(scores(model, texts[:4]), 0.2)
    nll = pruned_losses(model, keeps, texts[4:]).nll.mean("prompt")
    draws = [float(nll.sel(cut=f"random {i}")) for i in range(3)]
    assert float(nll.sel(cut="nirvana")) < min(draws)
    small = prune(model, keeps["nirvana"])
    assert small.checks["logits"] == 0
