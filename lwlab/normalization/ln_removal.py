"""What a model without LayerNorm is good for: logits that are sums of what its parts write.

Baroni, Khara, Schaeffer, Subkhankulov & Heimersheim 2025, "Transformers Don't Need LayerNorm at
Inference Time" (arXiv:2507.02559). Removal itself is in `freezing` and, with training, in the
recipe `toys/char-gpt2-ln-free`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr
from torch.nn import functional as F

from lwlab.errors import BadInput, UnknownName
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.normalization import places
from lwlab.normalization.freezing import PAPER, freeze
from lwlab.results import label, provenance
from lwlab.tasks.base import Task
from lwlab.tracing import engine, lock
from lwlab.tracing.read import addresses


def twin(name: str) -> str:
    """Return the name of the model that was tuned as long as an LN-free one, with its LayerNorms.

    For `toys/char-gpt2-ln-free` and the released models ("schaeff/gpt2-small_LNFree300" has
    "schaeff/gpt2-small_vanilla300"). Raises UnknownName for any other.
    """
    for mark, with_norms in (("-ln-free", "-tuned"), ("_LNFree", "_vanilla")):
        if mark in name:
            return name.replace(mark, with_norms)
    raise UnknownName(
        f"{name!r} has no known twin with LayerNorm: give one; known are toys/char-gpt2-ln-free "
        "and schaeff/gpt2-{small_LNFree300, medium_LNFree500, large_LNFree600, xl_LNFree800}"
    )


def losses(model: Model, prompts: Prompts, batch: int = 16) -> xr.DataArray:
    """Return the loss of the next token, -log p(x_t | x_<t) in nats, over (prompt, position).

    Position t is the predicted token's; the first one is not predicted. Raises BadInput for prompts
    of unequal length or one token, or a model that does not predict the next token.
    """
    ids = _ids(model, prompts)
    parts = []
    for first in range(0, len(ids), batch):
        rows = ids[first : first + batch]
        z = engine.run(model, rows, logits="all").logits
        assert z is not None
        target = rows[:, 1:]
        nll = F.cross_entropy(z[:, :-1].float().flatten(0, 1), target.flatten(), reduction="none")
        parts.append(nll.view_as(target))
    return label(
        torch.cat(parts), ("prompt", "position"), {"position": list(range(1, ids.shape[1]))},
        **provenance(model, technique="ln-removal", paper=PAPER), units="nats",
        long_name="loss of the next token",
    )  # fmt: skip


def costs(
    model: Model, prompts: Prompts, scales: xr.Dataset, *, first: bool = False
) -> xr.DataArray:
    """Loss (mean, nats) with each norm alone frozen, with all of them, and as the model is.

    Returns (frozen): "none", each norm's name, "all". Raises as `freeze` and `losses` do.
    """
    names = [n.name for n in places.norms(model)]
    found = [float(losses(model, prompts).mean())]
    for which in (*([n] for n in names), names):
        frozen = freeze(model, scales, which, first=first, check=False)
        found.append(float(losses(frozen, prompts).mean()))
    return label(
        found, ("frozen",), {"frozen": ["none", *names, "all"]}, units="nats", long_name="loss",
        **provenance(model, technique="ln-removal", paper=PAPER),
    )  # fmt: skip


def direct_effects(
    model: Model, prompts: Prompts, targets: torch.Tensor | None = None
) -> xr.Dataset:
    """Split logits into what each part of the model writes, and test that by leaving parts out.

    The last stream is x = sum_c x_c over components c (the embeddings, and what each layer's
    attention and MLP write). With U_t the unembedding of token t, N(x) = A_x x + b the final norm,

        dla_c      = U_t . A_x x_c                    direct logit attribution
        ablation_c = U_t . (N(x) - N(x - x_c))        what is lost without c in the last stream
        bias       = U_t . b + the unembedding's own

    A_x = diag(g) (I - 1 1^T / d) / s(x) has the run's own scale s(x), so that in every model
    sum_c dla_c + bias = logit. Only where s is a constant is dla_c also what c does: then
    dla = ablation.

    `targets` [prompts, positions - 1] are the tokens t, by default the next one in the prompt.
    Returns `dla` and `ablation` (prompt, position, component), `logit` and `bias` (prompt,
    position), in logits. Raises BadInput for a capped output, an unembedding without a final norm,
    a model whose writes do not add up to its last stream, or prompts of unequal length.
    """
    a = model.anatomy
    found = places.norms(model)
    final = next((n for n in found if n.path == a.final_norm), None)
    if a.softcap is not None or a.unembed is None or final is None or not a.writes:
        raise BadInput(
            f"{model.name}: direct logit attribution needs an unembedding that reads a final norm "
            "of a stream that its blocks add to, and logits that are not capped"
        )
    ids = _ids(model, prompts)
    t = ids[:, 1:] if targets is None else targets.to(ids)
    if t.shape != ids[:, 1:].shape:
        raise BadInput(f"targets has shape {tuple(t.shape)}; give {tuple(ids[:, 1:].shape)}")
    last, layers = Address("resid_post", a.n_layers - 1), list(range(a.n_layers))
    parts = [Address("resid_pre", 0), *addresses(model, a.writes, layers)]
    parts.sort(key=lambda p: (p.layer or 0, p.site != "resid_pre"))
    values = engine.run(model, ids, [*parts, last], logits=None).values
    x = values[last][:, :-1]
    module: Any = model.module.get_submodule(final.path)
    head: Any = model.module.get_submodule(a.unembed)
    with lock(model), torch.no_grad():
        u = places.matrix(head)[t] * a.logit_scale
        own = 0 if head.bias is None else head.bias[t]

        def logit(stream: torch.Tensor) -> torch.Tensor:
            z: torch.Tensor = (u * module(stream)).sum(-1)
            return z + own

        linear = _linear(module, final, x)
        bias = _zero(module, final, x)
        whole, dla, ablation = logit(x), [], []
        for part in parts:
            c = values[part][:, :-1]
            dla.append((u * linear(c)).sum(-1))
            ablation.append(whole - logit(x - c))
    names = ["embed" if p.site == "resid_pre" else f"{p.site[:-4]}.{p.layer}" for p in parts]
    dims, coords = ("prompt", "position", "component"), {"component": names}
    out = {
        "dla": label(torch.stack(dla, -1), dims, coords, long_name="direct logit attribution"),
        "ablation": label(torch.stack(ablation, -1), dims, coords, long_name="left out"),
        "logit": label(whole, dims[:2]),
        "bias": label((u * bias).sum(-1) + own, dims[:2]),
    }
    about = {k: v.drop_attrs(deep=False).assign_attrs(units="logits") for k, v in out.items()}
    for k in ("dla", "ablation"):
        about[k] = about[k].assign_attrs(long_name=out[k].attrs["long_name"])
    return xr.Dataset(about, attrs=provenance(model, technique="ln-removal", paper=PAPER))


def disagreement(effects: xr.Dataset) -> xr.DataArray:
    """Relative distance of direct logit attribution from leaving out, for each component.

    sum |dla - ablation| / sum |ablation| over prompts and positions; (component), and "all" at the
    end over all of them but the embedding.
    """
    over = ["prompt", "position"]
    gap = abs(effects.dla - effects.ablation).sum(over)
    size = abs(effects.ablation).sum(over)
    blocks = effects.component != "embed"
    whole = (gap.where(blocks).sum() / size.where(blocks).sum()).expand_dims(component=["all"])
    out = xr.concat([gap / size, whole], "component", coords="minimal", compat="override")
    return out.assign_attrs({**effects.attrs, "long_name": "|DLA - left out| / |left out|"})


def additivity(effects: xr.Dataset) -> xr.Dataset:
    """By how much the sum over components misses the logit: max |sum_c + bias - logit|, in logits.

    For `dla`, which adds up in every model, and for `ablation`, which does where no norm is left.
    """
    missed = {
        k: abs(effects[k].sum("component") + effects.bias - effects.logit).max()
        for k in ("dla", "ablation")
    }
    return xr.Dataset(missed, attrs=effects.attrs)


def swaps(
    model: Model,
    texts: Sequence[str],
    n: int = 16,
    *,
    length: int = 48,
    back: int = 3,
    seed: int = 0,
) -> Task:
    """A task for models that know no facts: one token is swapped, and the prediction changes.

    Each clean prompt is a stretch of `length` tokens of a text; in its twin the token `back` places
    before the last is another one of that text. The answer is what `model` predicts after the
    clean prompt, the foil what it predicts after the twin, and only pairs where these differ are
    taken. Raises BadInput where fewer than `n` are found in 200 n tries, or for sizes that cannot
    work.
    """
    if not 0 < back < length - 1 or n < 1:
        raise BadInput(
            f"n={n}, length={length}, back={back}: need n >= 1 and 0 < back < length - 1"
        )
    g = torch.Generator().manual_seed(seed)
    rows = [torch.as_tensor(model.tokenizer(t, verbose=False)["input_ids"]) for t in texts]
    rows = [r for r in rows if len(r) >= length]
    if not rows:
        raise BadInput(f"no text has {length} tokens")
    at, kept = length - 1 - back, []
    for _ in range(200):
        for _ in range(n):
            row = rows[int(torch.randint(len(rows), (1,), generator=g))]
            start = int(torch.randint(len(row) - length + 1, (1,), generator=g))
            clean = row[start : start + length]
            twin = clean.clone()
            twin[at] = row[int(torch.randint(len(row), (1,), generator=g))]
            kept += _kept(model, clean, twin)
        if len(kept) >= n:
            return _task(model, kept[:n], at, seed)
    raise BadInput(f"only {len(kept)} of {n} swaps changed what {model.name} predicts")


def _kept(
    model: Model, clean: torch.Tensor, twin: torch.Tensor
) -> list[tuple[str, str, int, int, int]]:
    words = [str(model.tokenizer.decode(ids)) for ids in (clean, twin)]
    again = [model.tokenizer(w)["input_ids"] for w in words]
    if again != [clean.tolist(), twin.tolist()] or words[0] == words[1]:
        return []  # the text would be read as other tokens
    z = engine.run(model, torch.stack([clean, twin])).logits
    assert z is not None
    answer, foil = z.argmax(-1).tolist()
    return [] if answer == foil else [(words[0], words[1], answer, foil, len(clean))]


def _task(model: Model, rows: Sequence[tuple[str, str, int, int, int]], at: int, seed: int) -> Task:
    clean, twin, answers, foils, lengths = zip(*rows)
    n = len(rows)
    spelled = [tuple(str(model.tokenizer.decode([i])) for i in ids) for ids in (answers, foils)]
    places_ = {"swapped": torch.full((n,), at), "END": torch.tensor(lengths) - 1}
    return Task(
        name="swapped token", clean=clean, corrupt=twin, answers=spelled[0], foils=spelled[1],
        answer_sets=torch.tensor(answers)[:, None], foil_sets=torch.tensor(foils)[:, None],
        positions=places_, changed=("swapped",), groups=torch.arange(n),
        templates=("one token swapped",) * n, lengths=torch.tensor(lengths), seed=seed,
    )  # fmt: skip


def _ids(model: Model, prompts: Prompts) -> torch.Tensor:
    if model.kind != "decoder":
        raise BadInput(f"{model.name} does not predict the next token; this needs a decoder")
    tokens = model.tokens(prompts)
    if tokens.require_equal_length("a loss by position") < 2:
        raise BadInput("next tokens are predicted: give prompts of two tokens or more")
    return tokens.ids


def _zero(module: Any, norm: places.Norm, x: torch.Tensor) -> torch.Tensor:
    """What is left of the norm at x = 0: its bias."""
    if norm.kind == "frozen":
        b: torch.Tensor = module(torch.zeros_like(x))
        return b
    bias = getattr(module, "bias", None)
    return torch.zeros_like(x[0, 0]) if bias is None else bias


def _linear(module: Any, norm: places.Norm, x: torch.Tensor) -> Any:
    """c -> A_x c, the norm's linear part with the scale it has at x."""
    if norm.kind == "frozen":
        zero = module(torch.zeros_like(x))
        return lambda c: module(c) - zero
    centred = norm.kind == "LayerNorm"
    g = places.gain(module, norm, x.shape[-1])

    def centre(c: torch.Tensor) -> torch.Tensor:
        return c - c.mean(-1, keepdim=True) if centred else c

    scale = torch.rsqrt(centre(x).square().mean(-1, keepdim=True) + norm.eps)
    return lambda c: centre(c) * scale * g
