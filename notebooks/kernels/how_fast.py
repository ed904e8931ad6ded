# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   lwlab:
#     id: how-fast
#     family: kernels
#     title: "How fast? The kernels, what they save, and what needs none"
#     paper: ""
#     cost: {seconds: 60, memory_mb: 1650}
#     model: smollm2-135m
# ---

# %% [markdown]
# # How fast? The kernels, what they save, and what needs none
#
# **The idea in one sentence:** most of what looking inside a model costs is not arithmetic but memory
# that is written and read back; reduce each number the moment it exists, and the same answer comes
# two to six times sooner, or out of a hundredth of the memory.
#
# No paper: this notebook is about lwlab itself. Each section has one kernel: its idea, the check that
# it gives the same numbers, and a race, run here and now. The measured tables, against the best torch
# we can write and against libraries, are in `benchmarks/README.md` of the repository.
#
# **Cost** with SmolLM2-135M: about a minute on two quiet CPU cores, 1.7 GB of memory.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full races longer
rounds: int = 3  # of each race; profile=full takes at least 11
seed: int = 0

# %%
import math

import altair as alt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

import lwlab as lw
from lwlab import bench
from lwlab.depth.similarity import linear_cka
from lwlab.tracing.rows import features_of

lw.charts.enable()
torch.set_num_threads(1)  # two threads on a busy machine measure the machine
net = lw.load(model)
rounds = rounds if profile == "quick" else max(rounds, 11)
gen = torch.Generator().manual_seed(seed)
text = lw.tasks.corpus(tokens=96, model=net, n=2, seed=seed)
layers = net.anatomy.layers(None)
streams = features_of(net, text, "resid_post", layers, 1)  # [layers, positions, d_model]
races = []


def race(name: str, subject: str, ways: dict, **options) -> pd.DataFrame:
    """Check that all ways agree, time them in turn, and keep the result for the last picture."""
    row = bench.measure(bench.Case(name, subject, ways, **options), rounds)
    table = pd.DataFrame(
        {
            "way": w["name"], "CPU ms": w["cpu_ms"]["median"], "times lwlab": w["ratio"]["median"],
            "least": w["ratio"]["min"], "most": w["ratio"]["max"],
            "largest difference": w.get("difference", np.nan),
            "kind": w["kind"], "what": name, "quiet": row["quiet"],
        } for w in row["ways"]
    )  # fmt: skip
    races.append(table)
    return table.set_index("way").drop(columns=["kind", "what", "quiet"]).round(3)


# %% [markdown]
# Every race follows the protocol of `lwlab bench`: results are compared first; ways take turns in a
# shifting order; what counts is CPU time, as a ratio within a round; one way runs against itself, and
# when that null pair strays, the machine was too busy to say anything.
#
# ## The idea in one picture
#
# The logit lens asks at every layer and position what the model would say if it stopped there. Its
# logits are the largest thing in the whole laboratory, and nobody wants them: five tokens, an entropy,
# a rank are wanted. How large are they?

# %%
V, d = net.d_vocab, net.anatomy.d_model
W_U = net.module.get_submodule(net.anatomy.unembed).weight.detach()
final = net.module.get_submodule(net.anatomy.final_norm)
with torch.no_grad():
    normed = final(streams).detach()


def held(t: int) -> float:
    """GB that lens_stats takes beyond its inputs, measured."""
    part = normed[:, :t].contiguous()
    lw.kernels.lens_stats(part[:, :1], None, W_U)  # compiled before
    return bench.peak_mb(lambda: lw.kernels.lens_stats(part, None, W_U)) / 1e3


rows = [
    {"positions": t, "GB": len(layers) * t * width * 4 / 1e9, "what": what}
    for t in (8, 32, 128, 512, 2048)
    for what, width in (("all logits", V), ("the streams they come from", d))
] + [{"positions": t, "GB": held(t), "what": "lens_stats, measured"} for t in (8, 32, 96)]
alt.Chart(
    pd.DataFrame(rows), title=f"{len(layers)} layers, {V:,} tokens: what must be in memory"
).mark_line(point=True).encode(
    x=alt.X("positions:Q", scale=alt.Scale(type="log", base=2)),
    y=alt.Y("GB:Q", scale=alt.Scale(type="log"), title="GB"),
    color=alt.Color("what:N", title=None, scale=alt.Scale(range=["#d55e00", "#0072b2", "#009e73"])),
    tooltip=["what", "positions", alt.Tooltip("GB", format=".3g")],
).properties(width=360, height=200)

