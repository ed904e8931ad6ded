"""What steering does to a model, and what it costs: log odds of words, and the loss on prose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn import functional as F

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.tasks.fit import Fit
from lwlab.tracing import engine
from lwlab.tracing.edits import Edit, parse_edits

Edits = Mapping[str | Address, Any]
Steered = Callable[[float], Edits]


@dataclass(frozen=True)
class Lists:
    """Prompts, and the words that may follow: those steering should bring, and the others.

    Only words that are one token after a space count. Raises BadInput where a list has none.
    """

    prompts: tuple[str, ...]
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]

    def ids(self, model: Model) -> tuple[list[int], list[int]]:
        """Token ids of both lists; BadInput for a tokenizer that knows none of a list."""
        fit = Fit(model)
        found = []
        for words, what in ((self.wanted, "wanted words"), (self.unwanted, "unwanted words")):
            kept = fit.keep(words, what, 1)
            found.append(sorted({i for w in kept if (i := fit.single(" " + w)) is not None}))
        if both := set(found[0]) & set(found[1]):
            raise BadInput(f"token ids {sorted(both)} are in both lists")
        return found[0], found[1]


def log_odds(model: Model, lists: Lists, edits: Edits | None = None) -> xr.DataArray:
    """log p(wanted) - log p(unwanted) of the next token, in nats, (prompt).

    p of a list is the sum over its words. `edits` as `lw.patch` takes them. Raises BadInput for
    words the tokenizer splits, and as `patch` does.
    """
    wanted, unwanted = lists.ids(model)
    data = engine.batch(model, list(lists.prompts))
    z = _run(model, data, edits, "last").log_softmax(-1)
    odds = z[:, wanted].logsumexp(-1) - z[:, unwanted].logsumexp(-1)
    out = label(odds, ("prompt",), {"text": (("prompt",), list(lists.prompts))}, name="log_odds")
    return out.assign_attrs(provenance(model, unit="nats", long_name="log odds of wanted words"))


def losses(model: Model, texts: Sequence[str], edits: Edits | None = None) -> xr.DataArray:
    """Mean negative log likelihood of each text's tokens from the second on, in nats, (prompt).

    Raises BadInput for no text or one of a single token, and as `patch` does.
    """
    tokens = model.tokens(list(texts))
    if int(tokens.lengths.min()) < 2:
        raise BadInput(
            f"{tokens.texts[int(tokens.lengths.argmin())]!r} is one token: nothing to predict"
        )
    data = engine.batch(model, tokens)
    z = _run(model, data, edits, "all")[:, :-1]
    mask = (tokens.mask[:, 1:] * tokens.mask[:, :-1]).bool()
    nll = F.cross_entropy(z.transpose(1, 2), tokens.ids[:, 1:], reduction="none")
    out = label((nll * mask).sum(1) / mask.sum(1), ("prompt",), name="loss")
    return out.assign_attrs(provenance(model, unit="nats per token", long_name="loss on prose"))


def _run(model: Model, data: engine.Batch, edits: Edits | None, logits: str) -> torch.Tensor:
    work: list[Edit] = parse_edits(model.anatomy, edits, None, data.tokens) if edits else []
    with torch.no_grad():
        z = engine.run(model, data, (), work, logits=logits).logits
    if z is None:
        raise BadInput(f"{model.name} has no logits: it says nothing that could be steered")
    return z.float()


def doses(
    model: Model,
    techniques: Mapping[str, Steered],
    strengths: Mapping[str, Sequence[float]],
    lists: Lists,
    prose: Sequence[str],
) -> xr.Dataset:
    """Effect and price of each technique at each of its strengths.

    techniques: name -> function of a strength that gives edits. strengths: name -> the strengths to
    try. Returns `gain` (dose, prompt), the change of `log_odds`, and `rise` (dose, text), the
    change of `losses` on `prose`, with coordinates `technique` and `strength` along `dose`.
    Raises BadInput for a technique without strengths, and as `log_odds` and `losses` do.
    """
    if not techniques or (lacking := [k for k in techniques if not len(strengths.get(k, ()))]):
        raise BadInput(f"no strengths for {lacking[0]!r}" if techniques else "no technique given")
    odds, nll = log_odds(model, lists), losses(model, prose)
    names, doses_, gains, rises = [], [], [], []
    for name, steered in techniques.items():
        for s in strengths[name]:
            now = steered(float(s))
            names.append(name)
            doses_.append(float(s))
            gains.append(log_odds(model, lists, now).values - odds.values)
            rises.append(losses(model, prose, now).values - nll.values)
    out = xr.Dataset(
        {
            "gain": (("dose", "prompt"), np.stack(gains)),
            "rise": (("dose", "text"), np.stack(rises)),
        },
        coords={"technique": ("dose", names), "strength": ("dose", doses_)},
    )
    return out.assign_attrs(
        provenance(model, base_log_odds=float(odds.mean()), base_loss=float(nll.mean()))
    )


def price(found: xr.Dataset, technique: str, gain: float) -> xr.DataArray:
    """Rise of the loss (text) at which a technique reaches a mean `gain`, between its doses.

    Linear between neighbouring doses, with (0, 0) as the first; NaN where no dose gets so far.
    Raises BadInput for a technique that was not measured or a gain that is not above zero.
    """
    own = found.isel(dose=np.flatnonzero(found["technique"].values == technique))
    if not own.sizes["dose"] or not gain > 0:
        known = sorted(set(found["technique"].values.tolist()))
        raise BadInput(f"technique={technique!r}, gain={gain}: take one of {known} and a gain > 0")
    own = own.isel(dose=np.argsort(np.abs(own["strength"].values), kind="stable"))
    x = np.concatenate([[0.0], own["gain"].mean("prompt").values])
    y = np.concatenate([np.zeros((1, own.sizes["text"])), own["rise"].values])
    out = np.full(y.shape[1], np.nan)
    for i in range(1, len(x)):
        if x[i] >= gain:
            part = (gain - x[i - 1]) / (x[i] - x[i - 1])
            out = y[i - 1] + part * (y[i] - y[i - 1])
            break
    return label(out, ("text",), name="rise", technique=technique, gain=gain, unit="nats per token")
