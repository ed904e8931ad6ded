"""What layers are for: what each adds, what depends on it, and how deep answers are made."""

from __future__ import annotations

from lwlab.depth.depth_efficiency import (
    Halves,
    Question,
    deepening,
    depth_score,
    from_hub,
    future_share,
    halves,
    integrated_gradients,
    layer_contributions,
    lens_distance,
    multi_hop,
    overview,
    question_effects,
    row_means,
    scores_by_level,
    skip_effects,
    sums,
    token_erasure,
    word_problems,
)
from lwlab.depth.lac_void import (
    activity,
    readout,
    usage,
    void_generate,
    void_losses,
)
from lwlab.depth.lac_void_controls import control_losses, phase_test
from lwlab.depth.llm_drop import drop_order, importance, iterative_order
from lwlab.depth.llm_drop_measure import drop_curve, footprint, single_losses, speed
from lwlab.depth.removal import remove
from lwlab.depth.similarity import layer_angles, layer_cka
from lwlab.depth.voids import voided

__all__ = [
    "Halves",
    "Question",
    "activity",
    "control_losses",
    "deepening",
    "depth_score",
    "drop_curve",
    "drop_order",
    "footprint",
    "from_hub",
    "future_share",
    "halves",
    "importance",
    "integrated_gradients",
    "iterative_order",
    "layer_angles",
    "layer_cka",
    "layer_contributions",
    "lens_distance",
    "multi_hop",
    "overview",
    "phase_test",
    "question_effects",
    "readout",
    "remove",
    "row_means",
    "scores_by_level",
    "single_losses",
    "skip_effects",
    "speed",
    "sums",
    "token_erasure",
    "usage",
    "void_generate",
    "void_losses",
    "voided",
    "word_problems",
]