# %% [markdown]
# ## 1. Lens statistics
#
# A softmax over the vocabulary needs its largest logit and the sum of exponentials, and both can be
# carried from block to block: with $m' = \max(m, \max_v z_v)$,
#
# $$s' = s\, e^{m - m'} + \sum_{v \in \text{block}} e^{z_v - m'}, \qquad
# a' = e^{m - m'}\big(a + s\,(m - m')\big) + \sum_{v \in \text{block}} e^{z_v - m'} (z_v - m'),$$
#
# and in the end the entropy is $\ln s - a/s$. Top tokens, ranks and KL stream in the same way. So a
# block of the vocabulary is multiplied, reduced while it is still in the cache, and forgotten. Written
# out in torch:


# %%
def entropy_in_blocks(x: torch.Tensor, W_U: torch.Tensor, width: int = 4096) -> torch.Tensor:
    m = x.new_full((len(x), 1), -torch.inf)
    s, a = x.new_zeros(2, len(x), 1)
    for first in range(0, len(W_U), width):
        z = x @ W_U[first : first + width].T
        new = torch.maximum(m, z.amax(1, keepdim=True))
        down = torch.where(s > 0, m - new, 0)
        d = z - new
        p = d.exp()
        a = down.exp() * (a + s * down) + (p * d).sum(1, keepdim=True)
        s = down.exp() * s + p.sum(1, keepdim=True)
        m = new
    return (s.log() - a / s)[:, 0]


def by_layer(h: torch.Tensor, W_U: torch.Tensor, targets: torch.Tensor) -> tuple:
    """One layer at a time, as lens code is usually written."""
    to = (h[-1] @ W_U.T).log_softmax(-1)
    parts = []
    for x in h:
        logp = (x @ W_U.T).log_softmax(-1)
        p, target = logp.exp(), logp.gather(1, targets[:, None])
        parts.append(
            (logp.topk(5)[0], -(p * logp).sum(-1), (p * (logp - to)).sum(-1), target[:, 0])
        )
    return tuple(torch.stack(part) for part in zip(*parts))


h = normed[:, : 8 if profile == "quick" else 32].contiguous()
targets = torch.randint(V, (h.shape[1],), generator=gen)
stats = lw.kernels.lens_stats
shown = entropy_in_blocks(h.flatten(0, 1), W_U).view(len(h), -1)
shown_error = float((shown - stats(h, None, W_U).entropy).abs().max())

some = W_U[: min(V, 16384)]  # in float64 a whole vocabulary would fill the memory
inside = targets % len(some)
found = stats(h, None, some, inside)
truth = stats(h.double(), None, some.double(), inside, backend="torch")
lens_error = max(
    float((a - b).abs().max()) for a, b in zip(found[1:4] + found[5:6], truth[1:4] + truth[5:6])
)
print(
    f"{found.backend}: {lens_error:.1e} nats off float64; written out: {shown_error:.1e} off that"
)

# %%
race(
    "lens statistics", "lens_stats",
    {
        "lens_stats": lambda: stats(h, None, W_U, targets),
        "torch, a layer at a time": lambda: by_layer(h, W_U, targets),
        "matrix product alone": bench.gemm(len(h) * h.shape[1], d, V),
    },
    tolerance=1e-3,
    compare=lambda r: tuple(r)[1:4] + tuple(r)[5:6] if len(r) > 4 else r,
)  # fmt: skip

# %% [markdown]
# The last row is the limit: no lens can be faster than the matrix product with the unembedding. What
# the kernel gives (`lw.lens` is its labelled form): how far the guess of every layer is from what the
# model says in the end. (Its entropy would mislead: the first layer is *sure*, of what it just read.)

