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
#     id: nirvana
#     family: pruning
#     title: "NIRVANA: Structured pruning reimagined for large language models compression"
#     paper: "2509.14230"
#     cost: {seconds: 50, memory_mb: 1700}
#     model: smollm2-135m
# ---

# %% [markdown]
# # NIRVANA: which neurons and heads can be cut out for good?
#
# **The idea in one sentence:** ask how much every weight moves the network's output when it is
# trained with Adam, add that up over each neuron and each group of heads, and cut the lowest of the
# whole network at once, MLPs harder than attention.
#
# Ai, Wei, Chen & He 2025, [arXiv:2509.14230](https://arxiv.org/abs/2509.14230) ·
# [their code](https://github.com/iDEA-iSAIL-Lab-UIUC/NIRVANA)
#
# They prune Llama-3.1-8B by 20 to 50 %. Here a model 60 times smaller is cut by 10 and 20 %, without
# any training afterwards, against random, magnitude and Wanda-like choices of the same size. The cut
# model is really smaller: it loads, saves, generates, and costs less.
#
# **Cost** with SmolLM2-135M: under a minute on two CPU cores, 1.7 GB of memory. Any decoder with
# separate heads and neurons will do (GPT-2, Llama, Qwen, Gemma, Pythia, OPT, Phi):
# `lwlab run nirvana -p model=gpt2`. Also tried: `toys/char-llama`, `toys/char-gpt2`.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full takes longer texts
source: str = "pydoc"  # what is read: "pydoc", a file, a folder or a Hugging Face dataset
gamma: float = 3.0  # how much harder MLPs are cut than attention
seed: int = 0

# %%
import tempfile
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import torch
import xarray as xr

import lwlab as lw
from lwlab.depth import footprint, speed
from lwlab.pruning import (
    allocate,
    calibrations,
    kernel,
    prune,
    pruned_losses,
    rates,
    scores,
    silence,
    write_model,
)
from lwlab.pruning.board import PruneBoard
from lwlab.pruning.nirvana import output

lw.charts.enable()
net = lw.load(model)
little = net if net.name == "toys/char-llama" else lw.load("toys/char-llama")
quick = profile == "quick"
most = net.max_tokens or 1024
length, judged = (min(most, x) for x in ((48, 48) if quick else (128, 128)))  # tokens
given, asked = (2, 4) if quick else (32, 32)  # texts to score on, and to judge on
texts = lw.tasks.corpus(source, n=given + asked, tokens=length, model=net, seed=seed)
known, unseen = texts[:given], texts[given:]
print(net)
print(f"scored on {given} texts of {length} tokens, judged on {judged} of {asked} more")

# %% [markdown]
# ## The idea in one picture
#
# Score every neuron of every layer. One threshold for the whole network decides: what lies below it
# goes. Half of a layer's neurons lie in the dark band, nine in ten in the light one.

# %%
s = scores(net, known, seed=seed)
keep = allocate(s, 0.1, gamma)
log = np.log10(s.mlp)
bands = log.quantile([0.05, 0.25, 0.5, 0.75, 0.95], "neuron").T.to_pandas()
bands.columns = ["low", "lower", "middle", "upper", "high"]
cutoff = float(log.where(~keep.mlp).max())
base = alt.Chart(bands.reset_index().round(3)).encode(x=alt.X("layer:Q", title="layer"))
title = "log10 of the score"
(
    base.mark_area(opacity=0.25).encode(y=alt.Y("low:Q", title=title, scale=alt.Scale(zero=False)),
                                        y2="high:Q")
    + base.mark_area(opacity=0.5).encode(y="lower:Q", y2="upper:Q")
    + base.mark_line().encode(y="middle:Q")
    + alt.Chart(pd.DataFrame({"y": [round(cutoff, 3)]})).mark_rule(
        color="#d55e00", strokeDash=[4, 3]).encode(y="y:Q")
).properties(width=460, height=220, title=f"{net.name}: below the dashed line, 10 % are cut")  # fmt: skip

