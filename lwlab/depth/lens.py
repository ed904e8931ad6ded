"""The logit lens by depth: how far each layer's stream is from the final prediction."""

from __future__ import annotations

import torch
import xarray as xr

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.tracing import engine, labels
from lwlab.tracing.blocks import one_by_one
from lwlab.tracing.lens import look, readers


def lens_distance(
    model: Model, prompts: Prompts, *, k: int = 5, front: int = 1, every: int = 1
) -> xr.Dataset:
    """Distance of the logit lens at each depth from the model's own prediction.

    lens_l = softmax(U N(h_l)), with N the final norm and U the unembedding (soft-capping included).

    * `kl`: KL(lens_l || final) in nats;
    * `overlap`: |top-k of lens_l intersected with top-k of final| / k.

    Both (prompt, layer, position), NaN beyond a prompt's end. Layer l is the stream *entering*
    block l, as in the paper's code; layer n_layers is what the final norm reads, where kl is 0 and
    overlap 1. Positions: `front`, `front + every`, ... The cost is one unembedding a layer and
    position; its logits are not kept (`lw.lens` tells more of them). nostalgebraist 2020;
    arXiv:2505.13898.

    Raises MissingSite for a model without an unembedding, BadInput for k or front out of range.
    """
    if not 1 <= k <= (model.d_vocab or 1):
        raise BadInput(f"k={k} must be in 1..{model.d_vocab}")
    if every < 1 or front < 0:
        raise BadInput(f"front={front}, every={every}: give front >= 0 and every >= 1")
    tokens = model.tokens(prompts)
    if int(tokens.lengths.min()) <= front:
        i = int(tokens.lengths.argmin())
        raise BadInput(f"front={front} leaves no position of {tokens.texts[i]!r:.80}")
    norm, head = readers(model)
    at = list(range(front, int(tokens.lengths.max()), every))
    n = model.n_layers
    kl = torch.full((len(tokens), n + 1, len(at)), torch.nan)
    overlap = kl.clone()
    reads = [*(Address("resid_pre", i) for i in range(n)), Address("resid_post", n - 1)]
    for i, one in enumerate(one_by_one(tokens)):
        trace = engine.run(model, one, reads, logits=None)
        own = [p for p in at if p < int(tokens.lengths[i])]
        h = torch.stack([trace.values[r][0, own].to(model.device) for r in reads])
        found = look(model, h, norm, head, None, k, n)
        assert found.kl is not None
        kl[i, :, : len(own)] = found.kl.cpu()
        same = found.ids[..., :, None] == found.ids[n, :, None, :]
        overlap[i, :, : len(own)] = same.any(-1).sum(-1).cpu() / k
    dims = ("prompt", "layer", "position")
    coords = {"layer": list(range(n + 1)), **labels.position_coords(tokens, at)}
    out = xr.Dataset({
        "kl": label(kl, dims, coords, long_name="KL(lens || final)", units="nats"),
        "overlap": label(overlap, dims, coords, long_name=f"top-{k} overlap"),
    })  # fmt: skip
    for v in out.data_vars.values():
        v.attrs.pop("lwlab_version")
    return out.assign_attrs(
        provenance(model, technique="logit lens", k=k, front=front, every=every, n=len(tokens))
    )