# %%
look = lw.lens(net, text[0], layers=layers[::2], positions=range(1, 25))
own = look.token.isel(prompt=0, top=0, layer=0) == look.token_str.isel(prompt=0)
print(
    f"layer 0 names the very token it reads at {float(own.mean()):.0%} of positions, with an "
    f"entropy of {float(look.entropy.isel(layer=0).mean()):.2f} nats"
)
look.kl.lw.heatmap(title="From each layer's guess to the model's answer: KL, nats")

# %% [markdown]
# ## 2. What rounding costs, at every width at once
#
# Quantising to $b$ bits multiplies, rounds, clamps and multiplies back. Who must choose $b$ wants the
# error of *all* widths, and torch reads and writes the matrix several times for each. The kernel reads
# a group once, and finds the eight errors while it is in registers.


# %%
def table_in_place(w: torch.Tensor, group: int) -> torch.Tensor:
    """The best we can do in torch: one buffer, every step in place."""
    x = w.view(len(w), -1, group)
    buffer = torch.abs(x)
    s = buffer.mean(-1, keepdim=True).half().float()
    out = [buffer.sub_(s).square_().sum()]
    top = x.abs().amax(-1, keepdim=True)
    for bits in range(2, 9):
        s = (top / (2 ** (bits - 1) - 1)).half().float()
        torch.mul(x, 1 / s, out=buffer).round_()
        out.append(buffer.mul_(s).sub_(x).square_().sum())
    return torch.stack(out)


w = torch.randn(2048, 2048, generator=gen) * 0.05
race(
    "error of eight bit-widths", "quant_error_table",
    {
        "quant_error_table": lambda: lw.kernels.quant_error_table(w, 128),
        "torch, in place": lambda: table_in_place(w, 128),
        "reading the matrix once": bench.read(w.nbytes),
    },
    tolerance=1e-8,
    compare=lambda r: (r.error.sum(0) if hasattr(r, "error") else r) / w.numel(),
)  # fmt: skip


# %%
def rounded_to_4(w: torch.Tensor, group: int) -> torch.Tensor:
    """What it means: scale, round, clamp, scale back."""
    x = w.view(len(w), -1, group)
    s = (x.abs().amax(-1, keepdim=True) / 7).half().float()
    return (torch.round(x * (1 / s)).clamp(-7, 7) * s).view_as(w)


race(
    "rounding to 4 bits", "fake_quant",
    {
        "fake_quant": lambda: lw.kernels.fake_quant(w, 4, 128).weight,
        "torch": lambda: rounded_to_4(w, 128),
    },
)  # fmt: skip

# %% [markdown]
# ## 3. Attention, without its pattern
#
# How much does a head look at the first token, how far back, how evenly? The pattern of $T$ positions
# has $T^2$ entries a head; the four numbers wanted of each row do not need it to exist.