# %% [markdown]
# ## The method
#
# Adam moves a weight by the *sign* of its gradient. So after a step on $x'$ the output changes by the
# kernel
#
# $$K(x, x') = \sum_i \frac{\partial f(x)}{\partial w_i}\,
#   \mathrm{sign}\frac{\partial f(x')}{\partial w_i},$$
#
# in which a weight's part of $K(x, x)$ is $|\partial f/\partial w_i|$; and without the weight, $f$
# changes by $w_i\,\partial f/\partial w_i$ to first order. The score is $|w_i\,\partial f/\partial
# w_i|$, summed over everything that goes with a **unit**: a neuron's row of gate and up and its column
# of down; a key/value head, all the query heads that read it, and their columns of o. For $f$ no labels
# are needed: the highest logit of each word of the vocabulary over the positions, averaged over words
# and texts. Written out for one layer, on a small Llama that reads letters:

# %%
letters = lw.tasks.corpus("pydoc", n=12, tokens=96, model=little, seed=seed)
tokens = little.tokens(letters[:4])


def f(m: lw.Model) -> torch.Tensor:
    """Mean over texts and vocabulary of the highest logit at any position."""
    return output(m.module(tokens.ids, attention_mask=tokens.mask).logits, tokens.mask)


mlp = little.module.model.layers[1].mlp
weights = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight]
gradients = torch.autograd.grad(f(little), weights)
part = [(w * g).abs().detach().numpy() for w, g in zip(weights, gradients)]
by_hand = part[0].sum(1) + part[1].sum(1) + part[2].sum(0)
s_little = scores(little, letters[:4])
shown = float(np.abs(by_hand / s_little.mlp.sel(layer=1).values - 1).max())
print(f"largest relative difference to the library's: {shown:.1e}")

# %% [markdown]
# **The budget.** Of $A$ weights in attention and $M$ in MLPs, $s\,(A + M)$ are to go. With
# $s_{mlp} = s\,(A + M)/(M + A/\gamma)$ and $s_{attn} = s_{mlp}/\gamma$ they do, and attention is cut
# $\gamma$ times less. Of each kind the lowest go, wherever they are; one group of heads stays in each
# layer, and widths are rounded up to multiples of 8.

# %%
small = prune(net, keep)
for part_ in keep:
    print(f"{part_}: {100 * keep[part_].attrs['rate']:.1f} % of the units are to go")
print(f"really cut: {100 * keep.attrs['cut']:.2f} % of the weights of the blocks")
print(lw.generate(small, "The capital of France is", 8).text.values[0])
print(small)

# %% [markdown]
# **To cut is not to mask.** A neuron that is multiplied by zero costs what it cost before. `prune`
# makes narrower matrices, `silence` puts zeros into the wide ones; their logits must be the same.

# %%
ids = net.tokens(unseen[0]).ids[:, :judged]
with torch.no_grad():
    narrow = small.module(ids).logits
    masked = silence(net, keep).module(ids).logits
same = float((narrow - masked).abs().max() / masked.abs().max())
print(f"cut against silenced: logits differ by {same:.1e} of the largest")
del small, narrow, masked

# %% [markdown]
# ## Results
#
# ### Which choice costs least?
#
# The same number of units of each kind, chosen by four scores (random: three draws) with one threshold
# for all layers; then by NIRVANA and Wanda with the same number cut in every layer ("uniform"), which
# is how Wanda is used; then 20 %, with and without mercy on attention.

# %%
wanda, magnitude = (scores(net, known, c) for c in ("wanda", "magnitude"))
draws = {f"random {i}": scores(net, criterion="random", seed=seed + i) for i in range(3)}
rivals = {"nirvana": s, **draws, "magnitude": magnitude, "wanda": wanda}
keeps = {name: allocate(x, 0.1, gamma) for name, x in rivals.items()}
keeps |= {f"{name}, uniform": allocate(rivals[name], 0.1, gamma, across="uniform")
          for name in ("nirvana", "wanda")}  # fmt: skip
