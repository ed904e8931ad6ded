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
#     id: pre-rmsnorm
#     family: normalization
#     title: "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers"
#     paper: "2305.14858"
#     cost: {seconds: 40, memory_mb: 1500}
#     model: toys/char-gpt2
# ---

# %% [markdown]
# # Pre-RMSNorm: LayerNorm's mean, moved out of the model
#
# **The idea in one sentence:** a Pre-LN transformer never sees the mean of its residual stream, so
# take the mean out of everything that *writes* to the stream, once, and every LayerNorm may become
# the cheaper RMSNorm without changing the function.
#
# Jiang, Gu, Zhu & Pan 2023, [arXiv:2305.14858](https://arxiv.org/abs/2305.14858) ·
# [their code](https://github.com/ZixuanJiang/pre-rmsnorm-transformer)
#
# **Cost**: 40 s on one CPU core, 1.5 GB of memory (nearly all of it for SmolLM2, the second model;
# the first use of the small GPT-2 trains it, a minute or two). Any Pre-LN decoder will do: GPT-2,
# OPT, Pythia, Phi, OLMo, `lwlab run pre-rmsnorm -p model=gpt2`. The pinned verdicts are those of
# `toys/char-gpt2`; the exact claims were also tried on random GPT-2, OPT, Pythia and Phi models.

# %% tags=["parameters"]
from typing import Literal

model: str = "toys/char-gpt2"  # a Pre-LN model: a name, a Hugging Face id or a folder
rms_model: str = "smollm2-135m"  # trained with RMSNorm from the start; "" leaves it out
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full takes four times the text
n: int = 4  # texts
length: int = 96  # tokens of each
seed: int = 0

# %%
import numpy as np
import torch
import xarray as xr

import lwlab as lw
from lwlab.normalization import compare, convert, norms, sgd_step, shifted, stream_mean, untied

lw.charts.enable()
net = lw.load(model)
reads = norms(net)  # where the stream is read through a norm
converted = convert(net)  # the method in one call; it refuses what is not Pre-LN, saying why
length = min(length, net.max_tokens or length)
count = n if profile == "quick" else 4 * n


def texts_for(m: lw.Model, n: int) -> torch.Tensor:
    """Beginnings of `n` long texts, as token ids of equal length."""
    found = []
    for text in lw.tasks.corpus("pydoc", seed=seed):
        ids = torch.as_tensor(m.tokenizer(text[: 12 * length], verbose=False)["input_ids"])
        if len(ids) >= length:
            found.append(ids[:length])
    return torch.stack(found[:n])


ids = texts_for(net, count)
net

# %% [markdown]
# ## The idea in one picture
#
# LayerNorm takes out the mean, then divides by the standard deviation; RMSNorm only divides.
#
# $$\mathrm{LN}(x) = g \odot \frac{x - \bar x}{\sqrt{\overline{(x - \bar x)^2} + \epsilon}} + b
# \qquad
# \mathrm{RMS}(x) = g \odot \frac{x}{\sqrt{\overline{x^2} + \epsilon}} + b$$
#
# They are the same wherever $\bar x = 0$. So lift one real activation by a constant $c$, and see
# how far each norm's output moves:

# %%
norm = net.module.get_submodule(reads[0].path)
gain, bias = (getattr(norm, k, None) for k in ("weight", "bias"))
x = lw.cache(net, ids[:1], "resid_pre", layers=0, positions=5).resid_pre.values.ravel()
x = torch.as_tensor(x)
cs = np.linspace(-1, 1, 21)


