"""Do Language Models Use Their Depth Efficiently? Csordas, Manning & Potts, arXiv:2505.13898.

The front of the analyses, each in a module of its own: what layers add (`layer_contributions`),
what depends on them (`skip_effects`), how far their stream is from the answer (`lens_distance`),
until which depth tokens are needed (`token_erasure`), which writes make the answer
(`integrated_gradients`), and whether harder questions go deeper (`question_effects`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import xarray as xr

from lwlab.depth.contributions import layer_contributions
from lwlab.depth.difficulty import deepening, question_effects, scores_by_level
from lwlab.depth.erasure import token_erasure
from lwlab.depth.gradients import integrated_gradients
from lwlab.depth.lens import lens_distance
from lwlab.depth.scores import Halves, depth_score, future_share, halves, row_means
from lwlab.depth.skips import PAPER, skip_effects
from lwlab.depth.texts import Question, from_hub, multi_hop, sums, word_problems
from lwlab.models.model import Model, Prompts
from lwlab.results import provenance

__all__ = [
    "PAPER", "Halves", "Question", "deepening", "depth_score", "from_hub", "future_share", "halves",
    "integrated_gradients", "layer_contributions", "lens_distance", "multi_hop", "overview",
    "question_effects", "row_means", "scores_by_level", "skip_effects", "sums", "token_erasure",
    "word_problems",
]  # fmt: skip


def overview(
    model: Model,
    prompts: Prompts,
    *,
    t: int | Sequence[int] | None = None,
    layers: Iterable[int] | int | None = None,
    front: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """The paper's central quantities of a model on a few prompts, in one labelled result.

    * `relative`, `cosine` (part, prompt, layer): contributions, means over positions >= `front`;
    * `current`, `future`, `local` (statistic, prompt, skipped, layer): effects of skips, `future`
      at `t`, `local` with nothing propagated;
    * `current_output`, `future_output` (statistic, prompt, skipped): changes of the output.

    The arguments, the equations and what is raised are those of `layer_contributions` and
    `skip_effects`. `layers` limits the layers skipped; without it the cost is about L/2 forward
    passes of a prompt for each of the three modes.
    """
    if layers is not None and not isinstance(layers, int):
        layers = list(layers)
    added = layer_contributions(model, prompts, front=front)
    effects = {
        mode: skip_effects(
            model, prompts, mode, t=t if mode == "future" else None, layers=layers, front=front,
            seed=seed,
        )
        for mode in ("current", "future", "local")
    }  # fmt: skip
    out = added[["relative", "cosine"]].mean("position", keep_attrs=True)
    for mode, found in effects.items():
        out[mode] = found["effect"]
        if "output_effect" in found:
            out[f"{mode}_output"] = found["output_effect"]
    return out.assign_attrs(
        provenance(
            model, technique="depth efficiency", paper=PAPER, front=front, n=added.attrs["n"],
            seed=seed, t=effects["future"].attrs["t"],
        )
    )  # fmt: skip
