"""Observable propagation: read from the weights what makes a model say one word and not another.

Dunefsky & Cohan 2023, "Observable Propagation: A Data-Efficient Approach to Uncover Feature Vectors
in Transformers" (arXiv:2312.16291). An observable n . logits is carried backwards through one
component at a time; y at a component's input says that y . x is what x adds to the observable.

* unembedding and final norm:  y = gain_f * W_U^T n              (`vector`)
* head h of layer l:           y_h = gain_l * W_V^hT W_O^hT y    (`head_vectors`)
* MLP at a point x0:           y' = d/dx [ y . MLP(N(x)) ] at x0 (`mlp_vector`)
* a path:                      these in turn, latest first       (`path_vector`)

Norms keep directions to first order: their scale 1/s(x) is left out, so that vectors act on inputs
of root mean square 1, and a norm that centres (LayerNorm) centres y too. How attention patterns
come about is outside the theory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from lwlab.attribution.obsprop_effects import contributions, direct_effects, tangents
from lwlab.attribution.obsprop_mlp import crossing, mlp_vector
from lwlab.attribution.obsprop_observable import Observable, final_functional
from lwlab.attribution.obsprop_probes import TECHNIQUES, low_data_curve
from lwlab.attribution.obsprop_weights import (
    final_norm,
    heads_back,
    input_norms,
    post_norm,
    require,
)
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.models.tokens import token_strings
from lwlab.results import label, provenance
from lwlab.stats import auc

PAPER = "2312.16291"
__all__ = [
    "PAPER", "TECHNIQUES", "Observable", "auc", "contributions", "cosine", "coupling", "crossing",
    "direct_effects", "head_map", "head_vectors", "low_data_curve", "mlp_vector", "nearest_tokens",
    "path_vector", "tangents", "vector",
]  # fmt: skip


def vector(model: Model, observable: Observable) -> xr.DataArray:
    """y = gain_f * W_U^T n at the last stream, (d_model): observable = y . c(x) / s(x) + constant.

    Units: logits for a stream of root mean square 1. Raises MissingSite for a model without
    unembedding or heads, BadInput for one whose stream is not a sum (post-norm) or not a decoder's.
    """
    require(model)
    y, _ = final_functional(model, observable)
    return _labelled(model, final_norm(model).back(y.cpu()), ("d_model",), {}, observable.name)


def head_vectors(
    model: Model,
    observable: Observable | xr.DataArray,
    layers: Iterable[int] | int | None = None,
) -> xr.DataArray:
    """Feature vectors of every head on the direct path to the logits, (layer, head, d_model).

    y_h = gain_l * W_V^hT W_O^hT y, with y of `vector` (or any (d_model) vector given instead, at
    the stream that the head writes to). What token j adds through the head at token i is
    A_ij y_h . c(x_j) / s(x_j), times 1/s of the final norm at i: see `contributions`. No data is
    needed. Raises as `vector` does, and BadInput for a layer that does not exist.
    """
    require(model)
    chosen = model.anatomy.layers(layers)
    y, name = _start(model, observable)
    norms = input_norms(model, chosen)
    out = torch.stack([_through_heads(model, i, y, norms[i]) for i in chosen])
    coords = {"layer": chosen, "head": list(range(model.n_heads or 0))}
    return _labelled(model, out, ("layer", "head", "d_model"), coords, name)


def head_map(
    model: Model,
    observable: Observable | xr.DataArray,
    layers: Iterable[int] | int | None = None,
) -> xr.DataArray:
    """|y_h| of every head, (layer, head): what it could do, from weights alone.

    It ignores whether the head ever attends to anything of use. Raises as `head_vectors` does.
    """
    found = head_vectors(model, observable, layers)
    size = (found**2).sum("d_model") ** 0.5
    return size.assign_attrs({**found.attrs, "long_name": "norm of the feature vector"})


def path_vector(
    model: Model,
    observable: Observable,
    path: Sequence[str | Address],
    points: Mapping[int, Any] | None = None,
) -> xr.DataArray:
    """The observable carried back along a path of components, (d_model), at the first one's input.

    `path` goes from the latest component to the earliest: ["head_out.26.2", "mlp_out.20"]. An MLP
    needs the stream it is linearised at, `points[layer]` (d_model): see `mlp_vector`, whose slope
    includes that of its norm. An empty path gives `vector`. Raises UnknownName, MissingSite or
    BadInput for a component that does not exist or comes out of order, or an MLP without a point.
    """
    require(model)
    steps, given = [model.anatomy.address(p) for p in path], dict(points or {})
    _check_path(model, steps, given)
    y, _ = _start(model, observable)
    for at in steps:
        assert at.layer is not None
        if at.site == "head_out":
            norm = input_norms(model, [at.layer])[at.layer]
            y = _through_heads(model, at.layer, y, norm)[at.head]
        else:
            found = mlp_vector(model, _labelled(model, y, ("d_model",)), at.layer, given[at.layer])
            y = torch.as_tensor(found.values).reshape(-1)
    told = " <- ".join(["logits", *map(str, steps)])
    return _labelled(model, y, ("d_model",), {}, observable.name).assign_attrs(path=told)


def coupling(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """C(y1, y2) = (y1 . y2) / |y1|^2 along `d_model`: not symmetric.

    E[y2 . x | y1 . x = k] = k C(y1, y2) for any x whose distribution no rotation that keeps y1
    changes. cos^2 = C(y1, y2) C(y2, y1). Raises BadInput where y1 is zero.
    """
    size = (_vectors(first) ** 2).sum("d_model")
    if not bool((size > 0).all()):
        raise BadInput("the first vector is zero: nothing is coupled to it")
    found = (first * _vectors(second)).sum("d_model") / size
    return found.assign_attrs(provenance(technique="coupling", paper=PAPER), long_name="coupling")


def cosine(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """Cosine of the angle between vectors along `d_model`. Raises BadInput for a zero vector."""
    a, b = ((_vectors(v) ** 2).sum("d_model") ** 0.5 for v in (first, second))
    if not (bool((a > 0).all()) and bool((b > 0).all())):
        raise BadInput("a zero vector has no direction")
    found = (first * second).sum("d_model") / (a * b)
    return found.assign_attrs(provenance(technique="cosine", paper=PAPER), long_name="cosine")


def nearest_tokens(model: Model, direction: xr.DataArray, k: int = 8) -> xr.Dataset:
    """The tokens whose embeddings have the largest and smallest W_E . y: (side, top).

    `token` and `value`, side "top" or "bottom". What a token's embedding says of a vector deep in
    the model is a hint, not a reading: W_E is where the stream begins. Raises BadInput for another
    shape, or k out of range.
    """
    y = torch.as_tensor(np.asarray(_vectors(direction).values, np.float32)).reshape(-1)
    module: Any = model.module
    table = module.get_input_embeddings().weight.detach()
    if y.numel() != table.shape[1] or not 1 <= k <= len(table) // 2:
        raise BadInput(f"give one vector of {table.shape[1]} numbers and k in 1..{len(table) // 2}")
    scores = table.float().cpu() @ y
    ends = [scores.topk(k), (-scores).topk(k)]
    values = np.stack([ends[0].values.numpy(), -ends[1].values.numpy()])
    ids = [e.indices.tolist() for e in ends]
    names = np.array([token_strings(model.tokenizer, i) for i in ids])
    coords = {"side": ["top", "bottom"], "top": list(range(k))}
    value = label(values, ("side", "top"), coords).drop_attrs()
    token = label(names, ("side", "top"), coords).drop_attrs()
    about = provenance(model, technique="ObsProp", paper=PAPER)
    return xr.Dataset({"token": token, "value": value}, attrs=about)


def _through_heads(model: Model, layer: int, y: torch.Tensor, norm: Any) -> torch.Tensor:
    post = post_norm(model, layer)
    return norm.back(heads_back(model, layer, y if post is None else post.back(y))[1])


def _start(model: Model, observable: Observable | xr.DataArray) -> tuple[torch.Tensor, str]:
    if isinstance(observable, Observable):
        y = vector(model, observable)
        return torch.as_tensor(y.values), observable.name
    given = _vectors(observable)
    if given.shape != (model.d_model,):
        raise BadInput(f"one vector of {model.d_model} numbers is needed, got {given.shape}")
    values = torch.as_tensor(np.array(given.values, np.float32))
    return values, str(given.attrs.get("observable", ""))


def _vectors(given: xr.DataArray) -> xr.DataArray:
    if not isinstance(given, xr.DataArray) or "d_model" not in given.dims:
        raise BadInput("a vector is a DataArray with the dimension d_model, as `vector` returns")
    return given


def _check_path(model: Model, steps: list[Address], points: Mapping[int, Any]) -> None:
    before: tuple[int, int] = (model.n_layers, 0)
    for at in steps:
        if at.site == "head_out":
            if at.head is None:
                raise BadInput(f"{at}: which head? Write '{at}.0'")
            place = (at.layer or 0, 0)
        elif at.site == "mlp_out":
            place = (at.layer or 0, 0 if model.anatomy.parallel else 1)
            if at.layer not in points:
                raise BadInput(f"{at} is not linear: give points={{{at.layer}: a stream}}")
        else:
            raise BadInput(f"{at}: a path goes through head_out and mlp_out components")
        if place >= before:
            raise BadInput(f"{at} does not come before what follows it: latest first, please")
        before = place


def _labelled(
    model: Model,
    data: torch.Tensor,
    dims: tuple[str, ...],
    coords: Mapping[str, Any] | None = None,
    observable: str = "",
) -> xr.DataArray:
    about = provenance(model, technique="ObsProp", paper=PAPER, observable=observable)
    return label(data, dims, coords).assign_attrs(about, units="logits")
