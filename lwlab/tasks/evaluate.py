"""How well a model does a task, before anything is done to the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import xarray as xr

from lwlab.results import provenance
from lwlab.stats import bootstrap
from lwlab.tasks.base import Task
from lwlab.tasks.fit import Fit
from lwlab.tasks.forward import batches
from lwlab.tasks.metrics import top1

if TYPE_CHECKING:
    from lwlab.models import Model


def evaluate(model: Model, task: Task, batch: int = 16) -> xr.Dataset:
    """Score a model on a task by plain forward passes.

    Returns variables over `prompt`: `clean` and `corrupt` (the task's metric), `correct` (metric of
    the clean prompt > 0: the answer beats the foil) and `top1` (the answer is the likeliest token
    of all), with the prompts and answers as coordinates. Attributes hold the mean of each and, as
    `interval_<name>`, its 95 % bootstrap interval over groups. Raises BadInput for a model that is
    no decoder.
    """
    fit, scores = Fit(model), {}
    for which in ("clean", "corrupt"):
        rows = [fit.ids(text) for text in getattr(task, which)]
        last = [
            logits[range(len(logits)), [len(r) - 1 for r in rows[at : at + len(logits)]]]
            for at, logits in batches(model, rows, batch)
        ]
        logits = torch.cat(last).float().cpu()
        scores[which] = task.metric(logits)
        if which == "clean":
            scores["top1"] = top1(task.answer_sets)(logits)
    scores["correct"] = (scores["clean"] > 0).float()
    out = xr.Dataset(
        {name: ("prompt", values.numpy()) for name, values in scores.items()},
        coords={
            "prompt": range(len(task)),
            "text": ("prompt", list(task.clean)),
            "answer": ("prompt", list(task.answers)),
        },
        attrs=provenance(model, task, technique="evaluate", metric=task.measure),
    )
    for name, values in scores.items():
        mean, low, high = bootstrap(values.numpy(), groups=task.groups.numpy())
        out.attrs[f"mean_{name}"], out.attrs[f"interval_{name}"] = mean, [low, high]
    return out
