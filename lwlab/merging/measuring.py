"""What a decoder makes of several sets of text: its loss, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import label, provenance
from lwlab.tracing import lock

Texts = Mapping[str, Tensor]


def measure(model: Model, texts: Texts, *, batch_size: int = 32) -> xr.Dataset:
    """Measure the loss and the entropy of next-token predictions, in nats a token.

    `texts` maps the name of a set to token ids [texts, tokens], the same number of texts in each.
    Of a text of T tokens, with p_t the prediction of token t+1,

        loss = -1/(T-1) sum_t log p_t(x_{t+1}),   entropy = 1/(T-1) sum_t H(p_t).

    Returns `loss` and `entropy` over (set, text). Raises BadInput for a model that is no decoder,
    no texts, ids that are no [texts, tokens] with two tokens or more, or outside the vocabulary.
    """
    check_texts(model, texts)
    if len({len(ids) for ids in texts.values()}) != 1:
        raise BadInput(f"the sets differ in size: { {k: len(t) for k, t in texts.items()} }")
    found: list[list[Tensor]] = [[], []]
    with lock(model), torch.no_grad():
        for ids in texts.values():
            parts = [
                scores(model.module(input_ids=rows).logits, rows)
                for rows in torch.split(ids.to(model.device), batch_size)
            ]
            for kind, pieces in zip(found, zip(*parts), strict=True):
                kind.append(torch.cat(pieces))
    coords = {"set": list(texts), "text": np.arange(len(next(iter(texts.values()))))}
    loss, entropy = (label(torch.stack(x), ("set", "text"), coords).drop_attrs() for x in found)
    return xr.Dataset({"loss": loss, "entropy": entropy}, attrs=provenance(model, unit="nats"))


def scores(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss and mean entropy of each row's next-token predictions, [rows] each."""
    log = functional.log_softmax(logits[:, :-1].float(), -1)
    loss = -log.gather(-1, ids[:, 1:, None])[..., 0].mean(1)
    return loss, -(log.exp() * log).sum(-1).mean(1)


def check_texts(model: Model, texts: Texts) -> None:
    """Raise BadInput where `model` cannot read `texts`."""
    if model.kind != "decoder":
        raise BadInput(f"{model.name} is of kind {model.kind!r}; next tokens need a decoder")
    if not texts:
        raise BadInput("texts is empty: give {'name': ids [texts, tokens]}")
    for name, ids in texts.items():
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2 or ids.is_floating_point():
            raise BadInput(
                f"texts of {name!r} have shape {tuple(ids.shape)} and type {ids.dtype}; wanted "
                "token ids [texts, tokens], at least one text of two tokens"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= int(model.d_vocab or 0):
            raise BadInput(f"texts of {name!r} hold ids outside the {model.d_vocab} of the model")
        if model.max_tokens is not None and ids.shape[1] > model.max_tokens:
            raise BadInput(f"{model.name} reads {model.max_tokens} tokens, not {ids.shape[1]}")
