"""The kernels against the best torch we can write, and against libraries where they run.

    lwlab bench kernels [--peers] [--only lens-32]

`--peers` runs in an environment with the libraries of peers/kernels.txt. Targets are those that the
kernels were designed to. The lens reads real streams of smollm2-135m; what functions in plain torch
need no kernel for is in plain.py.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peers import attention_torch, lens_torch, mlp_torch, quant_torch
from peers.streams import model, random, streams

from lwlab import bench, kernels

PEERS = Path(__file__).parent / "peers" / "kernels.txt"
PACKAGES = ("cut-cross-entropy", "liger-kernel", "torchao")
ABSENT = {
    "liger-kernel": "installs, but its fused linear cross-entropy is Triton: no CUDA driver here",
    "cut-cross-entropy's own kernel": "as liger-kernel; its torch.compile form is timed",
}
NO_PEERS = "not installed here: lwlab bench kernels --peers"


def has(module: str) -> bool:
    """Whether a library is installed."""
    return importlib.util.find_spec(module) is not None


def lens(positions: int, rounds: int) -> bench.Case:
    """Everything of the logit lens, at all 30 layers, vocabulary 49,152."""
    module: Any = model().module
    h, w = module.model.norm(streams(positions)).detach(), module.lm_head.weight.detach()
    ids = torch.randint(len(w), (positions,), generator=torch.Generator().manual_seed(0))
    stats = kernels.lens_stats

    def seen(r: Any) -> Any:
        # Ranks may differ by one or two where logits are equal but for rounding: 1e-4 each.
        values = tuple(r)[:6]
        return {"nats": values[1:4] + values[5:6], "rank": values[4].double() * 1e-4}

    ways: dict[str, Any] = {
        "lens_stats": lambda: stats(h, None, w, ids),
        "best torch: blocks of the vocabulary": partial(lens_torch.blocked, h, w, ids, -1, 5),
        "torch, some positions at a time": bench.Way(
            partial(lens_torch.lean, h, w, ids, -1, 5),
            tolerance=5e-3,
            note="its KL is a difference of large sums, in float32",
        ),
        "torch, a layer at a time": partial(lens_torch.by_layer, h, w, ids, -1, 5),
        "matrix product alone": bench.Way(partial(lens_torch.product_only, h, w), limit=True),
    }
    absent = {}
    if has("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        flat, many = h.flatten(0, 1), ids.repeat(len(h))
        ways["cut-cross-entropy (torch.compile)"] = bench.Way(
            lambda: -linear_cross_entropy(flat, w, many, impl="torch_compile", reduction="none"),
            part=lambda seen: seen["nats"][3].flatten(),
            raw=True, note="the target's log-probability and nothing else",
        )  # fmt: skip
    else:
        absent["cut-cross-entropy"] = NO_PEERS
    figures: dict[str, Any] = {"backend": stats(h[:, :1], None, w, ids[:1]).backend}
    if positions > 16:
        figures["peak MB"] = bench.peak_mb(ways["lens_stats"])
        figures["peak MB, best torch"] = bench.peak_mb(ways["best torch: blocks of the vocabulary"])
        figures["peak MB, a layer at a time"] = bench.peak_mb(ways["torch, a layer at a time"])
        figures["peak MB, all logits"] = bench.peak_mb(partial(lens_torch.naive, h, w, ids, -1, 5))
    return bench.Case(
        f"lens_stats: 30 layers x {positions} positions, 49,152 tokens, top 5, entropy, KL, rank",
        "lens_stats", ways, tolerance=1e-3, compare=seen, rounds=rounds, figures=figures,
        targets={
            "best torch: blocks of the vocabulary": 1.5, "torch, some positions at a time": 1.5,
            "matrix product alone": 0.7,
        },
        flops=2.0 * h.shape[0] * positions * h.shape[2] * len(w), absent=absent,
    )  # fmt: skip


def table(rows: int, columns: int, group: int) -> bench.Case:
    """Errors of eight bit-widths."""
    w, c = random(rows, columns) * 0.05, random(columns, seed=1).square()
    own = kernels.quant_error_table
    return bench.Case(
        f"quant_error_table: {rows} x {columns}, groups of {group}, 1 to 8 bits, weighted",
        "quant_error_table",
        {
            "quant_error_table": lambda: own(w, group, weight=c),
            "best torch: in place, 256 rows at a time": partial(
                quant_torch.table_blocked, w, group, c
            ),
            "torch, in place": partial(quant_torch.table, w, group, c),
            "torch, a width at a time": partial(quant_torch.table_plain, w, group, c),
            "reading w once": bench.read(w.nbytes),
        },
        compare=lambda r: (r.error.sum(0) if hasattr(r, "error") else r) / c.sum() / rows,
        targets={"best torch: in place, 256 rows at a time": 1.5, "torch, in place": 4.0},
        tolerance=1e-8, bytes=w.nbytes,
        figures={"backend": own(w, group).backend},
    )  # fmt: skip


def fake(rows: int, columns: int, group: int) -> bench.Case:
    """One bit-width."""
    w = random(rows, columns) * 0.05
    own = kernels.fake_quant
    here = torch.empty_like(w), torch.empty_like(w)
    compiled = torch.compile(quant_torch.fake, dynamic=False)
    ways: dict[str, Any] = {
        "fake_quant": lambda: own(w, 4, group, out=here[0]).weight,
        "torch, in place, 64 rows at a time": partial(
            quant_torch.fake_blocked, w, 4, group, here[1]
        ),
        "fake_quant into new memory": lambda: own(w, 4, group).weight,
        "torch, in place, into new memory": partial(quant_torch.fake_in_place, w, 4, group),
        "torch, an operation at a time": partial(quant_torch.fake, w, 4, group),
        "torch.compile": bench.Way(
            partial(compiled, w, 4, group), tolerance=0.05, note="a tie may round the other way"
        ),
        "reading w once": bench.read(w.nbytes),
    }
    absent = {}
    if has("torchao"):
        ways["torchao"] = bench.Way(
            partial(quant_torch.fake_torchao, w, 4, group), tolerance=0.05,
            note="affine primitives; codes are stored in between; a tie may round the other way",
        )  # fmt: skip
    else:
        absent["torchao"] = NO_PEERS
    return bench.Case(
        f"fake_quant: {rows} x {columns}, groups of {group}, 4 bits", "fake_quant", ways,
        targets={
            "torch, in place, into new memory": 1.2, "torch, in place, 64 rows at a time": 1.2,
        },
        bytes=2 * w.nbytes, absent=absent,
        figures={"backend": own(w, 4, group).backend},
    )  # fmt: skip


def attention() -> bench.Case:
    """What a layer's heads look at."""
    q, k = random(9, 512, 64), random(3, 512, 64, seed=1)
    own = kernels.attn_stats
    return bench.Case(
        "attn_stats: 9 heads (3 of keys), 512 positions, causal",
        "attn_stats",
        {
            "attn_stats": lambda: tuple(own(q, k))[:4],
            "best torch: 64 queries at a time, only keys they see": partial(
                attention_torch.chunked, q, k
            ),
            "torch, 64 queries at a time, all keys": partial(
                attention_torch.chunked, q, k, skip=False
            ),
            "torch, the whole pattern": partial(attention_torch.full, q, k),
            "matrix products alone": bench.Way(
                partial(attention_torch.product_only, q, k), limit=True
            ),
        },
        tolerance=1e-3,
        targets={
            "best torch: 64 queries at a time, only keys they see": 1.5,
            "torch, 64 queries at a time, all keys": 1.5, "torch, the whole pattern": 3.5,
        },
        flops=9.0 * 512 * 513 * 64,
        figures={
            "backend": own(q, k).backend,
            "peak MB at 4,096 positions": bench.peak_mb(
                partial(own, random(9, 4096, 64), random(3, 4096, 64))
            ),
            "peak MB, the whole pattern": bench.peak_mb(
                partial(attention_torch.full, random(9, 4096, 64), random(3, 4096, 64))
            ),
        },
    )  # fmt: skip


