"""What carried observables say of real prompts: exact shares, exact direct effects, norm slopes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from lwlab.attribution.obsprop_observable import Observable, final_functional
from lwlab.attribution.obsprop_weights import final_norm, heads_back, post_norm, require
from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.tasks.base import Task
from lwlab.tracing import engine, labels, lock
from lwlab.tracing.blocks import one_by_one

PAPER = "2312.16291"


def contributions(model: Model, observable: Observable, prompts: Prompts) -> xr.Dataset:
    """Split the observable at each prompt's last token among everything that was written there.

    With patterns A and norm scales s as they were in the run (nothing is approximated),

        observable = embed + sum over layers (sum over heads + bias + writes) + constant
        head       = sum over source tokens j of A_j (y_h . attn_in_j + value bias)

    Variables, in logits: `sources` (prompt, layer, head, position), NaN beyond a prompt's end;
    `heads` (prompt, layer, head), from the heads' outputs; `bias` (prompt, layer), of attention;
    `writes` (prompt, layer, part), what other sublayers add; `embed` (prompt); `constant` ();
    `observable` (prompt), from the model's own stream. Raises as `obsprop.vector` does.
    """
    require(model)
    tokens = model.tokens(prompts)
    layers = range(model.n_layers)
    others = [w for w in model.anatomy.writes if w != "attn_out"]
    g, loose = final_functional(model, observable)
    norm = final_norm(model)
    y, constant = norm.back(g.cpu()), float(g.cpu() @ norm.offset) + loose
    posts = {i: post_norm(model, i) for i in layers}
    back = {
        i: heads_back(model, i, y if (post := posts[i]) is None else post.back(y)) for i in layers
    }
    biases = {i: _biases(model, i) for i in layers}
    sites = ["attn_in", "attn_pattern", "head_out", "attn_out", *others]
    reads = [Address(s, i) for s in sites for i in layers]
    first, last = Address("resid_pre", 0), Address("resid_post", model.n_layers - 1)
    n, longest = len(tokens), int(tokens.lengths.max())
    shape = (n, model.n_layers, model.n_heads or 0)
    out = {
        "sources": np.full((*shape, longest), np.nan, np.float32),
        "heads": np.zeros(shape, np.float32),
        "bias": np.zeros(shape[:2], np.float32),
        "writes": np.zeros((*shape[:2], len(others)), np.float32),
        "embed": np.zeros(n, np.float32),
        "observable": np.zeros(n, np.float32),
    }
    for p, one in enumerate(one_by_one(tokens)):
        v = engine.run(model, one, [*reads, first, last], logits=None).values
        x = v[last][0, -1].float().cpu()
        normed = _normed(model, v[last][:, -1])[0].float().cpu()
        s = float(norm.slope(x, normed))
        out["observable"][p] = float(g.cpu() @ normed) + loose
        out["embed"][p] = s * float(v[first][0, -1].float().cpu() @ y)
        for i in layers:
            u, y_h = back[i]
            b_v, b_o = biases[i]
            z = v[Address("head_out", i)][0, -1].float().cpu()
            scale, extra = s, 0.0
            if (post := posts[i]) is not None:
                raw = _project(model, i, v[Address("head_out", i)][:, -1])[0].float().cpu()
                scale = s * float(post.slope(raw, v[Address("attn_out", i)][0, -1].float().cpu()))
                extra = s * float(y @ post.offset)
            y_o = y if post is None else post.back(y)
            pattern = v[Address("attn_pattern", i)][0, :, -1].float().cpu()
            read = v[Address("attn_in", i)][0].float().cpu() @ y_h.T + (u * b_v).sum(-1)
            out["sources"][p, i, :, : len(read)] = scale * pattern * read.T
            out["heads"][p, i] = scale * (u * z).sum(-1)
            out["bias"][p, i] = scale * float(y_o @ b_o) + extra
            for k, w in enumerate(others):
                out["writes"][p, i, k] = s * float(v[Address(w, i)][0, -1].float().cpu() @ y)
    return _dataset(model, observable, tokens, out, others, constant)


def direct_effects(model: Model, observable: Observable, task: Task) -> xr.DataArray:
    """Patch the direct path of each head from the corrupt run, exactly: (prompt, layer, head).

    effect = observable(x) - observable(x with what head h of layer l adds at the last token taken
    from the corrupt run); everything between them, later components, stays as it was, and the
    final norm is computed anew. In logits. Coordinate `toward` is +1 where the clean prompt has
    more of the observable than its twin, else -1: `effect * toward` does not cancel over twins.
    Raises as `obsprop.vector` does, and BadInput where clean and corrupt score the same.
    """
    require(model)
    g, loose = final_functional(model, observable)
    layers, heads = range(model.n_layers), model.n_heads or 0
    reads = [Address(s, i) for s in ("head_out", "attn_out") for i in layers]
    end = Address("resid_post", model.n_layers - 1)
    last: list[dict[Address, torch.Tensor]] = []
    sides: tuple[Literal["clean", "corrupt"], ...] = ("clean", "corrupt")
    for which in sides:
        tokens = task.tokens(model, which)
        trace = engine.run(model, tokens, [*reads, end], logits=None)
        columns, rows = tokens.columns(-1), torch.arange(len(tokens))
        last.append({a: x[rows, columns] for a, x in trace.values.items()})
    a, b = last
    values = [_normed(model, v[end]).float() @ g.to(model.device) + loose for v in last]
    if bool((values[0] == values[1]).all()):
        raise BadInput(
            "clean and corrupt prompts score the same: the observable sees no difference"
        )
    out = torch.zeros(len(task), model.n_layers, heads)
    for i in layers:
        z, o = Address("head_out", i), Address("attn_out", i)
        mixed = a[z][:, None].repeat(1, heads, 1, 1)  # prompt, head that is patched, head, d_head
        every = torch.arange(heads)
        mixed[:, every, every] = b[z]
        x = a[end][:, None] - a[o][:, None] + _attended(model, i, mixed)
        patched = _normed(model, x).float() @ g.to(model.device) + loose
        out[:, i] = (values[0][:, None] - patched).cpu()
    toward = torch.where(values[0] >= values[1], 1, -1).cpu()
    coords = {
        "layer": list(layers), "head": list(range(heads)), "group": ("prompt", task.groups),
        "toward": ("prompt", toward), "text": ("prompt", list(task.clean)),
    }  # fmt: skip
    about = provenance(
        model, task, technique="direct effect", paper=PAPER, observable=observable.name
    )
    named = label(out, ("prompt", "layer", "head"), coords)
    return named.assign_attrs(about, long_name="direct effect", units="logits")


def tangents(model: Model, observable: Observable, prompts: Prompts) -> xr.DataArray:
    """d observable / d x at the last stream and each prompt's last token, (prompt, d_model).

    What the final norm makes of the direction on real inputs. For RMSNorm (and LayerNorm, with
    everything centred) the cosine with y = gain * W_U^T n is sqrt(1 - cos^2(x, y)), so a direction
    survives as far as it is not the input's own. Coordinate `along` (prompt) is cos(x, y).
    Raises as `obsprop.vector` does.
    """
    require(model)
    tokens = model.tokens(prompts)
    end = Address("resid_post", model.n_layers - 1)
    g, _ = final_functional(model, observable)
    norm = final_norm(model)
    y = norm.back(g.cpu())
    found = engine.run(model, tokens, [end], logits=None).values[end]
    x = found[torch.arange(len(tokens)), tokens.columns(-1)].detach()
    with torch.enable_grad():
        x.requires_grad_(True)
        values = _normed(model, x, grad=True).float() @ g.to(model.device)
        (slopes,) = torch.autograd.grad(values.sum(), x)
    along = torch.cosine_similarity(norm.centre(x.detach().float().cpu()), y, dim=-1)
    coords = {"along": ("prompt", along), "text": ("prompt", list(tokens.texts))}
    about = provenance(
        model, technique="tangent of the final norm", paper=PAPER, observable=observable.name
    )
    return label(slopes.float(), ("prompt", "d_model"), coords).assign_attrs(about, units="logits")


def _normed(model: Model, x: torch.Tensor, grad: bool = False) -> torch.Tensor:
    path = model.anatomy.final_norm
    if path is None:
        return x
    with lock(model), torch.set_grad_enabled(grad):
        return engine.tensor_of(model.module.get_submodule(path)(x))


def _project(model: Model, layer: int, z: torch.Tensor) -> torch.Tensor:
    """What heads z [..., heads, d_head] add, before any norm that follows."""
    o = (model.anatomy.o_proj or "").replace("{}", str(layer))
    with lock(model), torch.no_grad():
        return engine.tensor_of(model.module.get_submodule(o)(z.flatten(-2)))


def _attended(model: Model, layer: int, z: torch.Tensor) -> torch.Tensor:
    """attn_out of heads z."""
    out, path = _project(model, layer, z), model.anatomy.attn_post
    if path is None:
        return out
    with lock(model), torch.no_grad():
        norm = model.module.get_submodule(path.replace("{}", str(layer)))
        return engine.tensor_of(norm(out))


def _biases(model: Model, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """b_V by query head [heads, d_head] and b_O [d_model]."""
    a = model.anatomy
    tap = a.taps["v"]
    assert a.n_heads is not None
    assert a.n_kv_heads is not None
    assert a.d_head is not None
    assert a.d_model is not None
    nothing = torch.zeros(1, a.d_model, device=model.device, dtype=model.dtype)
    none = torch.zeros(1, a.n_heads, a.d_head, device=model.device, dtype=model.dtype)
    with lock(model), torch.no_grad():
        v = tap.view.read(model.module.get_submodule(tap.at(layer))(nothing))[0].float().cpu()
    return v.repeat_interleave(a.n_heads // a.n_kv_heads, 0), _project(model, layer, none)[
        0
    ].float().cpu()


def _dataset(
    model: Model,
    observable: Observable,
    tokens: Any,
    out: dict[str, Any],
    others: list[str],
    constant: float,
) -> xr.Dataset:
    dims = {
        "sources": ("prompt", "layer", "head", "position"), "heads": ("prompt", "layer", "head"),
        "bias": ("prompt", "layer"), "writes": ("prompt", "layer", "part"),
        "embed": ("prompt",), "observable": ("prompt",),
    }  # fmt: skip
    known: dict[str, Any] = {"layer": list(range(model.n_layers)), "part": others}
    known |= {"head": list(range(model.n_heads or 0))}
    variables = {}
    for name, array in out.items():
        coords: dict[str, Any] = {d: known[d] for d in dims[name] if d in known}
        if "position" in dims[name]:
            coords |= labels.position_coords(tokens, None)
        variables[name] = label(array, dims[name], coords).drop_attrs()
        variables[name].attrs["units"] = "logits"
    found = xr.Dataset(variables).assign_coords(text=("prompt", list(tokens.texts)))
    found["constant"] = xr.DataArray(constant, attrs={"units": "logits"})
    return found.assign_attrs(
        provenance(
            model, technique="ObsProp", paper=PAPER, observable=observable.name, n=len(tokens)
        )
    )
