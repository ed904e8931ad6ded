"""Does harder mean deeper? Depth scores of questions grouped by their difficulty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import xarray as xr

from lwlab.depth.erasure import answer_positions
from lwlab.depth.scores import depth_score, layer_weights
from lwlab.depth.skips import skip_effects
from lwlab.depth.texts import Question
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import label
from lwlab.stats import Estimate


def question_effects(
    model: Model,
    questions: Sequence[Question],
    *,
    layers: Iterable[int] | int | None = None,
    points: int = 1,
    front: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """Future effects of every layer at the answers: `skip_effects` with t inside each answer.

    With `points=1`, t is the first answer token (the paper's choice for facts); else up to `points`
    values of t are drawn from every fourth answer token (its choice for worked solutions). Returns
    the effects of all questions with the coordinates `level` and `kind` (prompt). Raises as
    `skip_effects` does, and BadInput where there are no questions.
    """
    if not questions or points < 1:
        raise BadInput(f"{len(questions)} questions and points={points}: both must be at least 1")
    rng = np.random.default_rng(seed)
    chosen = list(layers) if isinstance(layers, Iterable) else layers
    ts = []
    for q in questions:
        first = int(answer_positions(model, q.prompt, q.answer)[0]) + 1
        last = int(model.tokens(q.text).lengths[0])
        grid = np.arange(first, last - 4, 4) if points > 1 else np.array([first])
        ts.append(sorted(int(x) for x in rng.permutation(grid)[:points]) or [first])
    order: list[int] = []
    found = []
    for t in sorted({tuple(x) for x in ts}):
        mine = [i for i, x in enumerate(ts) if tuple(x) == t]
        order += mine
        texts = [questions[i].text for i in mine]
        found.append(
            skip_effects(model, texts, "future", t=t, layers=chosen, front=front, seed=seed)
        )
    out = xr.concat(found, "prompt", combine_attrs="drop_conflicts")
    out = out.isel(prompt=np.argsort(order))
    out = out.assign_coords(
        level=("prompt", [q.level for q in questions]), kind=("prompt", [q.kind for q in questions])
    )
    return out.assign_attrs(n=len(questions), t=ts)


def scores_by_level(
    effects: xr.Dataset,
    *,
    statistic: Literal["mean", "max"] = "max",
    over: Literal["mean", "max"] = "mean",
    seed: int = 0,
) -> xr.Dataset:
    """Depth score of each level: `score`, `low`, `high` (form, level) and `n` (level)."""
    levels = sorted(set(effects.level.values.tolist()))
    each = [
        depth_score(
            effects.isel(prompt=np.flatnonzero(effects.level.values == level)),
            statistic=statistic, over=over, seed=seed,
        )
        for level in levels
    ]  # fmt: skip
    out = xr.concat(each, "level", combine_attrs="drop_conflicts").assign_coords(level=levels)
    counts = [int((effects.level.values == level).sum()) for level in levels]
    out["n"] = label(counts, ("level",), {"level": levels}).drop_attrs()
    return out.transpose("form", "level").assign_attrs(n=sum(counts))


def deepening(
    effects: xr.Dataset,
    form: Literal["layers", "logits"] = "layers",
    *,
    statistic: Literal["mean", "max"] = "max",
    n: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Layers by which the depth score rises for each level of difficulty, with its interval.

    The least-squares slope over levels of the score of the mean map of a level; the bootstrap draws
    questions within each level. Raises BadInput for a single level.
    """
    w = layer_weights(effects, statistic).sel(form=form)
    level, s, rows = (x.astype(float) for x in (w.level.values, w.skipped.values, w.values))
    levels = np.unique(level)
    if len(levels) < 2:
        raise BadInput("one level of difficulty has no slope; give questions of at least two")
    rng = np.random.default_rng(seed)
    centre, drawn = [], []
    for x in levels:
        mine = rows[level == x]
        total = mine[rng.integers(0, len(mine), (n, len(mine)))].mean(1)
        centre.append(mine.mean(0) @ s / mine.mean(0).sum())
        drawn.append(total @ s / total.sum(1))
    slopes = np.polyfit(levels, np.column_stack([centre, np.stack(drawn)]), 1)[0]
    low, high = np.quantile(slopes[1:], [0.025, 0.975])
    return Estimate(float(slopes[0]), float(low), float(high))