def decode(d: int, neurons: int, layers: int, off: float, chess: bool = False) -> bench.Case:
    """One token through the MLPs of some layers, with a part of their neurons."""
    own = kernels.sparse_mlp
    x = random(1, d)
    weights = [[random(neurons, d, seed=3 * i + j) * 0.05 for j in range(3)] for i in range(layers)]
    gates, ups, downs_t = (list(column) for column in zip(*weights))
    downs = [w.T.contiguous() for w in downs_t]
    keep = round(neurons * (1 - off))

    def each(run: Any, *lists: Any) -> Any:
        return lambda: torch.stack([run(x, *parts) for parts in zip(*lists)])

    dense = bench.Way(each(mlp_torch.dense, gates, ups, downs), checked=False)
    limits = {"dense": dense, "reading the neurons once": bench.read(layers * keep * 3 * d * 4)}
    if chess:
        cuts = [mlp_torch.silu(x @ g.T).abs().quantile(off).item() for g in gates]
        subject = "sparse_mlp, thresholds"
        ways: dict[str, Any] = {
            subject: each(
                lambda x, g, u, n, t: own(x, g, u, n, threshold=t).y, gates, ups, downs_t, cuts
            ),
            "torch, thresholds": each(mlp_torch.chess, gates, ups, downs_t, cuts),
        }
        size = layers * (neurons + 2.0 * keep) * d * 4
        limits["reading the neurons once"] = bench.read(int(size))
    else:
        gen = torch.Generator().manual_seed(0)
        sets = [torch.randperm(neurons, generator=gen)[:keep].sort().values for _ in weights]
        packed = [[m[i].contiguous() for m in w] for w, i in zip(weights, sets)]
        subject = "sparse_mlp"
        ways = {
            subject: each(
                lambda x, g, u, n, i: own(x, g, u, n, idx=i).y, gates, ups, downs_t, sets
            ),
            "torch, W[idx]": each(mlp_torch.indexed, gates, ups, downs_t, sets),
            "torch, set packed beforehand": each(
                lambda x, g, u, n: mlp_torch.silu(x @ g.T) * (x @ u.T) @ n, *zip(*packed)
            ),
            "dense, the rest set to zero": each(mlp_torch.without, gates, ups, downs, sets),
        }
        size = layers * keep * 3.0 * d * 4
    # Only d = 2048 at 90 % has a target; the others are reported.
    return bench.Case(
        f"{subject}: one token, {layers} MLP(s) of {neurons} neurons, d {d}, {off:.0%} off",
        subject, ways | limits, tolerance=1e-3, bytes=size, null="dense",
        targets={"dense": 5.0} if off > 0.8 and d == 2048 and not chess else {},
        figures={"backend": own(x, *(w for w in weights[0]), threshold=1.0).backend},
    )  # fmt: skip


CASES = {
    "lens-8": partial(lens, 8, 7),
    "lens-32": partial(lens, 32, 7),
    "quant-table-1536x576": partial(table, 1536, 576, 64),
    "quant-table-2048x2048": partial(table, 2048, 2048, 128),
    "fake-quant-1536x576": partial(fake, 1536, 576, 64),
    "fake-quant-2048x2048": partial(fake, 2048, 2048, 128),
    "attention": attention,
    "sparse-mlp-576": partial(decode, 576, 1536, 30, 0.9),
    "sparse-mlp-2048": partial(decode, 2048, 8192, 1, 0.9),
    "sparse-mlp-2048-half": partial(decode, 2048, 8192, 1, 0.5),
    "chess-576": partial(decode, 576, 1536, 30, 0.9, chess=True),
    "chess-2048": partial(decode, 2048, 8192, 1, 0.9, chess=True),
    "chess-2048-half": partial(decode, 2048, 8192, 1, 0.5, chess=True),
}
