"""What the void rule is held against: readouts that know less, and phases exchanged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from lwlab.depth.lac_void import last, nll, predicted, readout, streams_of, told
from lwlab.depth.voids import check_rule, decide
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import label
from lwlab.tracing.blocks import one_by_one


def control_losses(
    model: Model,
    texts: str | Sequence[str],
    alpha: float | None = 0.8,
    *,
    draws: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Loss of readouts that know less than the rule does, at the rule's own usage.

    `nll` (control, prompt): "rule"; "shuffled", each token with the cells of another of the text
    (mean of `draws`), so that rates and exits stay what they are; "fixed exit", one block for all
    tokens, the rule's mean exit rounded; "magnitude", |delta| in place of delta (its own usage);
    "last block", the whole model; and `usage` (control, prompt). Raises as `void_losses`.
    """
    check_rule(alpha)
    if draws < 1:
        raise BadInput(f"draws={draws}: one at least")
    tokens = predicted(model, texts)
    rng = torch.Generator().manual_seed(seed)
    names = ["rule", "shuffled", "fixed exit", "magnitude", "last block"]
    loss, used = np.zeros((2, len(names), len(tokens)))
    for i, one in enumerate(one_by_one(tokens)):
        streams = streams_of(model, one)
        norms = streams.float().norm(dim=-1)
        active, _ = decide(norms, alpha)
        fixed = torch.zeros_like(active)
        fixed[: round(float(last(active).float().mean())) + 1] = True
        cells = {
            "rule": active,
            "fixed exit": fixed, "magnitude": decide(norms, alpha, "magnitude")[0],
            "last block": torch.ones_like(active),
        }  # fmt: skip
        others = [
            active[:, torch.randperm(active.shape[1], generator=rng).to(active.device)]
            for _ in range(draws)
        ]
        for j, name in enumerate(names):
            some = others if name == "shuffled" else [cells[name]]
            losses = [nll(readout(model, streams, c), one.ids) for c in some]
            loss[j, i], used[j, i] = np.mean(losses), float(some[0].float().mean())
    coords = {"control": names}
    out = xr.Dataset({
        "nll": label(loss, ("control", "prompt"), coords).drop_attrs(),
        "usage": label(used, ("control", "prompt"), coords).drop_attrs(),
    })  # fmt: skip
    return out.assign_attrs(told(model, alpha, "norm", n=len(tokens), seed=seed))


def phase_test(talk: xr.Dataset, *, draws: int = 4096, seed: int = 0) -> tuple[float, float]:
    """Whether reading and writing use different layers: (distance, p), from `void_generate`.

    With a_il the share of prompt i's tokens (position 0 left out) for which layer l is active while
    reading, b_il while writing, the distance is mean_l |mean_i (a_il - b_il)|. Under the null the
    phases of a prompt can be exchanged: p is the share of sign flips of the prompts' differences,
    all of them up to 12 prompts, else `draws` random ones, whose distance is as large. Raises
    BadInput for fewer than two prompts.
    """
    read = talk["prompt_active"].isel(position=slice(1, None)).mean("position")
    wrote = talk["answer_active"].mean("step")
    apart = (read - wrote).transpose("prompt", "layer").values
    n = len(apart)
    if n < 2:
        raise BadInput("one prompt cannot tell phases from chance; give several")
    if n <= 12:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1, 1], (draws, n))
        signs[0] = 1
    distances = np.abs(signs @ apart / n).mean(1)
    return float(distances[0]), float((distances >= distances[0] * (1 - 1e-9)).mean())
