"""PrefixKV on the real model: what the paper found, at 256 tokens, in two short passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lwlab as lw
from lwlab.attention import prefixkv as p
from lwlab.attention import prefixkv_cache as c
from lwlab.attention import prefixkv_measure as e


def test_one_level_saves_the_worst_layer_and_the_cache_is_cut() -> None:
    net = lw.load("smollm2-135m")
    texts = lw.tasks.corpus("pydoc", seed=1)
    [stack] = e.haystacks(net, texts, 1, tokens=256, following=9, needles=2)
    reading = c.read(net, stack.context)
    ours = p.allocate(reading.scores.mass, 0.2)
    same = p.allocate(reading.scores.mass, 0.2, "uniform")
    assert ours.retained.min() - same.retained.min() > 0.1
    assert ours.kept.max() > 4 * ours.kept.min()

    kept = p.keep(reading.scores, 0.2)
    assert c.nbytes(c.cut(reading, kept)) == 2 * 3 * 64 * 4 * int(ours.kept.sum())
    text = np.concatenate([stack.context, stack.following], 1)
    tokens = stack.context.new_tensor(text)
    with c.hidden(net, kept):
        masked = net.module(tokens, use_cache=False, logits_to_keep=9).logits
    cut = c.go_on(net, stack.following, c.cut(reading, kept))
    assert float((cut - masked).detach().abs().max()) < 1e-3

    sinks_and_window = p.keep(reading.scores, 0.2, "recency")
    assert sum(e.recall(reading, sinks_and_window, stack)) == 0  # the needles lie before the window
    assert sum(e.recall(reading, None, stack)) > 0


@pytest.mark.slow
def test_on_a_trained_toy_the_full_cache_gives_the_plain_loss_and_a_cut_one_another() -> None:
    net = lw.load("toys/char-llama")
    texts = lw.tasks.corpus("pydoc", seed=0)
    stacks = e.haystacks(net, texts, 2, tokens=96, following=32, needles=0)
    readings = [c.read(net, s.context) for s in stacks]
    found = e.study(readings, stacks, {"prefixkv": [0.2], "random": [0.2]})
    for stack, nll in zip(stacks, found.nll.sel(technique="prefixkv", budget=1).values):
        text = torch.cat([stack.context, stack.following], 1)
        with torch.no_grad():
            logits = net.module(text).logits[0, 96:-1]
        assert nll == pytest.approx(float(F.cross_entropy(logits, text[0, 97:])), abs=1e-4)
    assert float(abs(found.nll.sel(budget=0.2) - found.nll.sel(budget=1)).min()) > 1e-4
    assert (found.worst.sel(technique="prefixkv") >= found.worst.sel(technique="random")).all()
