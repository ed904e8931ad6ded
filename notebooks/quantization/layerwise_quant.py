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
#     id: layerwise-quant
#     family: quantization
#     title: "Layer-Wise Quantization: A Pragmatic and Effective Method for Quantizing LLMs Beyond Integer Bit-Levels"
#     paper: "2406.17415"
#     cost: {seconds: 55, memory_mb: 1700}
#     model: smollm2-135m
# ---

# %% [markdown]
# # Which layers can live on fewer bits?
#
# **The idea in one sentence:** sort the layers by importance, give the unimportant ones fewer bits,
# and any average number of bits can be had; sort the *columns* of a matrix by what they lose, and
# their bits follow from a formula.
#
# Dumitru et al. 2024, [arXiv:2406.17415](https://arxiv.org/abs/2406.17415) ·
# [their code](https://github.com/RazvanDu/LayerwiseQuant) · and its companion, BAQ: Zhang et al.
# 2025, [arXiv:2506.05664](https://arxiv.org/abs/2506.05664) ·
# [their code](https://github.com/CSU-ModelCompression/BAQ)
#
# **Cost** with SmolLM2-135M: about a minute on two CPU cores, 1.7 GB of memory. Any decoder whose
# blocks hold linear maps will do: `lwlab run layerwise-quant -p model=gpt2`. Tried besides:
# `toys/char-gpt2` (a GPT-2 of four layers, trained here). The pinned verdicts and the text are
# SmolLM2's.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full takes more of everything
n: int = 4  # texts to score
tokens: int = 40  # of each text
group: int = 64  # inputs that share a scale; halved until it divides every matrix
draws: int = 5  # random orders
seed: int = 0

# %%
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import xarray as xr

import lwlab as lw
from lwlab.bench.memory import trim
from lwlab.quantization import allocate, baq, error_table, hessians, matrices
from lwlab.quantization import layerwise_quant as lq

lw.charts.enable()
net = lw.load(model)
L, quick = net.n_layers, profile == "quick"
n, tokens = (n, tokens) if quick else (max(n, 16), max(tokens, 128))
while any(m.weight.shape[1] % group for m in matrices(net)):
    group //= 2


