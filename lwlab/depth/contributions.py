"""How much each layer and sublayer adds to the residual stream, and in which direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from lwlab.depth.skips import PAPER, require_writes
from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.models.tokens import Tokens
from lwlab.results import label, provenance
from lwlab.tracing import engine, labels
from lwlab.tracing.blocks import one_by_one

_FLOOR = 1e-6
_PARTS = ("attention", "mlp", "layer", "stream")
_SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")


def layer_contributions(model: Model, prompts: Prompts, *, front: int = 1) -> xr.Dataset:
    """Norms, relative contributions and cosines of what each layer writes.

    With h_l the stream entering layer l, a_l and m_l what attention and MLP add,
    y_l = h_l + a_l + m_l, and x_l what the MLP reads before its norm (h_l + a_l; h_l in layers
    where both run in parallel):

    * `norm` by part: ||h_l|| (stream), ||a_l|| (attention), ||m_l|| (mlp), ||a_l + m_l|| (layer);
    * `relative` by part: ||a_l|| / ||h_l||, ||m_l|| / ||x_l||, ||a_l + m_l|| / ||h_l||, and the
      growth ||y_l|| / ||h_l|| (stream);
    * `cosine` by part: cos(a_l, h_l), cos(m_l, x_l), cos(a_l + m_l, h_l), and cos(y_l, h_l)
      (stream). 0 writes new directions, below 0 erases, above 0 amplifies what is there;
    * `identity_error` (prompt): max |h_l + a_l + m_l - y_l| over everything, an exact zero up to
      rounding.

    The values are by token, (part, prompt, layer, position), NaN beyond a prompt's end; positions
    before `front` are left out, because a model without a start token keeps a sink at position 0
    whose norm dominates every mean. arXiv:2505.13898.

    Raises MissingSite or BadInput for a model whose sublayers do not add to one stream, or when
    no position is left.
    """
    require_writes(model, "contributions")
    tokens = model.tokens(prompts)
    if front < 0 or int(tokens.lengths.min()) <= front:
        i = int(tokens.lengths.argmin())
        raise BadInput(
            f"front={front} leaves no position of {tokens.texts[i]!r:.80}, which has "
            f"{int(tokens.lengths[i])} tokens"
        )
    gathered = [_of_one(model, one, front) for one in one_by_one(tokens)]
    longest = max(g["norm"].shape[-1] for g in gathered)
    out = {}
    names = {"norm": "norm", "relative": "relative contribution", "cosine": "cosine similarity"}
    at = list(range(front, front + longest))
    strings = labels.position_coords(tokens, at)["token_str"]
    for name, title in names.items():
        data = np.full((len(_PARTS), len(tokens), model.n_layers, longest), np.nan, np.float32)
        for i, g in enumerate(gathered):
            data[:, i, :, : g[name].shape[-1]] = g[name]
        coords: dict[str, Any] = {"part": list(_PARTS), "layer": list(range(model.n_layers))}
        coords |= {"position": at, "token_str": strings}
        out[name] = label(data, ("part", "prompt", "layer", "position"), coords).drop_attrs()
        out[name].attrs["long_name"] = title
    result = xr.Dataset(out)
    result["identity_error"] = ("prompt", [g["error"] for g in gathered])
    return result.assign_coords(text=("prompt", list(tokens.texts))).assign_attrs(
        provenance(
            model, technique="contributions", paper=PAPER, front=front, n=len(tokens),
            tokens=int((tokens.lengths - front).sum()),
        )
    )  # fmt: skip


def _of_one(model: Model, prompt: Tokens, front: int) -> dict[str, Any]:
    """The three quantities of one prompt as arrays [part, layer, position], and the error."""
    layers = range(model.n_layers)
    reads = [Address(site, i) for site in _SITES for i in layers]
    trace = engine.run(model, prompt, reads, logits=None)
    h, a, m, y = (
        torch.stack([trace.values[Address(site, i)][0].float().cpu() for i in layers])
        for site in _SITES
    )
    error = float((h + a + m - y).abs().max())
    h, a, m, y = (x[:, front:] for x in (h, a, m, y))
    x = h if model.anatomy.parallel else h + a
    pairs = [(a, h), (m, x), (a + m, h), (y, h)]  # in the order of _PARTS
    norm = [v.norm(dim=-1) for v in (a, m, a + m, h)]
    relative = [w.norm(dim=-1) / v.norm(dim=-1).clamp(min=_FLOOR) for w, v in pairs]
    cosine = [torch.cosine_similarity(w, v, dim=-1) for w, v in pairs]
    stacked = {"norm": norm, "relative": relative, "cosine": cosine}
    return {k: torch.stack(v).numpy() for k, v in stacked.items()} | {"error": error}
