"""What a cut costs, loss and divergence from the whole model, measured on really smaller models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from torch.nn import functional as F

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.pruning.allocation import allocate
from lwlab.pruning.cut import prune
from lwlab.pruning.nirvana import scores
from lwlab.results import label, provenance
from lwlab.tasks.fit import Fit
from lwlab.tasks.forward import batches


def pruned_losses(
    model: Model,
    keeps: Mapping[str, xr.Dataset],
    texts: str | Sequence[str],
    max_tokens: int | None = None,
) -> xr.Dataset:
    """Loss and divergence of the models left by each `keep`, and of the whole model ("whole").

    Each is cut (`prune`), measured and let go, one at a time. Variables over (cut, prompt): `nll`,
    nats a token as in `lw.tasks.perplexity`; `kl`, mean over positions of KL(whole || pruned) of
    the next-token distribution, nats; over (prompt): `tokens`; over (cut): `parameters`, distinct
    weights. Raises BadInput for no keeps, a text under two tokens, a model without logits; and as
    `prune`.
    """
    if not keeps:
        raise BadInput("keeps is empty: give at least one, as {'nirvana': allocate(...)}")
    if model.kind != "decoder" or model.anatomy.unembed is None:
        raise BadInput(f"{model.name} does not predict the next token, so it has no loss here")
    texts = [texts] if isinstance(texts, str) else list(texts)
    fit = Fit(model)
    most = max_tokens or min(256, model.max_tokens or 256)
    rows = [fit.ids(text)[:most] for text in texts]
    if not rows or min(map(len, rows)) < 2:
        raise BadInput("texts must hold at least one text, of two tokens or more each")
    base: list[torch.Tensor] = []
    nll, kl, size = [], [], []
    for keep in (None, *keeps.values()):
        small = model if keep is None else prune(model, keep, check=False)
        held = {p.data_ptr(): p.numel() for p in small.module.parameters()}
        size.append(sum(held.values()))
        losses, turns = [], []
        for first, z in batches(small, rows, 2):
            for i, one in enumerate(z, start=first):
                target = one.new_tensor(rows[i][1:]).long()
                log_p = one[: len(target)].float().log_softmax(-1)
                losses.append(F.nll_loss(log_p, target).item())
                if keep is None:
                    base.append(log_p.cpu())
                p = base[i].to(log_p.device)
                turns.append(float((p.exp() * (p - log_p)).sum(-1).mean()))
        del small
        nll.append(losses)
        kl.append(turns)
    coords = {"cut": ["whole", *keeps], "prompt": range(len(rows))}
    out = xr.Dataset(
        {name: label(np.array(v), ("cut", "prompt"), coords).drop_attrs()
         for name, v in (("nll", nll), ("kl", kl))},
    )  # fmt: skip
    out["nll"].attrs.update(long_name="loss", unit="nats per token")
    out["kl"].attrs.update(long_name="KL from the whole model", unit="nats per token")
    out["tokens"] = ("prompt", [len(r) - 1 for r in rows])
    out["parameters"] = ("cut", size)
    return out.assign_attrs(provenance(model, technique="NIRVANA", n=len(rows), max_tokens=most))


def calibrations(
    model: Model,
    candidates: Sequence[Sequence[str]],
    texts: str | Sequence[str],
    sparsity: float,
    gamma: float = 3.0,
    *,
    max_tokens: int | None = None,
) -> xr.Dataset:
    """Try calibration sets: score and prune with each, and measure KL on other `texts`.

    The set with the lowest KL is the one to take: attribute `best`. Returns `pruned_losses` over
    (cut, prompt) with cuts named "0", "1", ... in the order of `candidates`.
    Raises BadInput for fewer than two candidates, and as `scores`, `allocate`, `pruned_losses`.
    """
    if len(candidates) < 2:
        raise BadInput(f"{len(candidates)} candidate(s): a choice takes two calibration sets")
    keeps = {
        str(i): allocate(scores(model, list(texts_)), sparsity, gamma)
        for i, texts_ in enumerate(candidates)
    }
    out = pruned_losses(model, keeps, texts, max_tokens)
    mean = out["kl"].isel(cut=slice(1, None)).weighted(out["tokens"]).mean("prompt")
    return out.assign_attrs(best=int(mean.values.argmin()))
