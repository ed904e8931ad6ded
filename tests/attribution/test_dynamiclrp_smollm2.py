"""DynamicLRP on the real model: conservation through thirty layers, and what it finds there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lwlab as lw
from lwlab.attribution import dynamiclrp as dl

pytestmark = pytest.mark.slow


def test_relevance_is_conserved_through_thirty_layers_and_every_promise_is_kept(
    smollm2: Any,
) -> None:
    task = lw.tasks.ioi(smollm2, n=2, seed=3)
    kept = dl.conservation(smollm2, task)
    np.testing.assert_allclose(kept.relevance, 1, atol=1e-3)
    assert kept.attrs["constants"] == 0
    assert float(kept.error.max()) < 1e-4
    assert kept.attrs["promises"] > 200
    assert dl.coverage(smollm2, task).attrs["share"] == 1


def test_attnlrps_softmax_points_at_the_answer_and_identity_at_the_parked_attention(
    smollm2: Any,
) -> None:
    task = lw.tasks.ioi(smollm2, n=4, seed=3)
    named = task.positions["IO"].numpy()
    taylor = dl.scores(smollm2, task, rules="attnlrp").argmax("position").values
    identity = dl.scores(smollm2, task).argmax("position").values
    assert (taylor == named).mean() >= 0.75
    assert (identity == 0).mean() >= 0.75