# %%
def attention_whole(q: torch.Tensor, k: torch.Tensor) -> tuple:
    """The whole pattern, [heads, T, T]."""
    key = k.repeat_interleave(len(q) // len(k), 0)
    z = q @ key.mT * q.shape[-1] ** -0.5
    z.masked_fill_(torch.ones(z.shape[-2:], dtype=torch.bool).triu_(1), -torch.inf)
    log_a = z.log_softmax(-1)
    a = log_a.exp()
    log_a.masked_fill_(log_a == -torch.inf, 0)
    position = torch.arange(z.shape[-1], dtype=a.dtype)
    return -(a * log_a).sum(-1), a[..., 0], position - a @ position, a.sum(1)


q, k = torch.randn(9, 512, 64, generator=gen), torch.randn(3, 512, 64, generator=gen)
race(
    "attention statistics", "attn_stats",
    {
        "attn_stats": lambda: tuple(lw.kernels.attn_stats(q, k))[:4],
        "torch, the whole pattern": lambda: attention_whole(q, k),
        "matrix product alone": bench.Way(lambda: torch.bmm(q.view(3, -1, 64), k.mT), limit=True),
    },
    tolerance=1e-3,
)  # fmt: skip

# %%
long_q, long_k = torch.randn(9, 1024, 64, generator=gen), torch.randn(3, 1024, 64, generator=gen)
memory = {
    "attn_stats": bench.peak_mb(lambda: lw.kernels.attn_stats(long_q, long_k)),
    "torch, the whole pattern": bench.peak_mb(lambda: attention_whole(long_q, long_k)),
}
print("1,024 positions, MB beyond what was there:", {n: round(m) for n, m in memory.items()})

# %% [markdown]
# ## 4. A gated MLP with a few of its neurons
#
# Making one token reads every weight once; that reading is the cost. If nine neurons in ten can be
# left out, nine rows in ten need not be read. Torch's `W[idx]` copies the rows first, which reads and
# writes them once more; the kernel walks through them where they lie.

# %%
gate, up, down = (torch.randn(4096, 2048, generator=gen) * 0.05 for _ in range(3))
x = torch.randn(1, 2048, generator=gen)
idx = torch.randperm(4096, generator=gen)[:410].sort().values
silu = torch.nn.functional.silu
mask = torch.zeros(4096).index_fill(0, idx, 1)
race(
    "MLP, 10 % of the neurons", "sparse_mlp",
    {
        "sparse_mlp": lambda: lw.kernels.sparse_mlp(x, gate, up, down, idx=idx).y,
        "torch, W[idx]": lambda: (silu(x @ gate[idx].T) * (x @ up[idx].T)) @ down[idx],
        "dense, the others set to zero": lambda: (silu(x @ gate.T) * (x @ up.T) * mask) @ down,
        "reading those weights once": bench.read(410 * 2048 * 3 * 4),
    },
    tolerance=1e-3,
)  # fmt: skip

# %%
dense = (silu(x @ gate.T) * (x @ up.T) * mask) @ down
sparse_error = float((lw.kernels.sparse_mlp(x, gate, up, down, idx=idx).y - dense).abs().max())
del gate, up, down

# %% [markdown]
# ## 5. What needs no kernel
#
# A kernel is kept only where it beats the best torch clearly. Often the right *form* is enough: to
# compare all pairs of layers (CKA), make each layer's Gram matrix once, and all pairs are one more
# product. To decode a sparse code, sum a few rows (`embedding_bag`) in place of a product with zeros.


# %%
def cka_by_pairs(x: torch.Tensor) -> torch.Tensor:
    out = torch.eye(len(x))
    for i in range(len(x)):
        for j in range(i):
            a, b = x[i] - x[i].mean(0), x[j] - x[j].mean(0)
            k, m = a @ a.T, b @ b.T
            out[i, j] = out[j, i] = (k * m).sum() / (k.norm() * m.norm())
    return out


third = streams[::3].contiguous()
race(
    f"CKA of {len(third)} layers, all pairs", "linear_cka",
    {"linear_cka": lambda: linear_cka(third), "a pair at a time": lambda: cka_by_pairs(third)},
    tolerance=1e-3,
)  # fmt: skip

# %%
dictionary = torch.randn(16384, d, generator=gen) / 24
code = lw.features.encode(torch.randn(64, d, generator=gen), dictionary, None, 32)
z = lw.features.dense(code)
race(
    "decoding a sparse code", "features.decode",
    {"features.decode": lambda: lw.features.decode(code, dictionary),
     "dense product": lambda: z @ dictionary},
    tolerance=1e-3,
)  # fmt: skip

# %% [markdown]
# ## All races
#
# Dots are medians, lines the smallest and largest of the rounds. Left of 1 something is faster than
# lwlab: the limits, and they should not be far. With three rounds this shows orders, not decimals.

# %%
every = pd.concat(races)
every["label"] = every.what + ": " + every.way
every = every[every.kind != "subject"]
base = alt.Chart(every).encode(
    y=alt.Y("label:N", sort=None, title=None, axis=alt.Axis(labelLimit=330)),
    color=alt.Color("kind:N", title=None, scale=alt.Scale(
        domain=["peer", "limit"], range=["#0072b2", "#e69f00"])),
)  # fmt: skip
scale = alt.Scale(type="log", domain=[0.01, 100], clamp=True)
lines = base.mark_rule().encode(x=alt.X("least:Q", scale=scale), x2="most:Q")
dots = base.mark_point(filled=True, size=60).encode(
    x=alt.X("times lwlab:Q", scale=scale, title="times lwlab's CPU time"),
    tooltip=["label", alt.Tooltip("times lwlab", format=".2f")],
)
one = alt.Chart(pd.DataFrame({"x": [1]})).mark_rule(strokeDash=[4, 3], color="#666").encode(x="x:Q")
display((one + lines + dots).properties(width=320, title="Everything raced here, against lwlab"))
busy = sorted(every[~every.quiet].what.unique())
print("INCONCLUSIVE (the null pair strayed):", ", ".join(busy) if busy else "none")

# %% [markdown]
# ## Touch
#
# What the error table is for. Rows are layers, columns widths, the colour is the relative error of
# all the layer's matrices. Click a cell: the model runs again with that one layer rounded to that
# width, and says how much worse it predicts the text.

# %%
from lwlab.quantization import error_table, fake_quantized

errors = error_table(net, group=None, bits=(2, 3, 4, 6, 8))
share = errors.error.sum("module") / (errors.error / errors.relative_error).max("bits").sum(
    "module"
)
share = np.log10(share.clip(1e-12))
share.attrs["long_name"] = "log10 of the relative error"
sentence = net.tokens(text[1])


def loss(which) -> float:
    with torch.no_grad():
        logits = which.module(sentence.ids).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits, sentence.ids[0, 1:]))


