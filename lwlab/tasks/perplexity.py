"""Perplexity of texts under a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from torch.nn import functional as F

from lwlab.errors import BadInput
from lwlab.results import provenance
from lwlab.stats import bootstrap
from lwlab.tasks.fit import Fit
from lwlab.tasks.forward import batches

if TYPE_CHECKING:
    from lwlab.models import Model


def perplexity(
    model: Model, texts: str | Sequence[str], max_tokens: int | None = None, batch: int = 4
) -> xr.Dataset:
    """Score texts by how well each next token is predicted.

    nll_i = -1/(T_i - 1) sum_{t=2..T_i} log p(x_t | x_<t), in nats a predicted token; perplexity =
    exp(sum_i (T_i - 1) nll_i / sum_i (T_i - 1)). The first token is not predicted (nothing stands
    before it), and a text is cut after `max_tokens` tokens (256, or what the model reads if that is
    less). Equal to Hugging Face's loss with
    `labels=` for a single text.

    Returns `nll` and `tokens` (predicted tokens) over `prompt`, and the numbers `perplexity`,
    `perplexity_low`, `perplexity_high` (95 % bootstrap interval over texts). Raises BadInput for a
    text under two tokens, a `max_tokens` the model cannot read, or a model that is no decoder.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    longest = model.max_tokens
    max_tokens = min(256, longest or 256) if max_tokens is None else max_tokens
    if max_tokens < 2 or (longest is not None and max_tokens > longest):
        raise BadInput(
            f"max_tokens is {max_tokens}; {model.name} reads from 2 to {longest or 'any number'}."
        )
    fit = Fit(model)
    rows = [fit.ids(text)[:max_tokens] for text in texts]
    for i, row in enumerate(rows):
        if len(row) < 2:
            raise BadInput(f"text {i} is {len(row)} token(s) long ({texts[i][:60]!r}): need two.")
    if not rows:
        raise BadInput("there is no text to score.")
    nll = np.zeros(len(rows))
    for first, logits in batches(model, rows, batch):
        for i, z in enumerate(logits, start=first):  # row by row: a float copy of one text at most
            target = z.new_tensor(rows[i][1:]).long()
            nll[i] = F.cross_entropy(z[: len(target)].float(), target).item()
    counts = np.array([len(row) - 1 for row in rows])
    # Every token weighs the same: a text drawn counts with all its tokens.
    mean, low, high = bootstrap(np.repeat(nll, counts), groups=np.repeat(range(len(nll)), counts))
    return xr.Dataset(
        {
            "nll": ("prompt", nll, {"unit": "nats per token"}),
            "tokens": ("prompt", counts),
            "perplexity": np.exp(mean),
            "perplexity_low": np.exp(low),
            "perplexity_high": np.exp(high),
        },
        coords={"prompt": range(len(rows))},
        attrs=provenance(model, technique="perplexity", n=len(rows), max_tokens=max_tokens),
    )