keeps["nirvana 20 %"] = allocate(s, 0.2, gamma)
keeps["nirvana 20 %, gamma 1"] = allocate(s, 0.2, 1.0)
found = pruned_losses(net, keeps, unseen, judged)
mean = found[["nll", "kl"]].weighted(found.tokens).mean("prompt")
table = mean.to_dataframe().round(3)
table["perplexity"] = np.exp(table.nll).round(1)
table["weights cut, %"] = [
    0.0, *(100 * k.attrs["cut"] for k in keeps.values())
]  # fmt: skip
table.round(2)

# %% [markdown]
# The score is worth a lot: what it picks can go, what the size of the weights picks cannot, and Wanda's
# norms grow with depth, so that one threshold empties the first layers. Where the cuts fall matters
# less: the same number in every layer does as well here, and then so does Wanda.
#
# ### What each one leaves of every layer

# %%
widths = pd.concat(
    pd.DataFrame({"score": name, "layer": range(net.n_layers),
                  "kept": (100 * keeps[name].mlp.mean("neuron").values).round(1)})
    for name in ("nirvana", "wanda", "magnitude", "random 0")
)  # fmt: skip
groups = {
    name: int((~keeps[name].attn).sum())
    for name in ("nirvana", "wanda", "magnitude", "random 0")
}  # fmt: skip
print("key/value groups cut:", groups)
order = ["nirvana", "wanda", "magnitude", "random 0"]
alt.Chart(widths).mark_line(point=alt.OverlayMarkDef(size=14)).encode(
    x=alt.X("layer:Q"), y=alt.Y("kept:Q", title="neurons kept, %"),
    color=alt.Color("score:N", sort=order, title=None),
    strokeDash=alt.StrokeDash("score:N", sort=order, legend=None),
).properties(width=460, height=210, title=f"{net.name}: neurons kept at 10 %")  # fmt: skip

# %% [markdown]
# ### Size and speed, measured
#
# The whole model and the one with 20 % cut, in turn, in one process, after one round that does not
# count. Times are CPU time on one thread; they are shown, and no claim rests on them.

# %%
models = {"whole": net, "20 % cut": prune(net, keeps["nirvana 20 %"], check=False)}
size = footprint(models, tokens=judged)
pace = speed(models, prompt=min(32, judged), new=3, rounds=3, seed=seed)
summary = size.to_dataframe()
for phase in ("prefill", "decode"):
    summary[f"{phase}, times faster"] = pace.speedup.sel(phase=phase).median("round")
del models
summary.round(2).T

# %% [markdown]
# The embedding, a fifth of this model's weights, is not cut, so that the whole shrinks less than its
# blocks.
#
# ### Does the score say what happens to $f$?
#
# On the small Llama, where it can be tried: the twenty lowest neurons, each taken out alone. A score
# bounds the *linear* part of the change; the rest is curvature.

# %%
order20 = np.dstack(np.unravel_index(np.argsort(s_little.mlp.values, None)[:20],
                                     s_little.mlp.shape))[0]  # fmt: skip
with torch.no_grad():
    whole_f = float(f(little))
    ratios = []
    for layer, neuron in order20:
        one = xr.ones_like(s_little[["mlp"]], dtype=bool)
        one.mlp[layer, neuron] = False
        change = abs(float(f(silence(little, one))) - whole_f)
        ratios.append(change / float(s_little.mlp[layer, neuron]))
within = float(np.mean(np.array(ratios) <= 3))
print("|change of f| / score:", np.round(ratios, 2))

# %% [markdown]
# ### Does cutting by the kernel keep the kernel?
#
# $K$ between four texts before and after 10 % are cut from the small Llama: relative change.

# %%
k0 = kernel(little, letters[:4]).values
others = {
    "nirvana": s_little,
    "magnitude": scores(little, criterion="magnitude"),
    **{f"random {i}": scores(little, criterion="random", seed=seed + i) for i in range(5)},
}