def texts_of(n: int, tokens: int, seed: int) -> torch.Tensor:
    """Ids of n texts, each cut to the same number of tokens."""
    tokens = min(tokens, (net.max_tokens or 2 * tokens) // 2)
    found = lw.tasks.corpus(n=n, tokens=2 * tokens, model=net, seed=seed)
    return net.tokens(found).ids[:, :tokens]


scored = texts_of(n, tokens, seed)
scorer = lq.Scorer(net, scored)  # reads them once; what follows runs from the first rounded layer
calibration = lw.tasks.corpus(n=6, tokens=min(160, net.max_tokens or 160), model=net, seed=seed + 1)
few, some, half = (max(1, round(L * share)) for share in (0.1, 0.27, 0.5))
ks = sorted({few, some} if quick else {few, some, half, round(0.75 * L)})
print(net, f"groups of {group}; {n} texts of {scored.shape[1]} tokens; k = {ks}")

# %% [markdown]
# SmolLM2's own file stored its matrices in four bits, groups of 32, with a minimum and a step each
# (Q4_1). **Rounding to four bits in groups of 32 therefore changes nothing here**: every order of
# layers would "win". So this notebook rounds in groups of 64, to two bits mostly.
#
# ## The idea in one picture
#
# Round one layer alone to two bits, the 29 others not at all. What does it cost, and could we have
# known without trying?

# %%
alone = lq.sensitivity(net, scored[: n if not quick else max(2, n // 3)], 2, group)
lim = lq.lim(net, texts_of(4, 48, seed + 2))
zd = lq.zd(net)
cost = alone.mean("prompt").assign_attrs(long_name="rise of the loss")
lw.charts.profile(
    cost, title="One layer at two bits: which is missed?", width=480, height=170,
    subtitle=f"{net.name}, {alone.attrs['n']} texts, groups of {group}",
)  # fmt: skip

# %% [markdown]
# A few layers are dear, most cost a third of a nat each. Layer 11 writes SmolLM2's massive
# activation at the first token: every attention sink above it hangs on that.
#
# ## The method
#
# Trying each layer, the **oracle** above, takes half a forward pass a layer. The paper has two
# cheaper scores.
#
# * **LIM** (layer input modification) reads one text. With $h_l$ the stream entering layer $l$,
#   $$\mathrm{LIM}(l) = -\cos(h_l, h_{l+1}),$$
#   the mean over tokens (the first one, the sink, left out). Near $-1$ the layer changes little.
# * **ZD** (z-score distribution) reads only weights: with $z = (w - \bar w)/\sigma_w$ over all
#   weights of layer $l$,
#   $$\mathrm{ZD}(l) = \text{share of weights with } z > 1 .$$
#   A *small* share, a few weights far out, means an important layer.
#
# The $k$ least important of $L$ layers get $b_\text{low}$ bits, the others $b_\text{high}$: the mean
# is $(k\, b_\text{low} + (L-k)\, b_\text{high}) / L$. Embeddings, norms and unembedding stay. LIM and
# ZD in a few lines:

# %%
text = texts_of(1, 48, seed + 2)
run = lw.cache(net, text, ["resid_pre", "resid_post"]).isel(prompt=0, position=slice(1, None))
a, b = run.resid_pre, run.resid_post
cosine = (a * b).sum("d_model") / np.sqrt((a**2).sum("d_model") * (b**2).sum("d_model"))
lim_shown = -cosine.mean("position")
w = torch.cat([m.weight.flatten() for m in matrices(net, L // 2)]).double()
zd_shown = float(((w - w.mean()) / w.std(correction=0) > 1).double().mean())

lim_gap = float(np.abs(lim_shown - lq.lim(net, text)).max())
zd_gap = abs(zd_shown - float(zd.sel(layer=L // 2)))
print(f"shown here against the library: LIM {lim_gap:.1e}, ZD {zd_gap:.1e}")

# %%
orders = {"LIM": lq.least_first(lim), "ZD": lq.least_first(zd), "oracle": lq.least_first(alone)}
backward = {f"{name} reversed": orders[name][::-1] for name in ("LIM", "ZD")}
chance = lq.random_orders(L, draws, seed)
for name, order in orders.items():
    print(f"{name:7} least important first: {order}")
r = {"LIM": lw.stats.spearman(lim, cost), "-ZD": lw.stats.spearman(-zd, cost)}
print("rank correlation with the oracle's score:", {k: round(v, 2) for k, v in r.items()})

# %% [markdown]
# ## Results
#
# ### All layers alike
#
# First what there is to gain: size and loss when every layer has the same bits. A smaller group
# means more scales to store, and less error. (Group 0 is a whole row.)

# %%
halved = group // 2 if group > 8 else group
flat = lq.uniform(net, scored[: max(2, n // 3)], (2, 4, 8), dict.fromkeys((halved, group, None)))
table = flat.nll.mean("prompt").to_series().rename("loss (nats)").to_frame()
table["perplexity"] = np.exp(table["loss (nats)"])
table["blocks (MB)"] = flat.megabytes.to_series()
print(f"not rounded: perplexity {math.exp(float(flat.base_nll.mean())):.1f}")
table.unstack("group").round(2)

# %% [markdown]
# Eight bits are free, four cost a third of a nat, two are ruin. In groups of 32 four bits *are* the model, as
# said. Between four and two there is much to win by choosing.
#
# ### Orders of layers
#
# The $k$ first layers of each order at two bits, the others untouched. Against them: random orders,
# and the same orders backwards.

# %%
ladder = lq.losses(net, scorer, {**orders, **chance}, ks, low=2, group=group)
back = lq.losses(net, scorer, backward, [some], low=2, group=group)
both = xr.concat(
    [ladder.sel(k=[some]), back], "order", data_vars="minimal", coords="minimal",
    compat="override", combine_attrs="override",
)  # fmt: skip
loss = ladder.nll.mean("prompt")
randoms = loss.sel(order=list(chance))
lines = xr.concat(
    [loss.sel(order=list(orders)), randoms.median("order").expand_dims(order=["random, median"])],
    "order",
)
low, high = (
    xr.concat([lines.isel(order=slice(-1)), end.expand_dims(order=["random, median"])], "order")
    for end in (randoms.min("order"), randoms.max("order"))
)
start = xr.full_like(lines.isel(k=[0]), float(ladder.base_nll.mean())).assign_coords(k=[0])
ppl, low, high = (np.exp(xr.concat([start, x], "k")) for x in (lines, low, high))
ppl.attrs = {"long_name": "perplexity"}
ppl["k"].attrs["long_name"] = f"layers at 2 bits, of {L}"
lw.charts.profile(
    ppl, x="k", series="order", low=low, high=high, interval=f"range of {draws} random orders",
    log=True, title="Lowering layers, the least important first", width=420, height=230,
    subtitle=f"{net.name}, {n} texts of {scored.shape[1]} tokens, groups of {group}",
)  # fmt: skip

# %% [markdown]
# How much better than chance is that? In nats a token, against the median of the random orders, with
# 95 % intervals from resampling texts and random orders:

# %%
rows = []
for k in ks:
    here = both if k == some else ladder
    for name in (*orders, *(backward if k == some else ())):
        e = lq.lead(here, name, list(chance), k, seed=seed)
        rows.append({"layers lowered": k, "order": name, "ahead by": e.mean, "low": e.low,
                     "high": e.high, "MB": float(here.megabytes.sel(order=name, k=k))})  # fmt: skip
pd.DataFrame(rows).set_index(["layers lowered", "order"]).round(2)

# %% [markdown]
# Both orders beat the typical random order by nats, ZD with more certainty than LIM: chance orders
# differ so much that the luckiest of them beat LIM, and the backward orders are no worse than chance.
# What ruins an order first of all is the one layer that must not be lowered:

# %%
dear = int(cost.idxmax())
hit = {name: dear in [*orders.values(), *backward.values(), *chance.values()][i][:some]
       for i, name in enumerate((*orders, *backward, *chance))}  # fmt: skip
frame = both.nll.sel(k=some).mean("prompt").to_series().rename("loss (nats)").to_frame()
frame[f"lowers layer {dear}"] = [hit[name] for name in frame.index]
frame.sort_values("loss (nats)").round(2)

# %% [markdown]
# Then again, losing three nats instead of five is not "near the original": the plateau that the
# paper finds, a quarter to a half of the layers for free, is not there at two bits. At four bits it
# is nearly, for any order:

# %%
gentle = {"ZD": orders["ZD"], "random": chance["random 0"]}
four = lq.losses(net, scorer, gentle, [half], low=4, group=group)
rise = lw.stats.interval(four.nll.sel(k=half) - four.base_nll, seed=seed)
rise.to_pandas().round(3)

# %% [markdown]
# ### Lowering or leaving out?
#
# If a layer matters so little, why keep it at all? The same $k$ layers, at four bits, at two bits,
# and left out:

# %%
gone = scorer.nll(L, without=orders["LIM"][:few])
four_few = lq.losses(net, scorer, {"LIM": orders["LIM"]}, [few], low=4, group=group)
fates = xr.concat(
    [four_few.nll.squeeze(drop=True), ladder.nll.sel(order="LIM", k=few, drop=True),
     xr.DataArray(gone, dims="prompt", coords={"prompt": range(n)})],
    xr.Variable("layers", ["at 4 bits", "at 2 bits", "left out"]),
) - ladder.base_nll  # fmt: skip
fates = fates.rename("rise of the loss, nats")
lw.stats.interval(fates, seed=seed).to_pandas().round(2)

# %% [markdown]
# ### GPTQ beneath
#
# The order is a meta-scheme: any quantiser can do the rounding. GPTQ lets later columns of a matrix
# make up for the errors of earlier ones; what it needs is the second moments of the inputs (position
# 0 included: without the sink in its sight, GPTQ ruins it). For the $k$ layers at either end of ZD:

# %%
ends = sorted({*orders["ZD"][:few], *orders["ZD"][-few:]})
moments = hessians(net, calibration, layers=ends, skip=0)
zd_both = {"ZD": orders["ZD"], "ZD reversed": orders["ZD"][::-1]}
beneath = xr.concat(
    [
        lq.losses(net, scorer, zd_both, [few], group=group).nll,
        lq.losses(net, scorer, zd_both, [few], group=group, base="gptq", moments=moments).nll,
    ],
    xr.Variable("base", ["round to nearest", "GPTQ"]), combine_attrs="drop_conflicts",
)  # fmt: skip
del moments
trim()
np.exp(beneath.mean("prompt")).squeeze("k", drop=True).rename("perplexity").to_pandas().round(1)

# %% [markdown]
# ## BAQ: bits for columns
#
# One level down. In GPTQ with $U$ the Cholesky factor of the inverse second moments, column $j$ of a
# matrix loses $L_j = \sum_r (w_{rj} - q_{rj})^2 / 2 U_{jj}^2$, and a bit more divides that by about
# four: $L_j(R_j) = c_j 4^{-R_j}$. Minimise the sum at a mean of $R$ bits, and Lagrange gives
#
# $$R_j = R + \tfrac12 \log_2 \frac{c_j}{\mathrm{GM}(c)}, \qquad
# \frac{\text{total}}{\text{total at uniform bits}} = \frac{\mathrm{GM}(c)}{\mathrm{AM}(c)} \le 1 :$$
#
# every column is to lose the same, and the gain is the geometric over the arithmetic mean.

# %%
rng = np.random.default_rng(seed)
c = np.exp(rng.normal(0, 1.5, 64))
bits, gain = baq.allocation(c, 3)
losses_now = c * 4.0**-bits
moves = rng.normal(0, 0.3, (200, 64))
worse = (c * 4.0 ** -(bits + moves - moves.mean(1, keepdims=True))).sum(1) / losses_now.sum()
print(f"64 columns: total loss x {gain:.3f}, each loses {losses_now.min():.4f}; "
      f"200 other allocations lose {worse.min():.2f} to {worse.max():.2f} times as much")  # fmt: skip

# %% [markdown]
# In the model: a first pass at uniform bits measures $L_j$; a second gives each column its own
# number of levels, the mean unchanged. Ranges are whole rows (no groups). Beside it, the same
# levels dealt out at random, and an allocation by the inputs' energies $H_{jj}$ alone.

# %%
middle = [i for i in range(L // 3, L // 3 + (2 if quick else 7)) if i < L]
moments = hessians(net, calibration, layers=middle, skip=0)
outcome = {}


def measured(h: dict, rate: int, *allocations: str) -> baq.Study:
    """A study, its losses noted, without the rounded weights: Binder has 2 GB."""
    found = baq.study(net, h, rate, allocations, seed=seed)
    for name, weights in found.weights.items():
        with lq.installed(net, weights) as first:
            outcome[rate, name] = scorer.nll(first)
    return replace(found, weights={})


study = measured(moments, 3, "uniform", "baq", "shuffled", "diagonal")
trim()
coarse = measured(moments, 2, "uniform", "baq")
del moments
trim()
gains = study.table.gain.assign_attrs(long_name="GM / AM", model=net.name)
lw.charts.heatmap(
    gains, x="module", y="layer", title="What is left of the loss, foretold", height=90
)

# %%
worst = study.table.gain.stack(at=("layer", "module"))
layer_, module_ = worst.isel(at=int(np.nanargmin(worst.values))).at.item()
columns = study.columns(layer_, module_).sel(allocation=["uniform", "baq"])
order_ = np.argsort(-columns.loss.sel(allocation="uniform").values)
strips = columns.isel(column=order_[:64]).assign_coords(column=np.arange(1, len(order_[:64]) + 1))
strips["column"].attrs["long_name"] = "column, by its loss at uniform bits"
level = strips.loss.where(strips.loss > 0).assign_attrs(long_name="loss", model=net.name)
level = level.fillna(float(level.min()))
lw.charts.beside(
    strips.bits.assign_attrs(long_name="bits").lw.profile(
        x="column", series="allocation", title=f"Bits, layer {layer_} {module_}", subtitle="",
        width=230, height=150),
    level.lw.profile(
        x="column", series="allocation", log=True, title="The water level: loss a column",
        subtitle="", width=230, height=150),
)  # fmt: skip

# %% [markdown]
# The columns that wrote the sink had nearly all of the loss; now all are level. What does it do for
# the model? Loss in nats with these layers rounded, at the same rate:

# %%
answer = pd.DataFrame({
    "rate (bits)": {key: (study if key[0] == 3 else coarse).rate(key[1]) for key in outcome},
    "sum of losses / uniform": {
        (r_, a_): float(t.loss.sel(allocation=a_).sum() / t.loss.sel(allocation="uniform").sum())
        for r_, t in ((3, study.table), (2, coarse.table)) for a_ in t.allocation.values
    },
    "nats": {key: v.mean() for key, v in outcome.items()},
    "perplexity": {key: math.exp(v.mean()) for key, v in outcome.items()},
})  # fmt: skip
answer.round(3)

# %% [markdown]
# The sum of losses falls just as foretold, and the model does not care: nearly all of that sum was
# the sink's columns, which three bits kept well enough, and all other columns pay for them. Less
# loss in the sense of GPTQ is not less loss.
#
# A column at 2.8 bits beside one at 4.1 cannot be packed without entropy coding: the rate is a
# rate, no file size. **Across layers** whole bits and megabytes can be had: the same formula, with
# $c_l$ from the table of rounding errors or from the oracle's nats, in the megabytes of three bits
# everywhere.

# %%
errors = error_table(net, group, range(2, 7), symmetric=False)
budget = float(errors.megabytes.sel(bits=3).sum())
price = cost.clip(min=0.2 * float(np.abs(cost).median()))
shares = {
    "uniform": allocate(errors, budget, "uniform"),
    "greedy, by error": allocate(errors, budget),
    "closed form, by error": baq.layer_bits(errors, budget),
    "closed form, by nats": baq.layer_bits(errors, budget, cost=price),
}
by_share = {}
with lq.Rounder(net, group) as rounder:
    for name, b_ in shares.items():
        by_share[name] = scorer.nll(rounder.set(dict(enumerate(b_.values.tolist()))))
pd.DataFrame({
    "MB": {k: v.attrs["megabytes"] for k, v in shares.items()},
    "fewest": {k: int(v.min()) for k, v in shares.items()},
    "most": {k: int(v.max()) for k, v in shares.items()},
    "perplexity": {k: math.exp(v.mean()) for k, v in by_share.items()},
}).round(2)  # fmt: skip

# %% [markdown]
# ## Touch
#
# Each bar is a layer. Set its bits, or share out a budget; size and perplexity follow. It starts
# with ZD's layers at two bits: can you find a better set of the same size?

# %%
plan = lq.plan(net, orders["ZD"], k=some, low=2, high=16, group=group)
board = lw.widgets.bits(net, bits=plan.values.tolist(), group=group)
board.wait(120)
board

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
every = {"n": n, "seed": seed, "model": net}
lw.claim(
    "layerwise-quant.nothing-lowered", kind="exact", expect="== 0", **every,
    measured=float(np.abs(scorer.base - scorer.nll(0)).max()),
    statement="after all that was rounded and undone, k = 0 gives the first loss again, bit for bit",
)  # fmt: skip

# %%
first_two = scored[:2]
whole = lq.losses(
    net, first_two, {"ZD": orders["ZD"], "back": orders["ZD"][::-1]}, [L], group=group
)
lw.claim(
    "layerwise-quant.all-lowered", kind="exact", expect="< 1e-5", **{**every, "n": 2},
    measured=float(np.abs(whole.nll.isel(order=0) - whole.nll.isel(order=1)).max()),
    statement="with k = L the order does not matter: largest difference between two orders, nats",
)  # fmt: skip

# %%
lw.claim(
    "layerwise-quant.shown-is-library", kind="exact", expect="< 1e-4", model=net, n=1, seed=seed,
    measured=max(lim_gap, zd_gap),
    statement="LIM and ZD as written out above are the library's: largest difference",
)  # fmt: skip

# %%
met = [lq.plan(net, orders["ZD"], mean_bits=m, group=group).attrs for m in (2.0, 2.5, 3.3, 4.0)]
gap = [m - p["mean_bits"] for m, p in zip((2.0, 2.5, 3.3, 4.0), met)]
lw.claim(
    "layerwise-quant.any-average", kind="exact", measured=max(gap) * L / 2,
    expect=f"in [0, {1 - 1e-9}]", model=net,
    statement="a plan meets any mean from 2 to 4 bits from below, within one step of 2 / L: "
    "largest shortfall, in steps",
)  # fmt: skip

# %%
if model == "smollm2-135m":
    grid = error_table(net, 32, 4, symmetric=False)
    lw.claim(
        "layerwise-quant.own-grid", kind="exact", measured=float(grid.relative_error.max()),
        expect="< 1e-4", model=net, statement="four bits in groups of 32 reproduce SmolLM2's weights: "
        "largest relative squared error of a matrix", n=int(grid.error.count()),
    )  # fmt: skip

# %%
level_gap = float(np.ptp(losses_now) / losses_now.mean())
mean_gap = abs(float(bits.mean()) - 3)
gain_gap = abs(losses_now.sum() / (c * 4.0**-3).sum() - np.exp(np.log(c).mean()) / c.mean())
lw.claim(
    "baq.closed-form", kind="exact", measured=max(level_gap, mean_gap, gain_gap), expect="< 1e-9",
    n=64, seed=seed, statement="the closed form keeps the mean, levels the losses and gains GM / AM: "
    "largest deviation", paper="arXiv:2506.05664",
)  # fmt: skip

# %%
lw.claim(
    "baq.optimal", kind="exact", measured=float(worse.min()), expect="> 1", n=200, seed=seed,
    statement="every other allocation of the same mean loses more: least ratio of 200",
    paper="arXiv:2506.05664",
)  # fmt: skip

# %%
lw.claim(
    "baq.am-gm", kind="exact", measured=float(study.table.gain.max()), expect="<= 1", model=net,
    n=int(study.table.gain.count()), paper="arXiv:2506.05664",
    statement="the gain of a matrix is never above 1; the largest",
)  # fmt: skip

# %% [markdown]
# ### What the papers say
#
# Pinned for SmolLM2-135M; intervals are 95 %, over texts (and random orders). A model of 135 million
# weights is the hard case: the paper finds that models with more layers gain more.

# %%
yes, no = ({"smollm2-135m": v} for v in ("reproduced", "not reproduced"))


def ahead(id: str, order: str, others: list[str], k: int, expect: str, **more: object) -> None:
    e = lq.lead(both if k == some else ladder, order, others, k, seed=seed)
    lw.claim(
        f"layerwise-quant.{id}", kind="paper", measured=e.mean, interval=e[1:], expect=expect,
        unit="nats", **every, **more,
    )  # fmt: skip


ahead(
    "zd-beats-random", "ZD", list(chance), some, "> 0.5", pinned=yes, paper="abstract",
    statement=f"{some} of {L} layers at 2 bits: median of {draws} random orders, less ZD",
)  # fmt: skip

# %%
ahead(
    "lim-beats-random", "LIM", list(chance), some, "> 0", pinned=yes, paper="abstract",
    statement=f"{some} of {L} layers at 2 bits: median of {draws} random orders, less LIM",
)  # fmt: skip

# %%
ahead(
    "zd-beats-its-reverse", "ZD", ["ZD reversed"], some, "> 0", pinned=yes,
    statement=f"{some} of {L} layers at 2 bits: ZD backwards, less ZD",
    note="1 nat was expected, which lies within the interval",
)  # fmt: skip

# %%
ahead(
    "oracle-is-no-worse", "oracle", ["ZD"], few, "> -0.2", pinned=yes,
    statement=f"{few} of {L} layers at 2 bits: ZD less the oracle, which tried each layer",
    note="the oracle is greedy on just this quantity, on some of these texts",
)  # fmt: skip

# %%
placebo = max(
    lq.lead(both, name, [o for o in chance if o != name], some, seed=seed).mean for name in chance
)
lw.claim(
    "layerwise-quant.best-random", kind="paper", measured=placebo, expect="> 0.5", unit="nats",
    statement=f"placebo: by how much the luckiest of {draws} random orders beats the median of the "
    "others", pinned=yes, **every,
    note="chance orders differ by nats: one random order proves nothing, for or against",
)  # fmt: skip


# %%
def rise_of(values: xr.DataArray) -> dict[str, object]:
    e = lw.stats.bootstrap(values.values, seed=seed)
    return {"measured": e.mean, "interval": e[1:], "unit": "nats", **every}


quarter = ladder.nll.sel(order=["LIM", "ZD"], k=some) - ladder.base_nll
better = quarter.isel(order=int(quarter.mean("prompt").values.argmin()))
lw.claim(
    "layerwise-quant.plateau-at-2-bits", kind="paper", expect="< 0.1", pinned=no, paper="abstract",
    statement=f"a quarter of the layers ({some}) at 2 bits, the better order: rise of the loss",
    note="two-bit rounding is ruin for a stream 576 wide, in any order; the paper's models have 30 "
    "times the weights, and their high width is 4 bits, from which it counts",
    **rise_of(better),
)  # fmt: skip

# %%
worst_order = rise.sel(estimate="mean").idxmax("order").item()
lw.claim(
    "layerwise-quant.plateau-at-4-bits", kind="paper", expect="< 0.3", pinned=yes, paper="abstract",
    statement=f"half of the layers ({half}) at 4 bits, the worse of ZD and a random order: rise "
    "of the loss", note="no order is needed for that",
    **rise_of((four.nll.sel(k=half) - four.base_nll).sel(order=worst_order)),
)  # fmt: skip

# %%
lw.claim(
    "layerwise-quant.four-bits-beat-removal", kind="paper", expect="> 0", pinned=yes,
    statement=f"LIM's {few} least important layers: loss when left out, less loss at 4 bits",
    paper="abstract", **rise_of(fates.sel(layers="left out") - fates.sel(layers="at 4 bits")),
)  # fmt: skip

# %%
lw.claim(
    "layerwise-quant.two-bits-do-not", kind="paper", expect="< 0", pinned=yes,
    statement="the same, less loss at 2 bits: two bits are worse than no layer", paper="abstract",
    **rise_of(fates.sel(layers="left out") - fates.sel(layers="at 2 bits")),
)  # fmt: skip

# %%
sum_gptq = beneath.sel(base="GPTQ").squeeze("k")
lw.claim(
    "layerwise-quant.order-helps-gptq", kind="paper", expect="> 0.2", pinned=yes, paper="abstract",
    statement=f"{few} layers at 2 bits with GPTQ beneath: ZD backwards, less ZD",
    **rise_of(sum_gptq.sel(order="ZD reversed") - sum_gptq.sel(order="ZD")),
)  # fmt: skip

# %%
ratio = study.table.loss / study.table.loss.sel(allocation="uniform")
foretold = (ratio.sel(allocation="baq") / study.table.gain).values
foretold = foretold[np.isfinite(foretold)]
columns_ = {"n": len(foretold), "seed": seed, "model": net, "paper": "arXiv:2506.05664"}
lw.claim(
    "baq.gain-foretold", kind="paper", expect=">= 0.7", pinned=yes, **columns_,
    measured=float(((foretold > 0.5) & (foretold < 2)).mean()),
    statement="3 bits: share of matrices whose loss falls to GM / AM of what it was, within a factor 2",
)  # fmt: skip

# %%
rates = [
    np.log2(baq.levels(study.columns(m.layer, m.name).loss.sel(allocation="uniform"), 3, fit=False)).mean()
    for m in matrices(net, middle)
]  # fmt: skip
lw.claim(
    "baq.rate-kept", kind="paper", expect="< 0.05", pinned=yes, **columns_,
    measured=float(np.abs(np.array(rates) - 3).max()), unit="bits",
    statement="levels as the paper's code rounds them: largest miss of the mean rate of 3 bits",
    note="the comparisons here use levels fitted to the rate: equal size",
)  # fmt: skip

# %%
here = study.table.loss.sel(layer=layer_, module=module_)
lw.claim(
    "baq.allocation-not-diversity", kind="paper", pinned=yes, expect="> 2",
    measured=float(here.sel(allocation=["uniform", "shuffled"]).min() / here.sel(allocation="baq")),
    statement=f"layer {layer_} {module_}: loss at uniform bits, or with BAQ's levels dealt at "
    "random, the smaller of the two, over BAQ's", **{**columns_, "n": 1},
)  # fmt: skip

# %%
dealt = (ratio.sel(allocation="shuffled") > 1).where(np.isfinite(study.table.gain))
lw.claim(
    "baq.shuffled-is-worse-than-uniform", kind="paper", pinned=yes, expect=">= 0.7", **columns_,
    measured=float(dealt.mean()),
    statement="placebo: share of matrices that lose more with BAQ's levels dealt at random than at "
    "uniform bits",
)  # fmt: skip

# %%
spread = np.log2(columns.loss.where(columns.loss > 0)).std("column")
lw.claim(
    "baq.levels-the-columns", kind="paper", pinned=yes, expect="< 0.8", **{**columns_, "n": len(order_)},
    measured=float(spread.sel(allocation="baq") / spread.sel(allocation="uniform")),
    statement=f"layer {layer_} {module_}: spread of log2 loss over columns, BAQ / uniform",
)  # fmt: skip

# %%
for rate, expect, note in (
    (3, "> 0.1", "the loss falls as foretold, but not the model's: most of it was about the sink"),
    (
        2,
        "> 1",
        "better here, by less than its interval is wide; the paper's best is 56 times, 4 nats",
    ),
):
    e = lw.stats.bootstrap(outcome[rate, "uniform"] - outcome[rate, "baq"], seed=seed)
    lw.claim(
        f"baq.beats-uniform-gptq-at-{rate}-bits", kind="paper", measured=e.mean, interval=e[1:],
        expect=expect, unit="nats", pinned=no, note=note, paper="arXiv:2506.05664, abstract",
        statement=f"loss of GPTQ at uniform {rate} bits, less BAQ's at equal rate, layers "
        f"{middle[0]} to {middle[-1]}", **every,
    )  # fmt: skip

# %%
e = lw.stats.bootstrap(by_share["uniform"] - by_share["closed form, by nats"], seed=seed)
lw.claim(
    "baq.across-layers", kind="paper", measured=e.mean, interval=e[1:], expect="> 0", unit="nats",
    pinned=no, statement="beyond the paper: loss at 3 bits everywhere, less the closed form's over "
    "layers in the same megabytes", note="between 2 and 3 bits loss falls much faster than 4 to 1, "
    "and what two layers cost together is more than what each costs alone", **every,
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **Your own order.** Lower every second layer, or the last ones. How far from ZD? And what does
#    ZD with $|z| > 1$, or matrix by matrix, say?
# 2. **The sink.** Take LIM of whole texts laid end to end, position 0 included. Which layer has
#    become important, and why only that one?
# 3. **A budget.** How many bits a weight can be had in 40 % of the size at 16 bits, by levels of 2
#    and 8? Which layers are lowered?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. Orders are lists of all layers, the least important first.
mine = {
    "every second": [*range(0, L, 2), *range(1, L, 2)],
    "last first": list(range(L))[::-1],
}
tried = lq.losses(net, scored[:2], {"ZD": orders["ZD"], **mine}, [few], group=group)
print(tried.nll.mean("prompt").squeeze("k", drop=True).round(2).to_series().to_dict())
for name, other in (
    ("|z| > 1", lq.zd(net, two_sided=True)),
    ("by matrix", lq.zd(net, pooled=False)),
):
    same = lw.stats.spearman(zd, other)
    print(f"ZD with {name}: rank correlation {same:.2f}, first {lq.least_first(other)[:5]}")

# %% jupyter={"source_hidden": true}
# 2. One cosine of all tokens sees only the largest vectors: the first token's, once it is massive.
sink = lq.lim(net, texts_of(4, 48, seed + 2), skip=0, flatten=True)
moved = np.argsort(-(sink - lim).values)[:3]
print("risen most:", {int(i): f"{float(lim[i]):.2f} -> {float(sink[i]):.2f}" for i in moved})

# %% jupyter={"source_hidden": true}
# 3. `plan` takes megabytes; scales and offsets count.
sixteen = lq.plan(net, orders["ZD"], k=0, low=2, high=16, group=group).attrs["megabytes"]
fits = lq.plan(net, orders["ZD"], megabytes=0.4 * sixteen, low=2, high=8, group=group)
print(f"{fits.attrs['mean_bits']:.2f} bits a weight in {fits.attrs['megabytes']:.1f} MB; lowered:")
print(fits.layer.values[fits.values == 2].tolist())
