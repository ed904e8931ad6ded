"""The kernels, and the plain-torch functions that need none, against the best torch and libraries.

    lwlab bench kernels [--peers] [--only lens-32]

`--peers` runs in an environment of the libraries in peers/kernels.txt. Targets are those the
kernels were designed to; the lens and the similarities read real streams of smollm2-135m.
"""

from __future__ import annotations

import importlib.util
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from peers import lens_torch, quant_torch, similarity_torch

import lwlab as lw
from lwlab import bench, kernels
from lwlab.depth.similarity import angular_distance, linear_cka
from lwlab.tracing.rows import features_of

PEERS = Path(__file__).parent / "peers" / "kernels.txt"
PACKAGES = (
    "ckatorch", "cut-cross-entropy", "fht-cpu", "hadamard-transform", "liger-kernel", "torchao",
)  # fmt: skip
ABSENT = {
    "liger-kernel": "installs, but its fused linear cross-entropy is Triton: no CUDA driver here",
    "cut-cross-entropy's own kernel": "as liger-kernel; its torch.compile form is timed",
    "fast-hadamard-transform": "CUDA alone",
    "cka-pytorch": "wants another torch: not installed",
}
NO_PEERS = "not installed here: lwlab bench kernels --peers"


def has(module: str) -> bool:
    """Whether a library is installed."""
    return importlib.util.find_spec(module) is not None


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def model() -> lw.Model:
    """The default model."""
    return lw.load("smollm2-135m")


@cache
def streams(rows: int) -> torch.Tensor:
    """resid_post of every layer at `rows` own positions from 1 on, [30, rows, 576]."""
    texts = lw.tasks.corpus(tokens=128, model=model(), n=2 + rows // 64)
    x = features_of(model(), texts, "resid_post", model().anatomy.layers(None), 1)
    return x[:, :rows].contiguous()


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
        "best torch: some positions at a time": partial(lens_torch.lean, h, w, ids, -1, 5),
        "torch, blocks of the vocabulary": partial(lens_torch.blocked, h, w, ids, -1, 5),
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
        figures["peak MB, best torch"] = bench.peak_mb(ways["best torch: some positions at a time"])
        figures["peak MB, a layer at a time"] = bench.peak_mb(ways["torch, a layer at a time"])
        figures["peak MB, all logits"] = bench.peak_mb(partial(lens_torch.naive, h, w, ids, -1, 5))
    return bench.Case(
        f"lens_stats: 30 layers x {positions} positions, 49,152 tokens, top 5, entropy, KL, rank",
        "lens_stats", ways, tolerance=1e-3, compare=seen, rounds=rounds, figures=figures,
        targets={"best torch: some positions at a time": 1.5, "matrix product alone": 0.7},
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
            "best torch: in place": partial(quant_torch.table, w, group, c),
            "torch, a width at a time": partial(quant_torch.table_plain, w, group, c),
            "reading w once": bench.read(w.nbytes),
        },
        compare=lambda r: (r.error.sum(0) if hasattr(r, "error") else r) / c.sum() / rows,
        targets={"best torch: in place": 4.0}, tolerance=1e-8, bytes=w.nbytes,
        figures={"backend": own(w, group).backend},
    )  # fmt: skip


def fake(rows: int, columns: int, group: int) -> bench.Case:
    """One bit-width."""
    w = random(rows, columns) * 0.05
    own = kernels.fake_quant
    compiled = torch.compile(quant_torch.fake, dynamic=False)
    ways: dict[str, Any] = {
        "fake_quant": lambda: own(w, 4, group).weight,
        "best torch: in place": partial(quant_torch.fake_in_place, w, 4, group),
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
        targets={"best torch: in place": 1.2}, bytes=2 * w.nbytes, absent=absent,
        figures={"backend": own(w, 4, group).backend},
    )  # fmt: skip


def cka() -> bench.Case:
    """All 435 pairs of layers."""
    x = streams(512)
    ways: dict[str, Any] = {
        "linear_cka": partial(linear_cka, x),
        "a pair at a time": partial(similarity_torch.pairs, x),
        "a pair at a time, norms kept": partial(similarity_torch.pairs_cached, x),
        "a pair at a time, Gram matrices kept": partial(similarity_torch.grams_cached, x),
        "Gram matrices alone": bench.Way(lambda: torch.bmm(x, x.transpose(1, 2)), limit=True),
    }
    absent = {}
    if has("ckatorch"):
        from ckatorch import cka_base

        chosen = [(i, j) for i in range(0, 30, 6) for j in range(i)]
        ways["ckatorch"] = bench.Way(
            lambda: torch.stack([cka_base(x[i], x[j]) for i, j in chosen]),
            part=lambda whole: torch.stack([whole[i, j] for i, j in chosen]),
            scale=435 / len(chosen), note=f"{len(chosen)} of 435 pairs; it computes in float64",
        )  # fmt: skip
    else:
        absent["ckatorch"] = NO_PEERS
    return bench.Case(
        "linear_cka: 30 layers, 512 positions, d 576, all 435 pairs (plain torch)",
        "linear_cka", ways, tolerance=2e-4, rounds=5, absent=absent,
        targets={"a pair at a time": 25.0, "a pair at a time, norms kept": 10.0},
        flops=2.0 * 30 * 512 * 512 * 576 + 2.0 * 30 * 30 * 512 * 512,
    )  # fmt: skip