def kernel_change(score: xr.Dataset) -> float:
    """Frobenius norm of the change over that of the kernel."""
    less = prune(little, allocate(score, 0.1, gamma), check=False)
    return float(np.linalg.norm(kernel(less, letters[:4]).values - k0) / np.linalg.norm(k0))


moved = {name: kernel_change(x) for name, x in others.items()}
random_moved = float(np.median([moved[f"random {i}"] for i in range(5)]))
print({k: round(v, 3) for k, v in moved.items()})

# %% [markdown]
# ### Does the choice of calibration texts matter?
#
# The paper draws several sets, prunes with each, and takes the one whose cut model stays closest to
# the whole one (KL divergence, on texts of their own). Eight sets of two texts, on the small Llama;
# judged by the loss on other texts.

# %%
pool = lw.tasks.corpus("pydoc", n=40, tokens=96, model=little, seed=seed + 1)
sets = [pool[2 * i : 2 * i + 2] for i in range(8)]
tried = calibrations(little, sets, pool[16:24], 0.2, gamma, max_tokens=96)
again = pruned_losses(
    little,
    {str(i): allocate(scores(little, x), 0.2, gamma) for i, x in enumerate(sets)},
    pool[24:40], 96,
)  # fmt: skip
kl = tried.kl.isel(cut=slice(1, None)).weighted(tried.tokens).mean("prompt").values
fresh = again.nll.isel(cut=slice(1, None)).weighted(again.tokens).mean("prompt").values
best = tried.attrs["best"]
print("KL:  ", kl.round(3))
print("loss:", fresh.round(3), f"chosen: set {best}")

# %% [markdown]
# ### Placebo: a model that never learned
#
# The same Llama before its first training step. Nothing is stored anywhere, so that no order of units
# can be better than a random one.

# %%
blank = lw.load("toys/char-llama@0")
blank_keeps = {"nirvana": allocate(scores(blank, letters[:4]), 0.1, gamma)} | {
    f"random {i}": allocate(scores(blank, criterion="random", seed=seed + i), 0.1, gamma)
    for i in range(3)
}
blank_loss = pruned_losses(blank, blank_keeps, letters[4:], 96).nll.mean("prompt")
draws_blank = [float(blank_loss.sel(cut=f"random {i}")) for i in range(3)]
placebo = float(np.median(draws_blank) - blank_loss.sel(cut="nirvana"))
print(f"random less nirvana: {placebo:.4f} nats, of {float(blank_loss.sel(cut='whole')):.2f}")

# %% [markdown]
# ## Touch
#
# Drag the sparsity and $\gamma$, or change the score: the bars are the neurons and the key/value
# groups that every layer keeps (orange: some are gone); below, what the cut model then costs and says.

# %%
board = PruneBoard(
    net, {"nirvana": s, "magnitude": magnitude, "wanda": wanda}, "The capital of France is",
    unseen[0], sparsity=0.1, gamma=gamma, max_tokens=min(32, judged), new=6,
)  # fmt: skip
board

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
about = {"seed": seed, "model": net}
lw.claim(
    "nirvana.shown-is-library", kind="exact", measured=shown, expect="< 1e-3", n=1, seed=seed,
    model=little,
    statement="the score written out above is the library's: largest relative difference",
)  # fmt: skip

# %%
exactly = allocate(s, 0.1, gamma, multiple=1)
weights_of = {p: int(s[p].attrs["weights"]) for p in s}
total = sum(s[p].size * w for p, w in weights_of.items())
off = abs(exactly.attrs["cut"] - 0.1) * total / sum(weights_of.values())
lw.claim(
    "nirvana.budget-is-spent", kind="exact", measured=off, expect="<= 0.5", n=1, **about,
    statement="weights cut less 10 % of those of the blocks, in units (one of each kind): rounding",
)  # fmt: skip

