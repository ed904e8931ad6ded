"""`lens`: what the stream at every layer and position predicts, by the model's own unembedding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from lwlab.errors import BadInput, MissingSite
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.models.tokens import Tokens, token_strings
from lwlab.results import label, provenance
from lwlab.tracing import engine, labels
from lwlab.tracing._nnsight import lock
from lwlab.tracing.blocks import one_by_one

if TYPE_CHECKING:
    from lwlab_kernels.lens import LensStats

Targets = str | int | Sequence[str | int] | torch.Tensor


def lens(
    model: Model,
    prompts: Prompts,
    targets: Targets | None = None,
    *,
    k: int = 5,
    ref: int | None = -1,
    layers: Iterable[int] | int | None = None,
    positions: int | Iterable[int] | None = None,
) -> xr.Dataset:
    """The logit lens: p_lt = softmax(U N(h_lt)), reduced without holding its logits.

    h_lt is the stream entering block l at position t; layer n_layers is what the final norm reads,
    so p is the model's own prediction there. N is the final norm and U the unembedding, with the
    model's bias, scale and soft-capping.

    Returns (prompt, layer, position[, top]), NaN beyond a prompt's end:

    * `token_id`, `token`, `log_prob` (top): the `k` likeliest tokens, likeliest first, and their
      log-probabilities in nats (-1 and "" beyond a prompt's end);
    * `entropy`: -sum p ln p, nats;
    * `kl`: KL(p_lt || p_ref,t), nats, unless `ref` is None;
    * `rank`, `target_log_prob`, with `targets`: the target's place among all tokens, 0 for the
      likeliest, and its log-probability.

    targets: "next" (the token that follows in the prompt; its last position has none); a one-token
    word or an id, for all prompts or a list of one a prompt; or ids [prompts, positions of the
    longest prompt]. ref, layers: numbers in 0..n_layers, negative ones from the end. positions:
    each prompt's own, as in `lw.cache`.

    What is kept is the streams of one prompt and one block of logits, whatever the vocabulary
    (`lwlab_kernels.lens_stats`). Weights and streams of half precision are multiplied as stored
    and summed in float32, which is finer than such a model's own logits. nostalgebraist 2020.

    Raises MissingSite for a model without an unembedding; BadInput for prompts, layers, positions,
    k or targets out of range: before the run.
    """
    lock(model)  # refuses a model whose weights are elsewhere
    norm, head = readers(model)
    if not 1 <= k <= (model.d_vocab or k):
        raise BadInput(f"k={k} must be in 1..{model.d_vocab}")
    chosen = _layers(model, layers)
    to = None if ref is None else _layers(model, ref)[0]
    read = list(dict.fromkeys([*chosen, *([] if to is None else [to])]))
    if model.kind == "encoder-decoder":
        raise BadInput(f"{model.name}: wrap its decoder by itself to look through the lens")
    tokens = model.tokens(prompts)
    at = labels.positions_of(tokens, positions)
    wanted = at if at is not None else list(range(int(tokens.lengths.max())))
    goals = None if targets is None else _targets(model, tokens, targets)
    n = model.n_layers
    reads = [Address("resid_pre", i) if i < n else Address("resid_post", n - 1) for i in read]
    shape = (len(tokens), len(chosen), len(wanted))
    out = _empty(shape, k, kl=to is not None, rank=goals is not None)
    backend = ""
    for i, one in enumerate(one_by_one(tokens)):
        length = int(one.lengths[0])
        own = [(j, p % length) for j, p in enumerate(wanted) if -length <= p < length]
        trace = engine.run(model, one, reads, logits=None)
        columns = [p for _, p in own]
        h = torch.stack([trace.values[r][0, columns].to(model.device) for r in reads])
        goal = None if goals is None else goals[i, columns]
        found = look(model, h, norm, head, goal, k, None if to is None else read.index(to))
        backend = found.backend
        _put(out, i, [j for j, _ in own], found, len(chosen))
        if goal is not None:
            none = [j for (j, _), g in zip(own, goal.tolist()) if g < 0]
            for name in ("rank", "target_log_prob"):
                out[name][i][:, none] = np.nan
    return _labelled(model, tokens, out, chosen, at).assign_attrs(
        provenance(model, technique="logit lens", k=k, ref=to, n=len(tokens), backend=backend)
    )


def look(
    model: Model,
    h: torch.Tensor,
    norm: nn.Module | None,
    head: nn.Module,
    targets: torch.Tensor | None,
    k: int,
    ref: int | None,
) -> LensStats:
    """Lens statistics of streams h [layers, positions, d_model] (`lwlab_kernels.lens_stats`).

    norm, head: as `readers` gives them. targets: [positions] ids, of which those under 0 are none.
    """
    from lwlab.kernels import lens_stats

    a = model.anatomy
    # A subclass may keep its weights in a form of its own (4-bit), or not here (offloaded).
    plain = type(head) is nn.Linear and not head.weight.is_meta
    W = head.weight if isinstance(head, nn.Linear) and plain else head
    bias = head.bias if isinstance(head, nn.Linear) and plain else None
    h = h.to(W.device) if isinstance(W, torch.Tensor) else h
    with lock(model):
        found: LensStats = lens_stats(
            h, norm, W, None if targets is None else targets.clamp(min=0).to(h.device),
            ref=ref, k=k, bias=bias, scale=a.logit_scale, softcap=a.softcap,
        )  # fmt: skip
    return found


def readers(model: Model) -> tuple[nn.Module | None, nn.Module]:
    """The final norm (None without) and the unembedding; raise MissingSite for a model without."""
    a = model.anatomy
    if a.unembed is None:
        raise MissingSite(f"{model.name} has no unembedding, so a stream has no logits here")
    norm = model.module.get_submodule(a.final_norm) if a.final_norm else None
    return norm, model.module.get_submodule(a.unembed)


def _layers(model: Model, layers: Iterable[int] | int | None) -> list[int]:
    """Checked layers among 0..n_layers, the last being what the final norm reads."""
    n = model.n_layers
    if layers is None:
        return list(range(n + 1))
    wanted = [layers] if isinstance(layers, int) else [int(x) for x in layers]
    bad = [x for x in wanted if not -n - 1 <= x <= n]
    if bad or not wanted:
        raise BadInput(f"layers={wanted}: the lens of {model.name} has layers 0..{n}")
    return list(dict.fromkeys(x % (n + 1) for x in wanted))


def _targets(model: Model, tokens: Tokens, targets: Targets) -> torch.Tensor:
    """Target ids [prompts, longest], -1 where there is none."""
    longest = int(tokens.lengths.max())
    out = torch.full((len(tokens), longest), -1)
    if isinstance(targets, torch.Tensor):
        given = targets.cpu()
        if given.shape != out.shape or given.is_floating_point() or given.dtype == torch.bool:
            raise BadInput(
                f"targets is {given.dtype} of shape {tuple(given.shape)}; ids at every position "
                f"must be whole numbers {tuple(out.shape)} (prompts, longest prompt)"
            )
        out = given.long()
    elif isinstance(targets, str) and targets == "next":
        for i, one in enumerate(one_by_one(tokens)):
            row = one.ids[0].cpu()
            out[i, : len(row) - 1] = row[1:]
        return out
    else:
        alone = isinstance(targets, str | int)
        words: Sequence[Any] = [targets] * len(tokens) if alone else list(targets)  # type: ignore[arg-type]
        if len(words) != len(tokens):
            raise BadInput(f"{len(words)} targets for {len(tokens)} prompts; give one, or one each")
        ids = [model.token_id(w) if isinstance(w, str) else int(w) for w in words]
        out[:] = torch.tensor(ids)[:, None]
    inside = torch.arange(longest) < tokens.lengths.cpu()[:, None]
    wrong = inside & ((out < 0) | (out >= (model.d_vocab or torch.inf)))
    if bool(wrong.any()):
        bad = int(out[wrong][0])
        raise BadInput(f"target {bad} is outside the vocabulary, 0..{(model.d_vocab or 0) - 1}")
    return out


def _empty(
    shape: tuple[int, int, int], k: int, *, kl: bool, rank: bool
) -> dict[str, np.ndarray[Any, Any]]:
    names = ["entropy", *(["kl"] if kl else []), *(["rank", "target_log_prob"] if rank else [])]
    out = {name: np.full(shape, np.nan, np.float32) for name in names}
    return {
        "token_id": np.full((*shape, k), -1),
        "log_prob": np.full((*shape, k), np.nan, np.float32),
        **out,
    }


def _put(
    out: dict[str, np.ndarray[Any, Any]], i: int, columns: list[int], found: LensStats, n: int
) -> None:
    """Write the first `n` layers of what was found at `columns` of prompt `i`."""
    fields = {**found._asdict(), "token_id": found.ids}
    for name, array in out.items():
        value = fields[name][:n].cpu().numpy()
        array[i][:, columns] = value


def _labelled(
    model: Model,
    tokens: Tokens,
    out: dict[str, np.ndarray[Any, Any]],
    layers: list[int],
    at: list[int] | None,
) -> xr.Dataset:
    known, where = np.unique(out["token_id"], return_inverse=True)
    real = token_strings(model.tokenizer, [int(i) for i in known if i >= 0])
    names = ["", *real] if -1 in known else real
    out = {"token": np.array(names)[where].reshape(out["token_id"].shape), **out}
    dims = ("prompt", "layer", "position")
    coords = {"layer": layers, **labels.position_coords(tokens, at)}
    about = {
        "token": ("likeliest tokens", ""), "token_id": ("ids of the likeliest tokens", ""),
        "log_prob": ("their log-probabilities", "nats"), "entropy": ("entropy", "nats"),
        "kl": ("KL(lens || reference)", "nats"), "rank": ("rank of the target", "tokens"),
        "target_log_prob": ("log-probability of the target", "nats"),
    }  # fmt: skip
    variables = {}
    for name, array in out.items():
        over = (*dims, "top") if array.ndim == 4 else dims
        here = {**coords, "top": list(range(array.shape[-1]))} if array.ndim == 4 else coords
        name_, units = about[name]
        attrs = {"long_name": name_, **({"units": units} if units else {})}
        variables[name] = label(array, over, here).drop_attrs().assign_attrs(attrs)
    return xr.Dataset(variables).assign_coords(text=("prompt", list(tokens.texts)))