def ln(h: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(h, h.shape, gain, bias, reads[0].eps)


both = {"LayerNorm": ln, "RMSNorm": lw.normalization.RMSNorm(gain, bias, reads[0].eps)}
moves = []
with torch.no_grad():
    h = x - x.mean()
    for f in both.values():
        moves.append([float((f(h + c * h.std()) - f(h)).norm()) for c in cs])
picture = lw.results.label(
    np.array(moves), ("norm", "c"), {"norm": list(both), "c": cs},
    name="distance that the output moved",
)  # fmt: skip
picture.lw.profile(
    x="c", title="Adding c standard deviations to every coordinate", subtitle="", height=200
)

# %% [markdown]
# ## The method
#
# In a Pre-LN model everything that reads the stream reads it through a LayerNorm. What lies along
# $\mathbf 1 = (1, \dots, 1)$ is never seen, and can be projected out where it is *written*, with
# $P = I - \tfrac1d \mathbf 1 \mathbf 1^\top$:
#
# * token and position embeddings, $E \leftarrow P E$;
# * every matrix whose output is added to the stream (attention's $W_O$, the MLP's $W_{down}$) with
#   its bias, $W \leftarrow P W,\; c \leftarrow P c$;
# * the unembedding *reads* the stream, so it stays; where it shares its weights with the embedding
#   it gets its own.
#
# Then $\bar x_l = 0$ at every layer $l$. Written out, in float64:

# %%
by_hand = untied(net, torch.float64)
weights = by_hand.module
with torch.no_grad():
    for path in lw.normalization.writers(net):
        part = weights.get_submodule(path)
        out_axis = 0 if isinstance(part, torch.nn.Linear) else -1  # GPT-2 stores [in, out]
        part.weight -= part.weight.mean(out_axis, keepdim=True)
        if getattr(part, "bias", None) is not None:
            part.bias -= part.bias.mean()
for r in reads:
    old = weights.get_submodule(r.path)
    bare = lw.normalization.RMSNorm(getattr(old, "weight", None), getattr(old, "bias", None), r.eps)
    weights.set_submodule(r.path, bare)
by_hand = lw.wrap(weights, tokenizer=net.tokenizer, name="by hand")
[f"{r.name} reads {r.reads}" for r in reads]

# %% [markdown]
# The library's function does the same, and two more things: it compresses (**CRMSNorm**: a vector
# whose sum is 0 needs only its first $d - 1$ numbers, and its norm is
# $\sqrt{(\sum_i x_i^2 + (\sum_i x_i)^2) / d}$), and it can be wrong on purpose.

# %%
f64, f32 = torch.float64, torch.float32
exact64 = untied(net, f64)
rms, crms = convert(net, "rms", dtype=f64), convert(net, "crms", dtype=f64)
naive = convert(net, "rms", recentre=False, dtype=f64)
generator = torch.Generator().manual_seed(seed)
elsewhere = [
    convert(net, "ln", along=torch.randn(net.d_model, generator=generator), dtype=f64)
    for _ in range(5)
]
variants = {
    "Pre-RMSNorm": rms,
    "Pre-CRMSNorm": crms,
    "written out above": by_hand,
    "not recentred": naive,
    **{f"another direction, {i + 1}": m for i, m in enumerate(elsewhere)},
}
found = compare(exact64, variants, ids)
in32 = compare(net, {"Pre-RMSNorm": converted, "Pre-CRMSNorm": convert(net, "crms")}, ids)
frame = found.to_dataframe()
frame.loc["Pre-RMSNorm, float32"] = in32.to_dataframe().loc["Pre-RMSNorm"]
frame.loc["Pre-CRMSNorm, float32"] = in32.to_dataframe().loc["Pre-CRMSNorm"]
frame.rename(columns={"max_abs": "max |Δ logit|", "relative": "relative", "kl": "KL, nats"})

# %% [markdown]
# ## Results
#
# ### One function
#
# The three networks agree to the last few bits. Swapping the norms *without* recentring does not,
# and neither does taking out some *other* direction (five random ones): only $\mathbf 1$ is
# invisible. In pictures, the largest difference of a logit on a logarithmic scale:

# %%
import altair as alt

rows = frame.reset_index().rename(columns={"variant": "network"})
rows["kind"] = ["exact" if r < 1e-4 else "not the same function" for r in rows.relative]
alt.Chart(rows).mark_point(filled=True, size=90, opacity=1).encode(
    x=alt.X("relative:Q", scale=alt.Scale(type="log"), title="max |Δ logit| / max |logit|"),
    y=alt.Y("network:N", sort=list(rows.network), title=None),
    color=alt.Color("kind:N", title=None, scale=alt.Scale(range=["#0072b2", "#d55e00"])),
    tooltip=["network", alt.Tooltip("relative:Q", format=".2g")],
).properties(width=330, height=210, title="Who computes the same function?")

# %% [markdown]
# ### Where the mean is
#
# How much of the stream lies along $\mathbf 1$ at all: $|\bar x| / \mathrm{rms}(x) = |\cos(x,
# \mathbf 1)|$, median over texts and positions, the first position left out. Beside it what a random
# direction gets, and a model that was trained with RMSNorm from the start, which *could* use its
# mean.


# %%
def median_share(m: lw.Model, tokens: torch.Tensor) -> xr.Dataset:
    d = stream_mean(m, tokens, seed=seed)
    share = d.share.isel(position=slice(1, None)).median(("prompt", "position"))
    return xr.Dataset({"the mean": share, "random directions": d.random.median("draw")})


shares = median_share(net, ids)
shares.attrs = {"long_name": "|cos|"}
shares.lw.profile(
    x="layer", title=f"{net.name}: how much of the stream is mean", subtitle="", height=180
)

# %%
if rms_model:
    other = lw.load(rms_model)
    other_ids = texts_for(other, count)
    other_shares = median_share(other, other_ids)
    other_shares.attrs = {"long_name": "|cos|"}
    chart = other_shares.lw.profile(
        x="layer", title=f"{other.name}: how much of the stream is mean", subtitle="", height=180
    )
else:
    chart = "no second model was asked for"
chart

# %% [markdown]
# In the LayerNorm model the gradient of the loss with respect to what is written has no component
# along $\mathbf 1$ whatsoever, and it keeps less there than chance. In an RMSNorm model nothing
# forbids a mean; SmolLM2 keeps about as much as along any random direction, a little more in its
# last layer. So a norm without the mean costs a model little, and one could forget to recentre and
# hardly notice: in nats the wrong conversion above is small, but it is not the same function.
#
# ### Training
#
# Converted weights move differently: plain gradient descent on $PW$ puts something along
# $\mathbf 1$ again. If the gradient is projected too, $G \leftarrow P G$, both models stay one
# function, step after step, because $\partial L / \partial W = P \, \partial L / \partial (PW)$.

# %%
batch = ids[:2, :32]
lr = 0.1
ours, theirs, loose = exact64, rms, rms
steps = []
for _ in range(3):
    ours = sgd_step(ours, batch, lr)
    theirs = sgd_step(theirs, batch, lr, project=True)
    loose = sgd_step(loose, batch, lr)
    after = compare(ours, {"projected": theirs, "not projected": loose}, batch)
    steps.append(after.relative)
trained = xr.concat(steps, "step").assign_coords(step=[1, 2, 3])
trained.to_series().unstack("variant").rename_axis("SGD steps").map("{:.1e}".format)

# %% [markdown]
# ### What it saves
#
# RMSNorm spares LayerNorm's mean: $d$ additions and $d$ subtractions a norm and token. CRMSNorm
# stores $d - 1$ numbers in place of $d$. Next to the matrices that is very little arithmetic (the
# paper saves time on GPUs, where a norm is a wait for memory):

# %%
import time


def seconds(m: lw.Model) -> float:
    with torch.inference_mode():
        start = time.process_time()
        m.module(ids)
        return time.process_time() - start


forms = {"Pre-LN": untied(net), "Pre-RMSNorm": convert(net), "Pre-CRMSNorm": convert(net, "crms")}
for k, m in forms.items():
    weights_of = sum(p.numel() for p in m.module.parameters())
    took = min(seconds(m) for _ in range(5))
    print(f"{k:13} {weights_of:,} weights, {1000 * took:.1f} ms of CPU time here")
kinds_of = (torch.nn.Embedding, torch.nn.LayerNorm)
matrices = sum(
    p.numel() for part in forms["Pre-LN"].module.modules() if not isinstance(part, kinds_of)
    for p in part.parameters(recurse=False) if p.ndim == 2
)  # fmt: skip
arithmetic = len(reads) * 2 * net.d_model / (2 * matrices)
print(f"spared: {arithmetic:.2%} of the arithmetic of the matrices (attention not counted)")

# %% [markdown]
# ## Touch
#
# Add $c$ to every coordinate of the stream at some layer. LayerNorm cannot notice. An RMSNorm can,
# which is why its model has to be recentred first: the converted model is equal *where the mean is
# zero*, and nowhere else.

# %%
from lwlab.normalization.panel import ShiftPanel

start = net.tokenizer.decode(ids[0, :40])
panel = ShiftPanel(
    {"Pre-LN": exact64, "Pre-LN, recentred": convert(net, "ln", dtype=f64), "Pre-RMSNorm": rms,
     "not recentred": naive},
    start,
)  # fmt: skip
panel.set(c=0.25)

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
same = {"n": len(ids), "seed": seed, "model": net}
lw.claim(
    "pre-rmsnorm.same-function", kind="exact", expect="< 1e-12", **same,
    measured=float(found.relative.sel(variant="Pre-RMSNorm")),
    statement="Pre-LN and Pre-RMSNorm: largest difference of a logit over the largest logit, "
    "float64", paper="abstract",
)  # fmt: skip

# %%
lw.claim(
    "pre-rmsnorm.same-function-compressed", kind="exact", expect="< 1e-12", **same,
    measured=float(found.relative.sel(variant="Pre-CRMSNorm")),
    statement="Pre-LN and Pre-CRMSNorm, which stores d - 1 numbers: the same", paper="abstract",
)  # fmt: skip

# %%
lw.claim(
    "pre-rmsnorm.same-function-float32", kind="exact", measured=float(in32.relative.max()),
    expect="< 1e-5", statement="in single precision, the worse of the two", **same,
)  # fmt: skip

# %%
lw.claim(
    "pre-rmsnorm.shown-is-library", kind="exact", expect="< 1e-12", **same,
    measured=float(found.relative.sel(variant="written out above")),
    statement="the conversion written out above gives the logits of the original, as the "
    "library's does",
)  # fmt: skip

# %%
centred = stream_mean(rms, ids, draws=1).share
lw.claim(
    "pre-rmsnorm.mean-is-zero", kind="exact", measured=float(centred.max()), expect="< 1e-12",
    statement="|mean| / rms of the converted stream, the largest of all layers and positions",
    **same,
)  # fmt: skip

# %%
moved = {
    k: float((shifted(m, ids[:1], 1.0) - shifted(m, ids[:1], 0.0)).abs().max())
    for k, m in {"ln": exact64, "rms": rms}.items()
}
lw.claim(
    "pre-rmsnorm.ln-is-blind-to-shifts", kind="exact", measured=moved["ln"], expect="< 1e-9",
    statement="1 on every coordinate of the first stream: largest change of a logit, Pre-LN",
    **{**same, "n": 1},
)  # fmt: skip

# %%
lw.claim(
    "pre-rmsnorm.trains-alike", kind="exact", expect="< 1e-9", **{**same, "n": len(batch)},
    measured=float(trained.sel(variant="projected").max()),
    statement="three steps of SGD with projected gradients: still one function (relative)",
    paper="abstract: equivalent in training",
)  # fmt: skip

# %%
width = {k: m.d_model for k, m in {"ln": net, "crms": crms}.items()}
lw.claim(
    "pre-rmsnorm.one-number-less", kind="exact", measured=width["ln"] - width["crms"],
    expect="== 1", statement="width of the stream, Pre-LN less Pre-CRMSNorm",
    **{**same, "n": None, "seed": None},
)  # fmt: skip

# %% [markdown]
# ### Placebos: it has to be this mean, and it has to be taken out

# %%
pin = {"toys/char-gpt2": "reproduced"}
lw.claim(
    "pre-rmsnorm.recentring-needed", kind="paper", expect="> 1e-3", pinned=pin, **same,
    measured=float(found.relative.sel(variant="not recentred")),
    statement="norms swapped without recentring: relative change of the logits",
)  # fmt: skip

# %%
random_gap = min(float(found.relative.sel(variant=v)) for v in variants if "another" in v)
lw.claim(
    "pre-rmsnorm.only-this-direction", kind="paper", measured=random_gap, expect="> 1e-2",
    statement="a random direction taken out in place of the mean, the least change of five",
    pinned=pin, **same,
)  # fmt: skip

# %%
lw.claim(
    "pre-rmsnorm.projection-needed", kind="paper", expect="> 1e-4", pinned=pin,
    measured=float(trained.sel(variant="not projected", step=1)),
    statement="one step of SGD without projected gradients: relative change of the logits",
    **{**same, "n": len(batch)},
)  # fmt: skip

# %% [markdown]
# ### What the paper says of the price
#
# Time on a shared CPU is noise (and torch's LayerNorm is one fused routine there, its RMSNorm is
# not), so it is printed above and not judged. Arithmetic can be counted.

# %%
lw.claim(
    "pre-rmsnorm.saves-arithmetic", kind="paper", measured=arithmetic, expect="in [0.01, 0.10]",
    statement="share of the arithmetic that Pre-RMSNorm spares (paper: 1 to 10 % of the time)",
    paper="abstract", n=1, model=net, pinned={"toys/char-gpt2": "not reproduced"},
    note="what is saved is not arithmetic: on GPUs a norm costs memory traffic and launches",
)  # fmt: skip

# %% [markdown]
# ### What the paper does not ask

# %%
if rms_model:
    lw.claim(
        "pre-rmsnorm.rms-models-have-no-mean", kind="paper", expect="< 0.1",
        measured=float(other_shares["the mean"].max()), n=len(other_ids), seed=seed, model=other,
        pinned={"smollm2-135m": "reproduced"},
        statement="a model trained with RMSNorm keeps its mean small by itself: |mean| / rms, "
        f"median, largest of all layers (random directions: "
        f"{float(other_shares['random directions'].max()):.3f})",
    )  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **How wrong is forgetting?** Convert without recentring, and measure the loss (nats a token) of
#    the three networks on the texts. Would you have noticed from the loss alone?
# 2. **The other way round.** Put the mean subtraction *into* a model that was trained without it:
#    subtract the mean of the stream before every block. How much does the answer change?
# 3. **Which writer matters?** Leave out the centring of one kind of writer (embeddings, attention,
#    MLPs) in the code above. Which one is the worst to forget?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.


# %% jupyter={"source_hidden": true}
# 1. The wrong conversion costs next to nothing here, so a test on the loss would not have found it.
def loss(m: lw.Model) -> float:
    with torch.no_grad():
        z = m.module(ids).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(z.flatten(0, 1), ids[:, 1:].flatten()))


