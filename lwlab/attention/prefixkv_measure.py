"""What a cut cache costs and saves: loss, needles found again, bytes, seconds, text written on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from transformers.cache_utils import DynamicCache

from lwlab.attention.prefixkv import PAPER, Technique, allocate, check_budget, keep
from lwlab.attention.prefixkv_cache import KeptLayer, Reading, cut, go_on, nbytes
from lwlab.attention.prefixkv_needles import Haystack, haystacks
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.results import label, provenance
from lwlab.tracing import lock


def losses(reading: Reading, kept: xr.DataArray | None, following: torch.Tensor) -> torch.Tensor:
    """-log p of following[1:], nats a token, after a context of which `kept` is left.

    The first token of `following` [1, N] is not scored: it is predicted before anything is evicted.
    """
    if following.shape[0] != 1 or following.shape[1] < 2:
        raise BadInput(f"following is [1, N], N at least 2; given {tuple(following.shape)}")
    logits = go_on(reading.model, following[:, :-1], cut(reading, kept))
    return F.cross_entropy(logits[0].float(), following[0, 1:], reduction="none")


def recall(reading: Reading, kept: xr.DataArray | None, stack: Haystack) -> list[bool]:
    """Is each needle found again? Every token of the answer is the likeliest after its question.

    The cache is cut before the question is read: nobody knew what would be asked.
    """
    if not stack.questions:
        return []
    rows = [q + a for q, a in zip(stack.questions, stack.answers)]
    width = max(map(len, rows))
    # What stands after a row's end is never looked at by what stands before it.
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    held = cut(reading, kept)
    held.batch_repeat_interleave(len(rows))
    guess = go_on(reading.model, ids.to(reading.ids.device), held).argmax(-1).tolist()
    return [
        tuple(g[len(q) - 1 : len(q) + len(a) - 1]) == a
        for g, q, a in zip(guess, stack.questions, stack.answers)
    ]


def study(
    readings: Sequence[Reading],
    stacks: Sequence[Haystack],
    plans: Mapping[Technique, Sequence[float]],
    *,
    shares: Mapping[float, Sequence[Sequence[float]]] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Cut every reading in every way, and read on.

    `plans` lists the budgets of each technique; `shares`, by budget a list of
    shares for each reading, are "prefixkv" with sizes from other texts (see `calibrate`), under the
    name "offline". Budget 1, the full cache, is always there.

    Returns `nll` (technique, budget, text), nats a token of what follows; `found` (technique,
    budget, text), share of the needles; `worst` and `mean`, attention retained by the worst layer
    and on average; `bytes` held. NaN where it was not asked for. Raises BadInput before the first
    run, as `allocate` does.
    """
    if not readings or len(readings) != len(stacks):
        raise BadInput(f"{len(readings)} readings, {len(stacks)} texts: one each, at least one")
    jobs: list[tuple[str, float]] = [(t, b) for t, budgets in plans.items() for b in budgets]
    jobs += [("offline", b) for b in shares or {}]
    L = readings[0].model.n_layers
    for budget, given in (shares or {}).items():
        if len(given) != len(readings):
            raise BadInput(f"shares[{budget}]: {len(given)} lists, {len(readings)} readings")
    for technique, budget in jobs:
        for r in readings:
            check_budget(budget, L, r.ids.shape[1])
            if technique != "offline":
                allocate(r.scores["mass"], budget, cast("Technique", technique))
    techniques = list(dict.fromkeys(t for t, _ in jobs))
    budgets = sorted({b for _, b in jobs} | {1.0})
    shape = (len(techniques), len(budgets), len(readings))
    names = ("nll", "found", "worst", "mean", "bytes")
    table = {name: np.full(shape, np.nan) for name in names}

    def note(at: Any, reading: Reading, stack: Haystack, kept: xr.DataArray | None) -> None:
        found = recall(reading, kept, stack)
        table["nll"][at] = float(losses(reading, kept, stack.following).mean())
        table["found"][at] = np.mean(found) if found else np.nan
        table["bytes"][at] = nbytes(cut(reading, kept))
        mass = reading.scores["mass"]
        part = (mass * (1 if kept is None else kept)).sum("position") / mass.sum("position")
        table["worst"][at], table["mean"][at] = float(part.min()), float(part.mean())

    for i, (reading, stack) in enumerate(zip(readings, stacks)):
        note((slice(None), len(budgets) - 1, i), reading, stack, None)
        for technique, budget in jobs:
            if budget == 1:
                continue
            fixed = shares[budget][i] if shares and technique == "offline" else None
            how = cast("Technique", "prefixkv" if technique == "offline" else technique)
            kept = keep(reading.scores, budget, how, shares=fixed, seed=seed + i)
            note((techniques.index(technique), budgets.index(budget), i), reading, stack, kept)
    coords = {"technique": techniques, "budget": budgets, "text": list(range(len(readings)))}
    said = {
        "nll": ("loss of what follows", "nats per token"), "found": ("needles found", "share"),
        "worst": ("attention retained, worst layer", "share"),
        "mean": ("attention retained, mean of layers", "share"), "bytes": ("cache", "bytes"),
    }  # fmt: skip
    return xr.Dataset(
        {
            k: label(table[k], ("technique", "budget", "text"), coords).drop_attrs()
            .assign_attrs(long_name=said[k][0], units=said[k][1]) for k in names
        },
        attrs=provenance(
            readings[0].model, paper=PAPER, seed=seed, n=len(readings),
            context=int(readings[0].ids.shape[1]), following=int(stacks[0].following.shape[1]),
            needles=len(stacks[0].questions),
        ),
    )  # fmt: skip