# %%
alike = rates(1, 3, 0.2, 1.0)
lw.claim(
    "nirvana.gamma-one-is-fair", kind="exact", measured=abs(alike["attn"] - alike["mlp"]),
    expect="== 0", n=1, **about, statement="gamma = 1 cuts attention and MLPs at the same rate",
)  # fmt: skip

# %%
lw.claim(
    "nirvana.cut-is-silenced", kind="exact", measured=same, expect="< 1e-4", n=1, **about,
    statement="10 % cut, or silenced by zeros: largest difference of logits, relative",
)  # fmt: skip

# %%
gone = int(found.parameters[0] - found.parameters.sel(cut="nirvana"))
told = sum(int((~keeps["nirvana"][p]).sum()) * weights_of[p] for p in weights_of)
biases = sum(p.numel() for p in net.module.parameters() if p.ndim == 1)
lw.claim(
    "nirvana.really-smaller", kind="exact", measured=told <= gone <= told + biases, expect="true",
    n=1, **about,
    statement=f"the cut model has {gone:,} weights less: those of its units, and their biases",
)  # fmt: skip

# %%
left = [int(x) for x in keeps["nirvana 20 %"].attn.sum("kv_head")]
ratio = float(size.cache_mb[1] / size.cache_mb[0]) - sum(left) / s.attn.size
lw.claim(
    "nirvana.cache-shrinks", kind="exact", measured=abs(ratio), expect="< 1e-9", n=1, **about,
    statement=f"{sum(left)} of {s.attn.size} key/value groups left: as many of the cache's bytes",
)  # fmt: skip

# %%
small = prune(little, allocate(s_little, 0.2, gamma))
with tempfile.TemporaryDirectory() as folder:
    loaded = lw.load(write_model(small, Path(folder) / "small"))
with torch.no_grad():
    stored = float((loaded.module(tokens.ids).logits - small.module(tokens.ids).logits).abs().max())
lw.claim(
    "nirvana.saved-and-loaded", kind="exact", measured=stored, expect="== 0", n=1, seed=seed,
    model=little, statement="a cut model written and loaded again gives the same logits",
)  # fmt: skip

# %% [markdown]
# ### What the paper says
#
# Losses in nats a token, 10 % of the blocks' weights cut where nothing else is said; intervals are 95 %
# bootstraps over the texts (four in the quick profile, which cannot tell differences under 0.1: that
# margin is asked of each), pins are SmolLM2-135M's.


# %%
def loss(name: str) -> np.ndarray:
    """Loss of each text."""
    return found.nll.sel(cut=name).values


def compare(id: str, worse: np.ndarray, better: np.ndarray, expect: str, pin: str, statement: str,
            note: str = ""):  # fmt: skip
    gap = lw.stats.bootstrap(worse - better, seed=seed)
    return lw.claim(
        f"nirvana.{id}", kind="paper", measured=gap.mean, interval=gap[1:], expect=expect,
        statement=statement, pinned={"smollm2-135m": pin}, unit="nats", n=len(worse), note=note,
        paper="abstract", **about,
    )  # fmt: skip


random = loss(min(draws, key=lambda d: abs(loss(d).mean() - np.median(
    [loss(x).mean() for x in draws]))))  # fmt: skip
compare(
    "beats-random", random, loss("nirvana"), "> 0.1", "reproduced",
    "loss of random units (the median of three draws) less that of NIRVANA's",
    note="the draws differ by more than this: some hit a group that everything rests on",
)  # fmt: skip

# %%
compare(
    "beats-magnitude", loss("magnitude"), loss("nirvana"), "> 3", "reproduced",
    "loss of the smallest units by |W| less that of NIRVANA's",
)  # fmt: skip

# %%
compare(
    "beats-wanda", loss("wanda"), loss("nirvana"), "> 0.1", "reproduced",
    "one threshold for all layers: loss of the lowest units by |W| ||X|| less that of NIRVANA's",
    note="not Wanda's own use: its scores are made to be compared within a layer, as below",
)  # fmt: skip

