"""AdaMerging: coefficients of a merge learned from how sure the merged model is, without labels.

    theta^(j) = theta_0^(j) + sum_k clamp(lambda_k^(j), 0, 1) tau_k^(j)     for every tensor j
    loss = sum_k mean over task k's inputs of H(p),   H(p) = -sum_c p_c log p_c

lambda starts at 0.3 and is all that Adam trains: one number a task ("task") or one a task and
tensor ("layer", as the paper calls it). For a decoder p is the prediction of every next token, so
its inputs hold their own labels: the entropy does not look at them, and `by="loss"`, which does, is
the bound that entropy can be held against.

Yang, Wang, Shen, Liu, Guo, Wang & Tao, "AdaMerging: Adaptive Model Merging for Multi-Task Learning"
(arXiv:2310.02575); constants as in its released code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.func import functional_call

from lwlab.errors import BadInput, Diverged, UnknownName, suggest
from lwlab.merging.measuring import Texts, check_texts, measure, scores
from lwlab.merging.task_vectors import Vectors, combine
from lwlab.results import provenance
from lwlab.stats import spearman
from lwlab.tracing import lock

PAPER = "2310.02575"
Level = Literal["task", "layer"]
By = Literal["entropy", "loss"]


def learn(
    v: Vectors,
    texts: Texts,
    *,
    level: Level = "layer",
    by: By = "entropy",
    steps: int = 500,
    rate: float = 1e-3,
    batch: int = 16,
    start: float = 0.3,
    seed: int = 0,
) -> xr.Dataset:
    """Learn the coefficients of a merge on unlabelled `texts` of each task.

    `texts`: task name to ids [texts, tokens]; every step draws `batch` texts of each task. The
    defaults are the paper's. Give other texts to whoever scores the result.

    Returns `coefficient` (step, task, tensor) in [0, 1], with the start as step 0; `entropy` and
    `loss` (step, task) on the texts drawn at each step, in nats a token, before that step is taken
    (the last entry: on a last draw, after all). `combine(v, found.coefficient[-1])` is the merged
    model. Raises BadInput for texts that do not fit the model or the tasks, numbers out of range;
    UnknownName for a level or what to go by; Diverged where the objective stops being a number.
    """
    _check(v, texts, level, by, steps, rate, batch, start)
    module, tensors = v.base.module, v.tensors
    start_weights = {n: p.detach() for n, p in module.named_parameters()}
    # One stack a tensor, [tasks, ...]: a merge is then one product.
    tau = {n: torch.stack([v.tau[k][n] for k in v.tasks]) for n in tensors}
    columns = len(tensors) if level == "layer" else 1
    shape = (len(v.tasks), columns)
    raw = torch.full(shape, start, device=v.base.device, requires_grad=True)
    adam = torch.optim.Adam([raw], lr=rate)
    generator = torch.Generator().manual_seed(seed)
    path, entropies, losses = [], [], []
    with lock(v.base):
        for step in range(steps + 1):
            # Beyond 0 and 1 the clamp has no slope: what leaves comes back by momentum only.
            held = raw.clamp(0, 1)
            drawn = [texts[k][torch.randint(len(texts[k]), (batch,), generator=generator)]
                     for k in v.tasks]  # fmt: skip
            with torch.set_grad_enabled(step < steps):
                entropy, loss = _forward(module, start_weights, tau, held, drawn)
                goal = (entropy if by == "entropy" else loss).sum()
            if not math.isfinite(float(goal.detach())):
                raise Diverged(f"the objective is {float(goal.detach())} at step {step}")
            path.append(held.detach().expand(-1, len(tensors)).cpu().numpy().copy())
            entropies.append(entropy.detach().cpu().numpy())
            losses.append(loss.detach().cpu().numpy())
            if step < steps:
                (raw.grad,) = torch.autograd.grad(goal, [raw])
                adam.step()
    return xr.Dataset(
        {
            "coefficient": (("step", "task", "tensor"), np.stack(path)),
            "entropy": (("step", "task"), np.stack(entropies)),
            "loss": (("step", "task"), np.stack(losses)),
        },
        {"step": np.arange(steps + 1), "task": v.tasks, "tensor": tensors,
         "layer": ("tensor", [v.layer[n] for n in tensors])},
        attrs=provenance(v.base, technique="AdaMerging", paper=PAPER, level=level, by=by,
                         rate=rate, batch=batch, start=start, seed=seed, unit="nats"),
    )  # fmt: skip


def premise(
    v: Vectors, texts: Texts, *, draws: int = 60, top: float = 1.0, seed: int = 0
) -> xr.Dataset:
    """Test what AdaMerging rests on: are merges that are surer also better?

    Draws one coefficient a task uniformly from [0, `top`], `draws` times, and measures both sides.
    Returns `coefficient` (draw, task), `entropy` and `loss` (draw), means over tasks and texts in
    nats, and `rank_correlation`, Spearman's between them. Raises as `learn` does, and BadInput for
    fewer than three draws or a `top` that is not above 0.
    """
    _check(v, texts, "task", "entropy", 1, 1.0, 1, 0.0)
    if draws < 3 or not (math.isfinite(top) and top > 0):
        raise BadInput(f"draws={draws}, top={top}: three draws or more, and a bound above 0")
    drawn = np.random.default_rng(seed).uniform(0, top, (draws, len(v.tasks)))
    of_tasks = {k: texts[k] for k in v.tasks}
    rows = []
    for c in drawn:
        found = measure(combine(v, dict(zip(v.tasks, c.tolist(), strict=True))), of_tasks)
        rows.append((float(found.entropy.mean()), float(found.loss.mean())))
    entropy, loss = np.array(rows).T
    return xr.Dataset(
        {"coefficient": (("draw", "task"), drawn), "entropy": ("draw", entropy),
         "loss": ("draw", loss), "rank_correlation": spearman(entropy, loss)},
        {"draw": np.arange(draws), "task": v.tasks},
        attrs=provenance(v.base, technique="AdaMerging", paper=PAPER, top=top, seed=seed),
    )  # fmt: skip


def _forward(
    module: torch.nn.Module,
    start: Mapping[str, Tensor],
    tau: Mapping[str, Tensor],
    held: Tensor,
    drawn: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Mean entropy and loss of each task's texts under the merged weights, [tasks] each."""
    wide = held.expand(-1, len(tau))
    weights: dict[str, Any] = {
        n: start[n] + torch.tensordot(wide[:, j].to(t.dtype), t, 1)
        for j, (n, t) in enumerate(tau.items())
    }
    found = []
    for ids in drawn:
        ids = ids.to(held.device)
        logits = functional_call(module, weights, (), {"input_ids": ids}).logits
        loss, entropy = scores(logits, ids)
        found.append(torch.stack([entropy.mean(), loss.mean()]))
    entropy, loss = torch.stack(found, 1)
    return entropy, loss


def _check(
    v: Vectors, texts: Texts, level: str, by: str, steps: int, rate: float, batch: int, start: float
) -> None:
    for value, known, what in ((level, get_args(Level), "level"), (by, get_args(By), "objective")):
        if value not in known:
            raise UnknownName(f"no {what} {value!r}{suggest(value, known)}")
    if steps < 1 or batch < 1:
        raise BadInput(f"steps={steps}, batch={batch}: at least one of each")
    if not (math.isfinite(rate) and rate > 0 and math.isfinite(start) and 0 <= start <= 1):
        raise BadInput(f"rate={rate}, start={start}: a rate above 0, and a start from 0 to 1")
    if missing := [k for k in v.tasks if k not in texts]:
        raise BadInput(f"there are no texts for {', '.join(missing)}")
    check_texts(v.base, {k: texts[k] for k in v.tasks})