def speed(
    reading: Reading,
    choices: Mapping[str, xr.DataArray | None],
    *,
    new: int = 8,
    rounds: int = 5,
    batch: int = 1,
) -> xr.Dataset:
    """Seconds to decode a token on each cut cache, and the bytes it holds.

    Each round decodes `new` tokens one by one on a fresh copy of every cache, the order turned
    round from one to the next, after a round that does not count. On the CPU it is the CPU time of
    the process, which other programs do not enter. `batch` copies of the text are decoded together,
    as a server does: all read the weights once, each its own cache.

    Returns `seconds` (choice, round) a step, `ratio` (choice, round), the first choice's seconds
    over this one's in the same round, and `bytes` (choice) of all copies. Raises BadInput for no
    choice, round, new token or copy, or for more than the model reads.
    """
    if not choices or rounds < 1 or new < 1 or batch < 1:
        raise BadInput(
            f"{len(choices)} choices, rounds={rounds}, new={new}, batch={batch}: at least one each"
        )
    _room(reading, new)
    model, T = reading.model, reading.ids.shape[1]
    took = np.zeros((len(choices), rounds))
    size = [batch * nbytes(cut(reading, kept)) for kept in choices.values()]
    for r in range(-1, rounds):
        order = list(enumerate(choices.values()))
        for i, kept in order[::-1] if r % 2 else order:
            held = cut(reading, kept)
            held.batch_repeat_interleave(batch)
            start = _now(model)
            with lock(model), torch.no_grad():
                for k in range(new):
                    at = (T - new + k) % T  # any tokens will do
                    ids = reading.ids[:, at : at + 1].expand(batch, 1)
                    model.module(ids, past_key_values=held)
            if r >= 0:
                took[i, r] = (_now(model) - start) / new
    coords = {"choice": list(choices)}
    out = xr.Dataset({
        "seconds": label(took, ("choice", "round"), coords).drop_attrs(),
        "ratio": label(took[:1] / took, ("choice", "round"), coords).drop_attrs(),
        "bytes": label(size, ("choice",), coords).drop_attrs(),
    })  # fmt: skip
    out["seconds"].attrs["units"], out["bytes"].attrs["units"] = "s per token", "bytes"
    return out.assign_attrs(
        provenance(model, technique="speed", paper=PAPER, context=int(T), new=new, batch=batch,
                   threads=torch.get_num_threads())
    )  # fmt: skip


def _now(model: Model) -> float:
    if model.device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


def write(
    reading: Reading,
    kept: xr.DataArray | None,
    max_new_tokens: int = 32,
    *,
    distance: int = 25,
    grow: bool = False,
) -> tuple[str, DynamicCache]:
    """Write on greedily after a context of which `kept` is left; return the text and the cache.

    A layer that keeps n of T goes on holding that share of all tokens read: when it has more, the
    entry `distance` before its end is dropped (the middle one where it holds no more than that), as
    the paper's code does. With `grow` nothing more is dropped. Raises BadInput as `cut` does, or
    for more tokens than the model reads.
    """
    _room(reading, max_new_tokens)
    if distance < 1:
        raise BadInput(f"distance={distance}: at least 1, the entry before the end")
    held, T = cut(reading, kept), reading.ids.shape[1]
    layers = cast("list[KeptLayer]", held.layers)
    share = [layer.keys.shape[-2] / T for layer in layers]
    ids = [int(reading.logits.argmax())]
    with lock(reading.model), torch.no_grad():
        while len(ids) < max_new_tokens:
            last = torch.tensor([[ids[-1]]], device=reading.ids.device)
            out: Any = reading.model.module(last, past_key_values=held)
            ids.append(int(out.logits[0, -1].argmax()))
            for layer, part in zip(layers, share):
                n = int(layer.keys.shape[-2])
                if not grow and n > np.ceil(part * layer.seen - 1e-9):
                    layer.drop(n - distance if n > distance else n // 2)
    said = reading.model.tokenizer.decode(ids) if reading.model.tokenizer else str(ids)
    return said, held


def _room(reading: Reading, new: int) -> None:
    most, T = reading.model.max_tokens, reading.ids.shape[1]
    if new < 1:
        raise BadInput(f"{new} new tokens: at least 1")
    if most is not None and T + new > most:
        raise BadInput(
            f"{T} tokens and {new} new ones are more than {reading.model.name} reads, {most}"
        )


__all__ = ["Haystack", "haystacks", "losses", "recall", "speed", "study", "write"]
