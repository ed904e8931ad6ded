"""The result of a sweep with its names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from lwlab.results import provenance
from lwlab.tracing.sweep.request import Request

if TYPE_CHECKING:
    from lwlab.tracing.sweep.job import Job


def labelled(job: Job, complete: bool) -> xr.Dataset:
    """One variable for each site: metric of the edited run less that of the unedited one."""
    r = job.request
    base = job.base_metric
    variables: dict[str, Any] = {}
    coords = _coords(r)
    for spec in r.specs:
        values = job.store.values[spec.site] - base[:, None, None, None]
        dims: tuple[str, ...] = ("prompt", "layer", "position")
        if spec.unit is None:
            values = values[..., 0]
        else:
            dims = (*dims, spec.unit)
            coords[spec.unit] = (spec.unit, list(spec.units))
        about = {"long_name": f"effect on the metric of {spec.site}", "units": _metric(r)}
        variables[spec.site] = (dims, values, about)
    variables["base_metric"] = ("prompt", base, {"units": _metric(r)})
    attrs: dict[str, Any] = {
        "technique": "sweep", "edit": r.edit_name, "into": r.into, "metric": _metric(r),
        "engine": job.engine, "engine_reason": job.reason, "cells": job.cells,
        "skipped": job.skipped, "rows": job.rows, "flops": job.flops, "complete": complete,
        "memory": r.memory, "edit_seed": r.seed, "edit_scale": r.scale, "paper": "2404.15255",
    }  # fmt: skip
    if r.prompts.donors is not None:
        attrs["donor_metric"] = job.donor_metric.tolist()
    return xr.Dataset(variables, coords, provenance(r.model, r.task, **attrs))


def _metric(r: Request) -> str:
    return str(getattr(r.task, "measure", getattr(r.task.metric, "name", "metric")))


def _coords(r: Request) -> dict[str, Any]:
    p = r.prompts
    strings = np.full(p.wanted.shape, "", dtype=object)
    for i, j in zip(*np.nonzero(p.wanted >= 0)):
        strings[i, j] = p.tokens.strings[i][p.wanted[i, j]]
    groups = getattr(r.task, "groups", np.arange(len(p.tokens)))
    groups = groups.cpu().numpy() if isinstance(groups, torch.Tensor) else np.asarray(groups)
    names = [str(n) for n in p.names] if any(isinstance(n, str) for n in p.names) else list(p.names)
    return {
        "layer": list(r.layers),
        "position": names,
        "token_str": (("prompt", "position"), strings.astype(str)),
        "text": ("prompt", list(p.tokens.texts)),
        "group": ("prompt", groups),
    }
