"""toys/arithmetic adds, and its tokens hear of each other in two blocks only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lwlab as lw
from lwlab.attribution import af1
from lwlab.models import toys
from lwlab.models.toys.arithmetic import LAYERS, OPEN, Arithmetic
from lwlab.tasks import Task, arithmetic_grid

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> lw.Model:
    return lw.load("toys/arithmetic")


@pytest.fixture(scope="module")
def task(model: lw.Model) -> Task:
    return arithmetic_grid(model, [range(10)] * 3, prefix="", template="{a} + {b} + {c} =")


def test_it_adds_three_digits_and_says_so(model: lw.Model, task: Task) -> None:
    z = lw.patch(model, list(task.clean), {"resid_pre.0": lambda h: h}, compare=False).logits
    right = z.values.argmax(-1) == task.answer_ids.numpy()
    assert right.mean() >= 0.97
    kept = toys.history("arithmetic")["kept"][-1]
    assert kept["held_out_accuracy"] >= 0.9
    assert right.mean() == pytest.approx(
        0.9 * kept["accuracy"] + 0.1 * kept["held_out_accuracy"], abs=1e-6
    )


def test_attention_writes_in_the_open_blocks_only(model: lw.Model) -> None:
    writes = lw.cache(model, "3 + 4 + 5 =", "attn_out").attn_out.values[0]
    size = np.abs(writes).max((1, 2))
    assert (np.flatnonzero(size > 0) == OPEN).all()
    assert len(size) == LAYERS


def test_no_token_knows_of_another_before_the_open_blocks(model: lw.Model) -> None:
    prompts = ["3 + 4 + 5 =", "9 + 4 + 0 ="]
    h = lw.cache(model, prompts, "resid_pre").resid_pre.values  # [prompts, layer, position, d]
    same = [0, 2, 3, 4, 6]  # start, signs and the shared operand
    apart = np.abs(h[0] - h[1])[:, same].max((1, 2))
    assert (apart[: OPEN[0] + 1] == 0).all()
    assert (apart[OPEN[0] + 1 :] > 1e-3).all()


def test_the_known_subgraph_is_found(model: lw.Model, task: Task) -> None:
    found = af1.find(af1.windows(model, task), 0.9)
    assert found is not None
    assert (found.wait, found.until) == (OPEN[0], OPEN[-1] + 1)
    one = af1.find(af1.windows(model, task, transfers=[1]), 0.9)
    assert one is None  # either block alone does not do


def test_waiting_is_free_to_the_open_blocks_and_no_further(model: lw.Model, task: Task) -> None:
    curve = af1.waiting(model, task).correct.mean("prompt").sel(technique="cama").values
    assert (curve[: OPEN[0] + 1] == 1).all()
    assert (curve[OPEN[0] + 1 :] < 0.5).all()


def test_silent_weights_stay_zero_and_the_rest_moves() -> None:
    recipe = Arithmetic(seed=3)
    out = recipe.module.get_submodule("transformer.h.0.attn.c_proj")
    before = recipe.module.get_submodule("transformer.h.2.attn.c_proj").weight.detach().clone()
    recipe.step(0)
    assert not any(bool(p.any()) for p in out.parameters())
    after = recipe.module.get_submodule("transformer.h.2.attn.c_proj").weight
    assert not torch.equal(before, after)
    assert recipe.ids.shape == (1000, 7)
    assert set(recipe.held_out.tolist()).isdisjoint(recipe.train_on.tolist())