# %%
compare(
    "beats-wanda-by-layer", loss("wanda, uniform"), loss("nirvana"), "> 0.1", "not reproduced",
    "Wanda-like with the same number cut in every layer: loss less that of NIRVANA's",
    note="no worse: within a layer the norms of the inputs know what the gradient knows",
)  # fmt: skip

# %%
compare(
    "global-beats-uniform", loss("nirvana, uniform"), loss("nirvana"), "> 0.1", "not reproduced",
    "NIRVANA's score with the same number cut in every layer: loss less that of one threshold",
    note="on other texts uniform was better by 0.13. Likely: f is a mean over all words of the "
    "vocabulary, most of which no text uses, and late layers move it little",
)  # fmt: skip

# %%
compare(
    "sparing-attention-pays", loss("nirvana 20 %, gamma 1"), loss("nirvana 20 %"), "> 0.1",
    "not reproduced", f"20 % cut: loss with gamma = 1 less that with gamma = {gamma:g}",
    note="three groups a layer are coarse: gamma = 1 cuts 18 of 90, gamma = 3 cuts 7",
)  # fmt: skip

# %%
by_toy = {"seed": seed, "model": little, "kind": "paper"}
lw.claim(
    "nirvana.first-order-holds", measured=within, expect=">= 0.8", n=20, **by_toy,
    pinned="reproduced",
    statement="share of the 20 lowest neurons whose removal changes f by at most 3 scores",
)  # fmt: skip

# %%
lw.claim(
    "nirvana.keeps-the-kernel", measured=moved["nirvana"] / random_moved, expect="< 1", n=5,
    pinned="reproduced", **by_toy,
    statement="10 % cut: relative change of the sign kernel by NIRVANA's "
    "choice, over that by random ones (median of 5)",
)  # fmt: skip

# %%
lw.claim(
    "nirvana.kl-chooses-calibration", measured=float(np.median(fresh) - fresh[best]), expect="> 0",
    n=8, unit="nats", pinned="reproduced", **by_toy,
    statement="20 % cut: median loss over 8 calibration sets, less that of the set chosen by KL",
)  # fmt: skip

# %%
lw.claim(
    "nirvana.placebo", measured=abs(placebo), expect="< 0.02", n=3, unit="nats",
    pinned="reproduced", **by_toy,
    statement="in a model that never learned, NIRVANA's choice is no better than random",
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. At what share does the model stop knowing that Paris is the capital of France? Cut 2, 5, 10 %.
# 2. Score with the gradient of the *loss* instead of $f$ (`criterion="taylor"`, which is what
#    LLM-Pruner does). How many of the neurons to be cut are the same?
# 3. What if only MLPs are cut? Leave attention out with `parts=["mlp"]`.
#
# Solutions are folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. Facts go before grammar.
for share in (0.02, 0.05, 0.1):
    left_over = prune(net, allocate(s, share, gamma), check=False)
    said = str(lw.generate(left_over, "The capital of France is", 6).text.values[0])
    print(f"{100 * share:2.0f} %: {said!r}")
    del left_over

# %% jupyter={"source_hidden": true}
# 2. Most of them, and the ranks agree: both are |w g|, and f and the loss lean on the same paths.
taylor = scores(little, letters[:4], "taylor")
agree = lw.stats.spearman(taylor.mlp.values.ravel(), s_little.mlp.values.ravel())
two = [allocate(x, 0.1, gamma).mlp for x in (taylor, s_little)]
both = float((~two[0] & ~two[1]).sum() / (~two[1]).sum())
print(f"Spearman of the scores {agree:.2f}; {100 * both:.0f} % of the cut neurons are the same")

# %% jupyter={"source_hidden": true}
# 3. The same share of MLP weights alone, on the small Llama.
only = allocate(scores(little, letters[:4], parts=["mlp"]), 0.1)
out = pruned_losses(little, {"MLPs": only, "both": allocate(s_little, 0.1, gamma)}, letters[4:], 96)
print(out.nll.mean("prompt").round(3).to_series().to_dict())
