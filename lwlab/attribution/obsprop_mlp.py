"""MLPs on the way back: they are not linear, so a direction passes through one at a point."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from lwlab.attribution.obsprop_weights import require, stream_of
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.tracing import engine
from lwlab.tracing.edits import Edit


def mlp_vector(model: Model, vector: Any, layer: int, at: Any) -> xr.DataArray:
    """d/dx [ y . MLP(N(x)) ] at the streams `at`: the shape of `at`, ..., d_model.

    vector: y, (d_model), at what the MLP writes; at: x0, (..., d_model), in the stream that the
    MLP's norm reads (resid_mid; resid_pre in parallel blocks). The slope of the norm is in it. It
    depends on x0: compare two before trusting one. Raises BadInput for another shape or layer.
    """
    y, x = _checked(model, vector, layer, at)
    layer = model.anatomy.layers(layer)[0]
    flat = x.reshape(-1, x.shape[-1])
    _, slopes = _run(model, y, layer, flat, grad=True)
    assert slopes is not None
    dims = at.dims if isinstance(at, xr.DataArray) else (*_names(x.ndim - 1), "d_model")
    about = provenance(model, technique="ObsProp", paper="2312.16291", site=f"mlp_out.{layer}")
    out = label(slopes.reshape(x.shape), tuple(map(str, dims)))
    return out.assign_attrs(about, units="logits")


def crossing(
    model: Model, vector: Any, layer: int, positive: Any, negative: Any, *, steps: int = 40
) -> xr.DataArray:
    """The stream x0 between two examples at which y . MLP(N(x)) is zero, (d_model).

    x(t) = negative + t (positive - negative), t in [0, 1], by `steps` halvings of the bracket; the
    paper's default point for an MLP. Attributes `t` and `value` (what is left there, logits).
    Raises BadInput where the two examples are on one side of zero.
    """
    y, a = _checked(model, vector, layer, negative)
    _, b = _checked(model, vector, layer, positive)
    layer = model.anatomy.layers(layer)[0]
    if a.ndim != 1 or b.ndim != 1:
        raise BadInput("give one positive and one negative stream, [d_model]")
    ends, _ = _run(model, y, layer, torch.stack([a, b]))
    if float(ends[0]) * float(ends[1]) > 0:
        raise BadInput(
            f"both examples are on one side of zero ({float(ends[0]):.3g} and "
            f"{float(ends[1]):.3g}): there is no crossing between them"
        )
    low, high, rising = 0.0, 1.0, float(ends[1]) >= float(ends[0])
    t, value = 0.5, float("nan")
    for _ in range(steps):
        t = (low + high) / 2
        value = float(_run(model, y, layer, (a + t * (b - a))[None])[0][0])
        low, high = (t, high) if (value < 0) == rising else (low, t)
        if value == 0 or high - low < 1e-7:
            break
    about = provenance(model, technique="ObsProp", paper="2312.16291", t=t, value=value)
    return label(a + t * (b - a), ("d_model",)).assign_attrs(about)


def _names(n: int) -> tuple[str, ...]:
    return ("example",) if n == 1 else tuple(f"axis_{i}" for i in range(n))


def _checked(model: Model, vector: Any, layer: int, at: Any) -> tuple[torch.Tensor, torch.Tensor]:
    require(model)
    model.anatomy.require(["mlp_in", "mlp_out"])
    model.anatomy.layers(layer)
    y, x = (_tensor(v) for v in (vector, at))
    if y.shape != (model.d_model,) or not x.ndim or x.shape[-1] != model.d_model or not x.numel():
        raise BadInput(
            f"a vector [{model.d_model}] and streams [..., {model.d_model}] are needed, got "
            f"{tuple(y.shape)} and {tuple(x.shape)}"
        )
    return y, x


def _tensor(given: Any) -> torch.Tensor:
    if isinstance(given, torch.Tensor):
        return given.detach().cpu().float()
    return torch.as_tensor(np.array(given, np.float32))


def _run(
    model: Model, y: torch.Tensor, layer: int, x: torch.Tensor, grad: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y . MLP(N(x)) of streams [k, d_model], and its gradient."""
    read, write = Address(stream_of(model, "mlp_in"), layer), Address("mlp_out", layer)
    ids = torch.ones(len(x), 1, dtype=torch.long)
    edit = Edit(read, x[:, None].to(model.device))
    trace = engine.run(model, ids, [read, write], [edit], grad=grad, logits=None)
    with torch.set_grad_enabled(grad):
        values = trace.values[write][:, 0].float() @ y.to(model.device)
        if not grad:
            return values.cpu(), None
        (slopes,) = torch.autograd.grad(values.sum(), trace.values[read])
    return values.detach().cpu(), slopes[:, 0].detach().float().cpu()