for name, m in {"Pre-LN": exact64, "Pre-RMSNorm": rms, "not recentred": naive}.items():
    print(f"{name:15} {loss(m):.6f} nats a token")

# %% jupyter={"source_hidden": true}
# 2. Every stream is replaced by itself less its mean: a patch with a function, at all layers.
subject = other if rms_model else naive
prompt = texts_for(subject, 1)
less = {f"resid_pre.{i}": lambda h: h - h.mean(-1, keepdim=True) for i in range(subject.n_layers)}
run = lw.patch(subject, prompt, less)
print(f"{subject.name}: KL of the next token {float(run.moved.mean()):.2g} nats")

# %% jupyter={"source_hidden": true}
# 3. One kind of writer at a time keeps its mean.
kinds = {"embeddings": ("wte", "wpe", "embed"), "attention": ("attn",), "MLPs": ("mlp", "fc2")}
paths = lw.normalization.writers(net)
for kind, words in kinds.items():
    forgotten = [p for p in paths if any(w in p for w in words)]
    part = convert(net, "rms", dtype=f64)
    for path in forgotten:
        mine, original = (m.module.get_submodule(path) for m in (part, exact64))
        mine.load_state_dict(original.state_dict())
    gap = compare(exact64, {kind: part}, ids).relative.item()
    print(f"{kind:10} forgotten ({len(forgotten)} matrices): relative change {gap:.1e}")