board = lw.widgets.HeatMap(
    share, x="bits", y="layer", title="Click: round one layer, run the model",
    subtitle="one scale for each row of a matrix",
)  # fmt: skip
before = loss(net)


def round_one(pick):
    layer, bits = int(pick["layer"]), int(pick["bits"])
    with fake_quantized(net, {layer: bits}, group=None) as rounded:
        after = loss(rounded.model)
    return f"Layer {layer} at {bits} bits: {before:.3f} -> {after:.3f} nats a token."


board.on_pick(round_one)
board.pick(1, 0)
board

# %% [markdown]
# ## Claims
#
# Speed is shown above and not claimed: it is the machine's as much as the code's. What is claimed is
# that the fast way gives the same answer.

# %%
same = {"seed": seed, "model": net}
lw.claim(
    "how-fast.lens-is-its-definition", kind="exact", measured=lens_error, expect="< 1e-3", **same,
    statement="log-probabilities, entropy and KL of the lens kernel, against float64, nats",
    n=h.shape[0] * h.shape[1],
)  # fmt: skip

# %%
lw.claim(
    "how-fast.shown-is-library", kind="exact", measured=shown_error, expect="< 1e-3", **same,
    statement="the entropy in blocks written out above is the kernel's", n=shown.numel(),
)  # fmt: skip

# %%
silent = lw.kernels.lens_stats(torch.zeros(2, 3, d), None, W_U, torch.zeros(3, dtype=torch.long))
first = stats(h, None, some, found.ids[-1, :, 0])
wrong = max(
    float((silent.entropy - math.log(V)).abs().max()),
    float(found.kl[-1].abs().max()),
    float(first.rank[-1].abs().max()),
)
lw.claim(
    "how-fast.lens-known-answers", kind="exact", measured=wrong, expect="< 1e-3", **same,
    statement="a zero stream has entropy ln V, KL of a layer to itself is 0, the likeliest token "
    "has rank 0", n=3,
)  # fmt: skip

# %%
w4 = lw.kernels.fake_quant(w, 4, 128).weight
again = lw.kernels.quant_error_table(w4, 128).error[:, 3].sum()
lw.claim(
    "how-fast.representable-is-free", kind="exact", measured=float(again), expect="== 0", **same,
    statement="weights that lie on the 4-bit grid have no error at 4 bits", n=w.numel(),
)  # fmt: skip

# %%
direct = ((w - w4).double() ** 2).sum()
told = lw.kernels.quant_error_table(w, 128, 4).error.sum()
lw.claim(
    "how-fast.table-is-rounding", kind="exact", measured=float((told / direct - 1).abs()),
    expect="< 1e-5", statement="the table's error is that of really rounding", n=w.numel(), **same,
)  # fmt: skip