def angles() -> bench.Case:
    """All pairs of layers at every position."""
    x = streams(512)
    return bench.Case(
        "angular_distance: 30 layers, 512 positions, d 576, all pairs (plain torch)",
        "angular_distance",
        {
            "angular_distance": partial(angular_distance, x),
            "a pair at a time": partial(similarity_torch.angles, x),
            "reading the features once": bench.read(x.nbytes),
        },
        tolerance=2e-4, bytes=x.nbytes,
    )  # fmt: skip


def sae() -> bench.Case:
    """Decoding of TopK codes."""
    from lwlab.features import decode, dense, encode

    x, w = random(512, 576), random(16384, 576, seed=1) / 24
    code = encode(x, w, None, 32)
    z = dense(code)
    return bench.Case(
        "features.decode: 512 rows, 16,384 features, 32 active, d 576 (plain torch)", "decode",
        {
            "decode": lambda: decode(code, w),
            "dense product": lambda: z @ w,
            "gather and sum": lambda: torch.einsum(
                "nk,nkd->nd", code.values.view(512, 32), w[code.ids.view(512, 32)]
            ),
            "reading the active rows once": bench.read(512 * 32 * 576 * 4),
            "encoding (for scale)": bench.Way(lambda: encode(x, w, None, 32), limit=True),
        },
        tolerance=1e-3, bytes=512 * 32 * 576 * 4,
    )  # fmt: skip


def corpus() -> bench.Case:
    """One pass of statistics against keeping everything."""
    from lwlab.tracing import engine
    from lwlab.tracing.online import observe
    from lwlab.tracing.read import addresses

    texts = lw.tasks.corpus(tokens=64, model=model(), n=8)
    tokens = model().tokens(texts)
    reads = addresses(model(), ["resid_post"], model().anatomy.layers(None))

    def keep_all() -> dict[str, torch.Tensor]:
        x = features_of(model(), texts, "resid_post", model().anatomy.layers(None), 1).double()
        shares = torch.tensor([0.01, 0.5, 0.99]).double()
        q = torch.quantile(x, shares, dim=1, interpolation="lower")
        return {"mean": x.mean(1), "std": x.std(1, correction=0), "max": x.amax(1), "q": q * 0}

    def one_pass() -> Any:
        return lw.corpus_stats(model(), texts, "resid_post", quantiles=[0.01, 0.5, 0.99])

    def seen(r: Any) -> dict[str, torch.Tensor]:
        if isinstance(r, dict):
            return r
        out = {n: torch.tensor(r[f"resid_post_{n}"].values) for n in ("mean", "std", "max")}
        # Quantiles are within 5 % by design (tested); only their number is compared here.
        return out | {"q": torch.tensor(r.resid_post_quantile.values) * 0}

    return bench.Case(
        f"corpus_stats: resid_post of 30 layers, {int(tokens.mask.sum())} tokens (plain torch)",
        "corpus_stats",
        {
            "corpus_stats": one_pass,
            "keep all, then compute": keep_all,
            "forward pass alone": bench.Way(
                lambda: engine.run(model(), tokens, reads, logits=None), limit=True
            ),
        },
        compare=seen, tolerance=1e-3, rounds=5,
        figures={
            "kB a token if kept": 30 * 576 * 4 / 1e3,
            "MB of state whatever the corpus": sum(
                t.numel() * t.element_size() / 1e6
                for u in observe(model(), texts[:1], "resid_post").units.values()
                for o in (u.moments, u.quantiles, u.tops) for t in vars(o).values()
                if isinstance(t, torch.Tensor)
            ),
        },
    )  # fmt: skip


CASES = {
    "lens-8": partial(lens, 8, 7),
    "lens-32": partial(lens, 32, 7),
    "quant-table-1536x576": partial(table, 1536, 576, 64),
    "quant-table-2048x2048": partial(table, 2048, 2048, 128),
    "fake-quant-1536x576": partial(fake, 1536, 576, 64),
    "fake-quant-2048x2048": partial(fake, 2048, 2048, 128),
    "cka": cka,
    "angles": angles,
    "sae-decode": sae,
    "corpus-stats": corpus,
}
