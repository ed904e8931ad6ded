"""Functions that need no kernel, because plain torch is as fast: against loops and libraries.

    lwlab bench plain [--peers] [--only cka]

`--peers` runs in an environment with the libraries of peers/kernels.txt. Streams are real ones of
smollm2-135m.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peers import quant_torch, similarity_torch
from peers.streams import model, random, streams

import lwlab as lw
from lwlab import bench
from lwlab.depth.similarity import angular_distance, linear_cka
from lwlab.tracing.rows import features_of

PEERS = Path(__file__).parent / "peers" / "kernels.txt"
PACKAGES = ("ckatorch", "fht-cpu", "hadamard-transform")
ABSENT = {
    "fast-hadamard-transform": "CUDA alone",
    "cka-pytorch": "wants another torch and torchvision: not installed",
}
NO_PEERS = "not installed here: lwlab bench plain --peers"


def has(module: str) -> bool:
    """Whether a library is installed."""
    return importlib.util.find_spec(module) is not None


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
            "encoding them": bench.Way(
                lambda: encode(x, w, None, 32), checked=False, note="for scale, not the same work"
            ),
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
        return {"mean": x.mean(1), "std": x.std(1, correction=0), "max": x.amax(1), "quantile": q}

    def one_pass() -> Any:
        return lw.corpus_stats(model(), texts, "resid_post", quantiles=[0.01, 0.5, 0.99])

    def seen(r: Any) -> list[torch.Tensor]:
        # Quantiles are within 5 % by design, which a test holds them to: not compared here.
        names = ("mean", "std", "max")
        if isinstance(r, dict):
            return [r[n] for n in names]
        return [torch.tensor(r[f"resid_post_{n}"].values) for n in names]

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


def hadamard(n: int) -> bench.Case:
    """Walsh-Hadamard of 512 rows."""
    from lwlab.quantization.hadamard import hadamard_matrix, walsh_hadamard

    x = random(512, n)
    h = hadamard_matrix(n) / n**0.5

    def butterfly() -> torch.Tensor:
        y = x
        step = 1
        while step < n:
            a = y.view(-1, n // (2 * step), 2, step)
            y = torch.stack([a[:, :, 0] + a[:, :, 1], a[:, :, 0] - a[:, :, 1]], 2)
            step *= 2
        return y.view(-1, n) / n**0.5

    ways: dict[str, Any] = {
        "walsh_hadamard": lambda: walsh_hadamard(x),
        "dense product": lambda: x @ h,
        "butterfly in torch": butterfly,
        "reading the rows once": bench.read(x.nbytes),
    }
    absent = {}
    if has("hadamard_transform"):
        from hadamard_transform import hadamard_transform

        ways["hadamard-transform"] = lambda: hadamard_transform(x)
    else:
        absent["hadamard-transform"] = NO_PEERS
    if has("fht_cpu"):
        import fht_cpu

        def fast() -> Any:
            y = x.numpy().copy()  # it works in place
            fht_cpu.fht_2d_f32_rows(y, 1)
            return y / n**0.5

        ways["fht-cpu"] = bench.Way(fast, note="compiled butterfly with SIMD, in place on a copy")
    else:
        absent["fht-cpu"] = NO_PEERS
    return bench.Case(
        f"walsh_hadamard: 512 rows, n {n} (plain torch, two products)", "walsh_hadamard", ways,
        tolerance=1e-4, absent=absent, bytes=2 * x.nbytes,
    )  # fmt: skip


def topk(rows: int, d: int, k: int) -> bench.Case:
    """Statistical top-k against the real one."""
    from lwlab.activations.topk import statistical_topk

    s = random(rows, d)

    def with_std() -> torch.Tensor:
        cut = torch.std(s, 1, correction=0, keepdim=True) * cut_of + s.mean(1, keepdim=True)
        return torch.relu(s - cut)

    def scatter() -> torch.Tensor:
        top = s.topk(k, 1)
        return torch.zeros_like(s).scatter_(1, top.indices, top.values)

    cut_of = float(torch.special.ndtri(torch.tensor(1 - k / d, dtype=torch.float64)))
    return bench.Case(
        f"statistical_topk: {rows} rows of {d}, k {k} (plain torch)", "statistical_topk",
        {
            "statistical_topk": lambda: statistical_topk(s, k),
            "with torch.std": with_std,
            "torch.topk and scatter": bench.Way(
                scatter, checked=False, note="exact k: another result"
            ),
            "reading the scores once": bench.read(s.nbytes),
        },
        tolerance=1e-4, bytes=s.nbytes,
    )  # fmt: skip


def gptq() -> bench.Case:
    """GPTQ with the weights transposed."""
    from lwlab.quantization.gptq import gptq as own

    w, x = random(1536, 576) * 0.05, random(2048, 576, seed=1) @ random(576, 576, seed=2) / 24
    h = x.T @ x / len(x)

    def loss(weight: torch.Tensor) -> float:
        d = (w - weight).double()
        return float((d @ h.double() * d).sum())

    plain = loss(quant_torch.fake(w, 4, 64))
    return bench.Case(
        "gptq: 1536 x 576, 4 bits, groups of 64 (plain torch)", "gptq",
        {
            "gptq": lambda: own(w, h, 4, 64).weight,
            "layout of the paper": partial(quant_torch.gptq, w, h, 4, 64),
            "its Cholesky factors alone": bench.Way(
                lambda: torch.linalg.cholesky(
                    torch.cholesky_inverse(torch.linalg.cholesky(h + 0.01 * torch.eye(576)))
                ),
                limit=True,
            ),
        },
        # A tie that rounds the other way changes what follows: losses are compared, not weights.
        compare=lambda weight: loss(weight) / plain, tolerance=0.01, rounds=7,
        figures={"loss / loss of plain rounding": loss(own(w, h, 4, 64).weight) / plain},
    )  # fmt: skip


CASES = {
    "cka": cka,
    "angles": angles,
    "hadamard-512": partial(hadamard, 512),
    "hadamard-1024": partial(hadamard, 1024),
    "hadamard-4096": partial(hadamard, 4096),
    "sae-decode": sae,
    "topk-1536": partial(topk, 512, 1536, 128),
    "topk-11008": partial(topk, 512, 11008, 880),
    "gptq": gptq,
    "corpus-stats": corpus,
}