# %%
flat = lw.kernels.attn_stats(torch.zeros(9, 64, 16), torch.zeros(3, 64, 16))
count = torch.arange(1, 65, dtype=torch.float32)
lw.claim(
    "how-fast.uniform-attention", kind="exact", expect="< 1e-5", n=9 * 64, **same,
    measured=max(float((flat.entropy - count.log()).abs().max()),
                 float((flat.sink - 1 / count).abs().max())),
    statement="equal scores: position t has entropy ln(t + 1) and gives the first token 1/(t + 1)",
)  # fmt: skip

# %%
whole, fused = attention_whole(q, k), lw.kernels.attn_stats(q, k)
lw.claim(
    "how-fast.attention-is-its-pattern", kind="exact", expect="< 1e-3", n=9 * 512, **same,
    measured=max(float((a - b).abs().max()) for a, b in zip(fused[:4], whole)),
    statement="entropy, sink, distance and column mass are those of the whole pattern",
)  # fmt: skip

# %%
lw.claim(
    "how-fast.sparse-is-dense-with-zeros", kind="exact", measured=sparse_error, expect="< 1e-3",
    statement="a set of neurons gives what the dense MLP gives with the others set to zero",
    n=2048, **same,
)  # fmt: skip

# %%
gap = float((linear_cka(third) - cka_by_pairs(third)).abs().max())
lw.claim(
    "how-fast.all-pairs-are-the-pairs", kind="exact", measured=gap, expect="< 1e-3", **same,
    statement="CKA of all pairs at once is CKA of each pair", n=len(third) ** 2,
)  # fmt: skip

# %%
gap = float((lw.features.decode(code, dictionary) - z @ dictionary).abs().max())
lw.claim(
    "how-fast.sparse-decode-is-dense", kind="exact", measured=gap, expect="< 1e-3", **same,
    statement="summing active features is the product with the dense code", n=z.shape[0],
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **Where does it stop paying?** Keep half of the neurons, or all of them: when does `sparse_mlp`
#    lose to the dense MLP, and why?
# 2. **More positions.** Look at eight positions in place of two (`h[:, :8]`). Whose time grows in
#    proportion, and whose memory?
# 3. **Another backend.** `backend="torch"` forces the definition. How far is it from the kernel?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. Reading is the cost, so the gain ends where nearly everything is read; rows read one by one
#    come slower than whole matrices, so it ends before that.
gate, up, down = (torch.randn(4096, 1024, generator=gen) * 0.05 for _ in range(3))
x = torch.randn(1, 1024, generator=gen)
for keep in (0.1, 0.5, 1.0):
    idx = torch.randperm(4096, generator=gen)[: int(4096 * keep)].sort().values
    mask = torch.zeros(4096).index_fill(0, idx, 1)
    row = bench.measure(
        bench.Case("", "sparse", {
            "sparse": lambda i=idx: lw.kernels.sparse_mlp(x, gate, up, down, idx=i).y,
            "dense": lambda m=mask: (silu(x @ gate.T) * (x @ up.T) * m) @ down,
        }, tolerance=1e-3), 3)  # fmt: skip
    print(f"{keep:.0%} of the neurons: dense takes {row['ways'][1]['ratio']['median']:.1f} times")

# %% jupyter={"source_hidden": true}
# 2. Time grows in proportion for all (it is the product); memory only where logits are kept.
for t in (2, 8):
    part = h[:8, :t].contiguous()
    for name, call in (
        ("lens_stats", lambda x=part: stats(x, None, W_U)),
        ("all logits", lambda x=part: (x @ W_U.T).log_softmax(-1).exp().sum(-1)),
    ):
        call()
        print(f"{t} positions, {name}: {bench.peak_mb(call):.0f} MB")

# %% jupyter={"source_hidden": true}
# 3. All backends are held to the same float64 definition; they differ in the last digits.
plain = lw.kernels.lens_stats(h[:, :2], None, W_U, targets[:2], backend="torch")
fast = lw.kernels.lens_stats(h[:, :2], None, W_U, targets[:2])
print(plain.backend, fast.backend, float((plain.entropy - fast.entropy).abs().max()))
