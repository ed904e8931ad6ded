"""What is left when sublayers are gone: loss, accuracy, speed, weights, keys and values.

Every model measured here is really smaller (`lwlab.depth.removal`). arXiv:2406.15786.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn import functional as F

from lwlab.depth.llm_drop import PAPER, PARTS, Part, known
from lwlab.depth.removal import plan, remove, require_branches
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import label, provenance
from lwlab.tasks.base import Task
from lwlab.tasks.fit import Fit
from lwlab.tasks.forward import batches
from lwlab.tasks.perplexity import perplexity
from lwlab.tracing._nnsight import lock
from lwlab.tracing.blocks import capture, check_replayable, one_by_one


def single_losses(
    model: Model,
    texts: str | Sequence[str],
    part: Part = "attn",
    *,
    layers: Iterable[int] | None = None,
) -> xr.DataArray:
    """Rise of the loss when one sublayer alone is removed (prompt, layer), nats a token.

    The blocks above each removal are run in one growing batch, so that the whole list costs half
    of as many forward passes. It is what S has to guess. Raises as `importance`, and BadInput for
    a model without an unembedding or a text of one token.
    """
    known([part], PARTS, "part")
    check_replayable(model)
    if part != "block":
        require_branches(model, f"removing {part}")
    if model.kind != "decoder" or model.anatomy.unembed is None:
        raise BadInput(f"{model.name} does not predict the next token, so it has no loss here")
    chosen = model.anatomy.layers(layers)
    tokens = model.tokens(texts)
    if int(tokens.lengths.min()) < 2:
        raise BadInput(f"a text of one token has no loss: {list(tokens.texts)!r:.80}")
    rise = torch.zeros(len(tokens), len(chosen))
    with lock(model), torch.no_grad():
        for i, one in enumerate(one_by_one(tokens)):
            blocks = capture(model, one)
            births = {}
            for n in chosen:
                h = blocks.streams[n]
                zero = {f"{part}_out": torch.zeros_like}
                births[n + 1] = h if part == "block" else blocks.block(n, h, zero)
            final = [rows for _, rows, _ in blocks.run(births)][-1]
            order = sorted(chosen)
            base = _nll(model, blocks.streams[-1], one.ids)
            for row, n in zip(final, order):
                rise[i, chosen.index(n)] = _nll(model, row[None], one.ids) - base
    out = label(rise, ("prompt", "layer"), {"layer": chosen}, name="rise")
    return out.assign_attrs(
        provenance(
            model, technique="single removal", paper=PAPER, part=part, n=len(tokens),
            long_name="rise of the loss without it", unit="nats per token",
        )
    )  # fmt: skip


def drop_curve(
    model: Model,
    orders: Mapping[str, Sequence[int | str]],
    ks: Sequence[int] | Mapping[str, Sequence[int]],
    texts: str | Sequence[str],
    task: Task | None = None,
    *,
    max_tokens: int | None = None,
) -> xr.Dataset:
    """Loss, and accuracy on a task, of the models left when the first k of each order are removed.

    `ks` are numbers of sublayers dropped, one list for all orders or one for each; k = 0, the
    whole model, is always there. Every model is really smaller (`remove`).

    Returns `nll` (order, k, prompt), nats a token (`lw.tasks.perplexity`), `tokens` (prompt), and
    with a task `correct` (order, k, question): 1 where the answer beats the foil; NaN where an
    order has no such k. Raises, before any model is run: BadInput for a k out of range or an order
    that drops what cannot be dropped (see `remove`).
    """
    every = {o: sorted({0, *(ks[o] if isinstance(ks, Mapping) else ks)}) for o in orders}
    if not orders:
        raise BadInput("orders is empty: give at least one, as {'attn': drop_order(...)}")
    for name, order in orders.items():
        for k in every[name]:
            if not 0 <= k <= len(order):
                raise BadInput(f"k={k}: the order {name!r} names {len(order)} parts")
            plan(model, list(order[:k]))
    columns = sorted(set().union(*every.values()))
    found: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
    whole = _measure(model, texts, task, max_tokens)
    counts = whole[2]
    for name, order in orders.items():
        for k in every[name]:
            small = remove(model, list(order[:k]), check=False) if k else None
            measured = _measure(small, texts, task, max_tokens) if small else whole
            found[name, k] = measured[:2]
    coords = {"order": list(orders), "k": columns}
    out = xr.Dataset()
    for j, (variable, dim) in enumerate((("nll", "prompt"), ("correct", "question"))):
        if variable == "correct" and task is None:
            continue
        none = np.full(len(whole[j]), np.nan)
        data = [[found.get((o, k), (none, none))[j] for k in columns] for o in orders]
        out[variable] = label(np.array(data), ("order", "k", dim), coords).drop_attrs()
    out["tokens"] = ("prompt", counts)
    out["nll"].attrs.update(long_name="loss", unit="nats per token")
    out["k"].attrs["long_name"] = "dropped"
    if task is not None:
        out["correct"].attrs["long_name"] = f"accuracy, {task.name}"
        out = out.assign_coords(group=("question", task.groups.numpy()))
    dropped = {o: [str(x) for x in order[: max(every[o])]] for o, order in orders.items()}
    return out.assign_attrs(
        provenance(model, task, technique="LLM-Drop", paper=PAPER, dropped=dropped)
    )


def _measure(
    model: Model, texts: str | Sequence[str], task: Task | None, max_tokens: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    read = perplexity(model, texts, max_tokens)
    right = _correct(model, task) if task is not None else np.empty(0)
    return read["nll"].values, right, read["tokens"].values


def _correct(model: Model, task: Task) -> np.ndarray:
    """1 where the answer beats the foil, by one plain pass over the clean prompts."""
    fit, out = Fit(model), []
    rows = [fit.ids(text) for text in task.clean]
    for first, z in batches(model, rows, 16):
        ends = [len(r) - 1 for r in rows[first : first + len(z)]]
        out.append(z[range(len(z)), ends].float().cpu())
    return (task.metric(torch.cat(out)) > 0).double().numpy()


def _nll(model: Model, stream: torch.Tensor, ids: torch.Tensor) -> float:
    z = model.unembed(stream)[0, :-1].float()
    return float(F.cross_entropy(z, ids[0, 1:].to(z.device)))


def footprint(models: Mapping[str, Model], tokens: int = 128) -> xr.Dataset:
    """Weights and cache of each model, counted from the tensors themselves.

    `parameters` and `weight_mb` (model): distinct weights, and their bytes / 1e6; `cache_mb`
    (model): bytes / 1e6 of the keys and values that a pass over one text of `tokens` tokens left in
    the cache; `cache_layers` (model): layers that left any. Raises BadInput for a model that keeps
    no cache of keys and values, or cannot read so many tokens.
    """
    rows: dict[str, list[float]] = {}
    for model in models.values():
        held = {p.data_ptr(): p for p in model.module.parameters()}.values()
        cache = _cached(model, _ids(model, tokens))
        kept = [x for x in cache.layers if x.keys is not None and x.keys.numel()]
        size = sum(x.keys.nbytes + x.values.nbytes for x in kept)
        for name, value in (
            ("parameters", sum(p.numel() for p in held)),
            ("weight_mb", sum(p.nbytes for p in held) / 1e6),
            ("cache_mb", size / 1e6), ("cache_layers", len(kept)),
        ):  # fmt: skip
            rows.setdefault(name, []).append(value)
    coords = {"model": list(models)}
    out = {k: label(v, ("model",), coords).drop_attrs() for k, v in rows.items()}
    return xr.Dataset(out, attrs=provenance(technique="footprint", paper=PAPER, cached=tokens))


def speed(
    models: Mapping[str, Model], *, prompt: int = 64, new: int = 8, rounds: int = 5, seed: int = 0
) -> xr.Dataset:
    """Seconds a token for reading a prompt and for writing on, models in turn.

    Each round runs every model once, the order turned round from one to the next, after a round
    that does not count; what is measured is the CPU time of the process, which other programs do
    not enter, and a ratio is taken within its round.

    Returns `seconds` (phase, model, round), phase "prefill" (a pass over `prompt` tokens, per
    token) or "decode" (`new` tokens one by one, on the cache), and `speedup` (phase, model, round):
    the first model's seconds over this one's. On a GPU the CPU time is not the model's: the clock
    is used there, after the device has finished. Raises as `footprint`.
    """
    if rounds < 1 or new < 1:
        raise BadInput(f"rounds={rounds}, new={new}: both must be at least 1")
    for model in models.values():
        _cached(model, _ids(model, 2))
        _ids(model, prompt + new)
    took = np.zeros((2, len(models), rounds))
    for r in range(-1, rounds):
        order = list(enumerate(models.values()))
        for i, model in order[::-1] if r % 2 else order:
            read, write = _timed(model, prompt, new, seed)
            if r >= 0:
                took[:, i, r] = read / prompt, write / new
    coords = {"phase": ["prefill", "decode"], "model": list(models)}
    dims = ("phase", "model", "round")
    out = xr.Dataset({"seconds": label(took, dims, coords).drop_attrs()})
    out["speedup"] = label(took[:, :1] / took, dims, coords).drop_attrs()
    out["seconds"].attrs["unit"] = "s per token"
    return out.assign_attrs(
        provenance(technique="speed", paper=PAPER, prompt=prompt, new=new, seed=seed,
                   threads=torch.get_num_threads())
    )  # fmt: skip


def _timed(model: Model, prompt: int, new: int, seed: int) -> tuple[float, float]:
    ids = _ids(model, prompt + new, seed)
    on_cpu = model.device.type == "cpu"

    def now() -> float:
        if on_cpu:
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()

    start = now()
    cache = _cached(model, ids[:, :prompt])
    middle = now()
    with lock(model), torch.no_grad():
        for i in range(prompt, prompt + new):
            model.module(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
    return middle - start, now() - middle


def _ids(model: Model, n: int, seed: int = 0) -> torch.Tensor:
    if model.max_tokens is not None and n > model.max_tokens:
        raise BadInput(f"{n} tokens are more than the {model.max_tokens} that {model.name} reads")
    if n < 1 or not model.d_vocab:
        raise BadInput(f"{model.name} cannot be given {n} tokens")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.d_vocab, (1, n), generator=generator).to(model.device)


def _cached(model: Model, ids: torch.Tensor) -> Any:
    """Read ids; return the cache of keys and values."""
    if model.kind != "decoder":
        raise BadInput(f"{model.name} is of kind {model.kind!r} and keeps no keys and values")
    options = {"logits_to_keep": 1} if "logits_to_keep" in model.forward_names else {}
    with lock(model), torch.no_grad():
        out = model.module(ids, use_cache=True, **options)
    cache = getattr(out, "past_key_values", None)
    if cache is None or not hasattr(cache, "layers"):
        raise BadInput(f"{model.name} keeps no cache of keys and values, so it has no size here")
    return cache
