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
#     id: dynamiclrp
#     family: attribution
#     title: "Always Keep Your Promises: DynamicLRP, A Model-Agnostic Solution To Layer-Wise Relevance Propagation"
#     paper: "2512.07010"
#     cost: {seconds: 60, memory_mb: 1650}
#     model: smollm2-135m
# ---

# %% [markdown]
# # DynamicLRP: relevance without knowing the model
#
# **The idea in one sentence:** layer-wise relevance propagation is usually written module by module,
# and every new architecture breaks it; written for the some fifty tensor operations that autograd
# records, the same few rules explain a language model, a sentence encoder and a picture classifier.
#
# "Always Keep Your Promises", 2025, [arXiv:2512.07010](https://arxiv.org/abs/2512.07010) ·
# [their code](https://github.com/keeinlev/dynamicLRP)
#
# **Cost** with SmolLM2-135M: under a minute on one CPU core, 1.7 GB of memory. Any decoder will do:
# `lwlab run dynamiclrp -p model=gpt2`. Tried so far: SmolLM2-135M, all-MiniLM-L6 (an encoder) and
# EfficientNet-Lite0 (a CNN), all three below, and toy models of 23 architectures, among them Mamba
# and mixtures of experts. LRP is claimed as patented technology by one of its groups; personal and
# scientific use is free.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full is the paper's scale
n: int = 6  # prompts, in pairs; profile=full takes at least 100
points: int = 5  # of a perturbation curve, its two ends included; profile=full takes at least 9
seed: int = 0

# %%
import altair as alt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from sklearn.datasets import load_sample_images
from torch import nn

import lwlab as lw
from lwlab.attribution import dynamiclrp as dl
from lwlab.attribution import oplrp, relp
from lwlab.models import toys
from lwlab.models.vision import preprocess

lw.charts.enable()
full = profile == "full"
net = lw.load(model)
task = lw.tasks.ioi(net, n=max(n, 100) if full else n, seed=seed)
task.to_frame().head(2)

# %% [markdown]
# ## The idea in one picture
#
# A tiny network of two residual blocks, $h = x + W_2\,\mathrm{relu}(W_1 x)$ and
# $y = w^\top(h + W_3 h)$. Autograd's graph of one forward pass is all that DynamicLRP reads.
# Relevance 1 starts at the top and every operation hands it to its operands; weights (grey) are
# constants. The **ringed** nodes could not do their work at first: to split relevance between the
# stream and the branch, an addition has to know both, and autograd saved neither.

# %%
torch.manual_seed(seed)
w1, w2, w3, w4 = (nn.Linear(a, b, bias=False) for a, b in ((4, 6), (6, 4), (4, 4), (4, 1)))
x = torch.randn(1, 4, requires_grad=True)
h = x + w2(torch.relu(w1(x)))
small = oplrp.propagate(w4(h + w3(h))[0, 0], [x])
nodes, lines = oplrp.layout(small)

across = alt.X("x:Q", axis=None, scale=alt.Scale(padding=30))
down = alt.Y("y:Q", scale=alt.Scale(reverse=True), axis=None)
ways = alt.Chart(lines).mark_rule(color="#bbb").encode(across, down, x2="x2", y2="y2")
dots = alt.Chart(nodes).encode(across, down)
rings = dots.transform_filter("datum.promised").mark_point(size=700, color="#d55e00", strokeWidth=3)
grey = dots.transform_filter("!datum.live").mark_circle(size=200, color="#bbb", opacity=1)
marks = dots.transform_filter("datum.live").mark_circle(size=380, opacity=1).encode(
    alt.Color("relevance:Q", scale=alt.Scale(scheme="viridis"), legend=alt.Legend(orient="bottom")),
    tooltip=["operation", "relevance", "path"],
)  # fmt: skip
names = dots.mark_text(align="left", dx=17, fontSize=11).encode(text="operation")
title = "Relevance in the graph of one forward pass; ringed: promises"
(ways + rings + grey + marks + names).properties(width=420, height=430, title=title)

# %% [markdown]
# Such a node issues a **promise**. A branch of it walks on down until it meets operations whose
# output follows from what they saved, and the way is run forward again:

# %%
for promise in small.promises:
    print(promise)

# %% [markdown]
# (The first line reads: operand 0 of the last addition is the output of another addition, which has
# one operand out of a matrix product, whose factors are at hand, and one that is the input itself.
# The original defers the relevance and fast-forwards it when the operand has come; here the operand
# is fetched when the relevance comes. The order of events is another, the numbers are the same.)
#
# ## The method
#
# | operation | how its relevance $R$ is handed on |
# |---|---|
# | $a + b$, sums, means | $R_a = R\,\lvert a\rvert / (\lvert a\rvert + \lvert b\rvert)$ |
# | $a \cdot b$, both computed from the input | the same; a weight or a number takes nothing |
# | $z = xW$, convolutions | $R_i = \sum_j x_i W_{ij} R_j / z_j$; with $\gamma$, contributions of $z_j$'s own sign count $1 + \gamma$ times |
# | $z = A V$, $q k^\top$ | the same with $2z$: each side gets half |
# | activations, norms, softmax | identity |
# | view, slice, cat, index, gather ... | the operation's own backward |
#
# The paper's sets are $\gamma = 0.001$ for matrix products and about 100 for convolutions. In code,
# one call; and what it stands for:

# %%
found = dl.scores(net, task)

asked = dl.ask(net, task, sites=[lw.models.Address("embed")])  # one forward pass, graph kept
start = asked.start("one")  # 1 at the answer's logit, 0 elsewhere
walk = oplrp.propagate(
    asked.output, [asked.reads[lw.models.Address("embed")]], start=start, rules="paper"
)
by_hand = walk.inputs[0].sum(-1)
mismatch = float(np.abs(by_hand.numpy() - found.values).max())
print(f"{len(walk.graph.nodes)} nodes, {len(walk.promises)} promises kept, "
      f"largest difference between the two {mismatch:.0e}")  # fmt: skip
del asked, walk
found.isel(prompt=slice(0, 4)).lw.heatmap(x="position", y="prompt", title="Relevance of each token")

# %% [markdown]
# The first token takes nearly half of it. SmolLM2 parks its attention there, and a rule that lets
# softmax pass relevance by identity cannot tell parking from reading. AttnLRP's softmax rule,
# $R_i = x_i (R_i - s_i \sum_j R_j)$, can:

# %%
other = dl.scores(net, task, rules="attnlrp")
other.isel(prompt=slice(0, 4)).lw.heatmap(
    x="position", y="prompt", title="The same with AttnLRP's softmax"
)

# %% [markdown]
# ## Results
#
# ### Every operation has a rule
#
# Nodes of the graph counted, in three real models and a toy of every architecture lwlab knows:

# %%
encoder, vision = lw.load("all-minilm-l6"), lw.load("efficientnet-lite0")
texts = ["A man is playing a guitar on stage.", "The cat sleeps on the warm sofa."]
others = ["Someone performs music.", "A pet takes a nap indoors."]
photos = torch.cat([preprocess(image) for image in load_sample_images().images])
alike = dl.similarity(encoder, texts, others)

counts = {m.name: dl.coverage(m) for m in (net, encoder, vision)}
for arch in toys.ARCHS:
    module = toys.tiny(arch)[0]
    toy = lw.wrap(module) if arch == "vit" else lw.wrap(module, tokenizer=toys.tokenizer())
    counts[f"toy {arch}"] = dl.coverage(toy)
covered = pd.DataFrame(
    {
        k: {"nodes": c.total, "operations": len(c.operation), "covered": c.share}
        for k, c in counts.items()
    }
).T
total = covered.nodes.sum()
share = float((covered.nodes * covered.covered).sum() / total)
kinds = len({str(o) for c in counts.values() for o in c.operation.values})
print(f"{total:.0f} nodes, {kinds} kinds of operation, {share:.2%} covered")
covered.head(8)

# %% [markdown]
# ### Relevance is conserved, where the rules promise it
#
# SmolLM2 has no biases, so with the paper's rules the stream holds all the relevance at every
# layer. AttnLRP's softmax rule gives that up.

# %%
two = task.subset([0, 1])
kept = {
    k: dl.conservation(net, two, rules=k) for k in ("paper", "attnlrp", "relp+attention", "relp")
}
stream = xr.concat([k.relevance for k in kept.values()], "rules").assign_coords(rules=list(kept))
stream.attrs["long_name"] = "relevance in the stream / relevance at the start"
stream.lw.profile(x="layer", series="rules", title="Does relevance add up?")

# %% [markdown]
# Where there are biases, they take their share of each sum, and that is most of it in the other two
# models. And in the CNN something is lost:

# %%
pictures = {
    k: dl.scores(vision, photos, rules=k, batch_size=1)
    for k in ("paper", "vision", "relp", "epsilon")
}
rows = {f"{encoder.name}: paper": dl.scores(encoder, texts, alike).attrs}
rows |= {f"{vision.name}: {k}": v.attrs for k, v in pictures.items()}
pd.DataFrame(rows).T[["nodes", "promises", "constants", "lost", "gap"]]

# %% [markdown]
# (`constants`, `lost`: shares of the relevance that started; `gap`: what is missing in the end.)
# The paper passes batch norms by identity. What then arrives at the convolution below is not shaped
# like its output $z$: where $z = 0$ it is lost, where $z$ is nearly zero it is multiplied by $1/z$.
# Without $\gamma$ it overflows within 49 such layers. Set "vision" treats a batch norm as what it is
# in evaluation, a scale and an offset; then nothing is lost, but the offsets take almost all.
#
# ### Perturbation curves
#
# Remove tokens, most relevant first (MoRF) or last (LeRF), and watch the answer's logit. A removed
# token gets the mean embedding. The area between the two curves (ABPC) is large if the attribution
# knows what matters; for a random order it is zero on average.

# %%
techniques = {"DynamicLRP": found, "with AttnLRP's softmax": other}
for name in ("gradient", "input x gradient", "ig", "random"):
    techniques[name] = dl.baseline(net, task, name, seed=seed)


def stacked(parts: dict[str, xr.DataArray]) -> xr.DataArray:
    every = [p.drop_attrs() for p in parts.values()]
    return xr.concat(every, "technique", coords="minimal", compat="override").assign_coords(
        technique=list(parts)
    )


text = dl.curves(net, task, stacked(techniques), points=max(points, 9) if full else points)
table = text.abpc.mean("prompt").transpose("technique", "measure").to_series().unstack("measure")
table.columns = ["answer's logit", "answer - foil"]
table.round(2)

# %%
few = text.curve.sel(measure="asked", technique=["DynamicLRP", "input x gradient"]).mean("prompt")
few = few.assign_coords(order=["most relevant first", "least relevant first"])
few = few.stack(line=["technique", "order"])
few = few.drop_vars(["line", "technique", "order"]).assign_coords(
    line=[", ".join(k) for k in few.line.values]
)
few.attrs["long_name"] = "logit of the answer"
few.lw.profile(x="removed", series="line", title="Tokens removed, and what becomes of the answer")

# %% [markdown]
# The same for two photographs, whose removed patches are blurred (16 x 16 pixels each):

# %%
top = vision.module(photos).argmax(1)
maps = {
    "DynamicLRP": pictures["paper"],
    "vision set": pictures["vision"],
    "RelP's rules": pictures["relp"],
}
for name in ("gradient", "input x gradient", "ig", "random"):
    maps[name] = dl.baseline(vision, photos, name, top, seed=seed)
seen = dl.curves(vision, photos, stacked(maps), top, points=points)
area = seen.abpc.sel(measure="asked")
area.to_series().unstack("prompt").rename(columns={0: "temple", 1: "flower"}).round(2)

# %%
patch = stacked({k: maps[k] for k in ("DynamicLRP", "input x gradient", "ig")}).isel(prompt=1)
patch = patch.coarsen(height=16, width=16).sum()
patch = (patch / np.abs(patch).max(("height", "width"))).assign_attrs(
    long_name="relevance, largest = 1"
)
patch.lw.heatmap(
    x="width", y="height", facet="technique", title="The flower, by patches", subtitle=""
)

# %% [markdown]
# ## Touch
#
# Relevance in the stream of one prompt, at every layer, under three sets of rules. A click puts the
# mean of all tokens in the place of that token's stream and runs the model: did the relevance say
# how much the answer would suffer?

# %%
one = task.subset([0])
sets = {k: dl.scores(net, one, rules=k, site="resid_pre") for k in ("paper", "attnlrp", "relp")}
board = xr.concat([s.isel(prompt=0).drop_attrs() for s in sets.values()], "rules", coords="minimal",
                  compat="override").assign_coords(rules=list(sets))  # fmt: skip
board.attrs = {"long_name": "relevance", "model": net.name}
resid = lw.cache(net, list(one.clean), "resid_pre").resid_pre
widget = lw.widgets.HeatMap(board, x="position", y="layer", maps="rules")


@widget.on_pick
def remove(pick) -> str:
    layer, position = int(pick["layer"]), int(pick["position"])
    mean = resid.sel(layer=layer).mean("position").values
    run = lw.patch(net, list(one.clean), {f"resid_pre.{layer}": mean[:, None]}, positions=position)
    before, after = (
        float(z.values.reshape(-1)[one.answer_ids[0]]) for z in (run.base_logits, run.logits)
    )
    return f"{pick.map}: relevance {pick.value:+.3f}; removed, the answer's logit goes from {before:.2f} to {after:.2f}."


widget.pick(min(10, net.n_layers - 1), 1)
widget

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
same = {"n": len(task), "seed": seed, "model": net}
pair = {**same, "n": 2}
lw.claim(
    "dynamiclrp.shown-is-library", kind="exact", measured=mismatch, expect="< 1e-6", **same,
    statement="the walk written out above gives the library's scores",
)  # fmt: skip

# %%
worst = max(kept["paper"].gap, kept["relp+attention"].gap)
lw.claim(
    "dynamiclrp.conserved", kind="exact", measured=float(worst), expect="< 1e-3", **pair,
    statement="relevance of tokens + what constants took = relevance at the start, relative",
)  # fmt: skip

# %%
if kept["paper"].constants == 0:
    lw.claim(
        "dynamiclrp.conserved-at-every-layer", kind="exact", expect="< 1e-3", **pair,
        measured=float(np.abs(kept["paper"].relevance - 1).max()),
        statement="without biases the stream holds all relevance at every layer, relative error",
    )  # fmt: skip

# %%
lw.claim(
    "dynamiclrp.conserved-at-every-node", kind="exact", expect="< 1e-4", **pair,
    measured=float(kept["paper"].error.max()),
    statement="every operation hands on what it got, relative to the absolute relevance there",
)  # fmt: skip

# %%
lw.claim(
    "dynamiclrp.weights-in-parallel-double-count", kind="exact", expect="> 0.01", **pair,
    measured=abs(float(kept["paper"].parallel)),
    statement="what the weights would get, were theirs given beside the inputs' (start = 1), and "
    "by how much the total would then be off",
)  # fmt: skip

# %% [markdown]
# The promise engine against one that needs no promise, because every output was recorded during the
# forward pass; and against plain gradients, to which a set of rules falls back:

# %%
gaps: dict[str, list[float]] = {
    "promised = recorded": [],
    "rebuilt = recorded": [],
    "= x * gradient": [],
}
for m, what, target in ((net, two, None), (encoder, texts, alike), (vision, photos[:1], None)):
    sites = [] if m is vision else [lw.models.Address("embed")]
    with dl.recording() as recorded:
        run = dl.ask(m, what, target, sites)
    (x,) = run.reads.values()
    promised = dl.propagate(run.output, [x], start=run.weights, rules="paper")
    direct = dl.propagate(run.output, [x], start=run.weights, rules="paper", known=recorded)
    a, b = promised.inputs[0], direct.inputs[0]
    gaps["promised = recorded"].append(float((a - b).abs().max() / b.abs().max()))
    rebuilt = [(p.value, recorded.get(p.node.next_functions[p.operand])) for p in promised.promises]
    gaps["rebuilt = recorded"].append(
        max(float((v - r).abs().max() / r.abs().max()) for v, r in rebuilt if r is not None)
    )
    slope = torch.autograd.grad(run.value.sum(), x, retain_graph=True)[0] * x.detach()
    g = dl.propagate(run.output, [x], start=run.start("value"), rules="gradient").inputs[0]
    gaps["= x * gradient"].append(float((g - slope).abs().max() / slope.abs().max()))
    print(f"{m.name}: {len(promised.promises)} promises, {len(recorded)} outputs recorded")
    del run, promised, direct, recorded, x
pd.DataFrame(gaps, index=[net.name, encoder.name, vision.name])

# %%
lw.claim(
    "dynamiclrp.promises-kept", kind="exact", measured=max(gaps["promised = recorded"]), expect="< 1e-5",
    statement="relevance by promises equals relevance by recorded outputs, three models, relative",
    **pair,
)  # fmt: skip

# %%
lw.claim(
    "dynamiclrp.operands-rebuilt", kind="exact", measured=max(gaps["rebuilt = recorded"]), expect="< 1e-5",
    statement="every rebuilt operand equals the one of the forward pass, three models, relative",
    **pair,
)  # fmt: skip

# %%
lw.claim(
    "dynamiclrp.gradient-set-is-gradient", kind="exact", measured=max(gaps["= x * gradient"]), expect="< 1e-3",
    statement="with signed ratios and slopes for rules, relevance is input x gradient, three models",
    **pair,
)  # fmt: skip

# %% [markdown]
# Module by module and operation by operation are two ways to one thing, where both apply: RelP's
# rules (`lw.rules`) are ours with signed ratios for sums, halves for products, and scales held
# constant. They part where a module is made of several operations (GPT-2's GELU).

# %%
ops = {str(o) for o in counts[net.name].operation.values}
gap = []
for name, rule in (
    {} if net.anatomy.refuses_rules else {"relp": relp.RULES, "relp+attention": relp.EVERY}.items()
):
    mine = dl.scores(net, two, rules=name, start="value", contrast=True, site="resid_pre", layers=0)
    with lw.rules(net, **relp.switches(rule)) as view:
        module = lw.grads(view, list(two.clean), two, "resid_pre", layers=0)
    theirs = (module.resid_pre * module.resid_pre_value).sum("d_model").values
    gap.append(float(np.abs(mine.values - theirs).max() / np.abs(theirs).max()))
if not gap:
    print(f"{net.name} has no rules by module: {net.anatomy.refuses_rules}")
elif {"TanhBackward0", "ClampBackward1"} & ops:
    print(f"{net.name} builds curves from several operations, or clips; gaps {gap}")
else:
    lw.claim(
        "dynamiclrp.agrees-with-relp", kind="exact", measured=max(gap), expect="< 1e-3", **pair,
        statement="with RelP's rules, relevance of tokens is RelP's, with and without its "
        "attention rule, relative to the largest",
    )  # fmt: skip

# %% [markdown]
# ### What the paper says
#
# Intervals are 95 %, from resampling pairs of prompts.

# %%
lw.claim(
    "dynamiclrp.coverage", kind="paper", measured=share, expect=">= 0.999",
    statement=f"share of {total:.0f} nodes that have a rule, {len(counts)} architectures "
    "(paper: 99.92 % of 31,465 in 15)", paper="abstract",
    pinned={"smollm2-135m": "reproduced"}, n=len(counts), seed=seed, model=net,
)  # fmt: skip


# %%
def lead(
    id: str, versus: str, statement: str, pin: str, measure: str = "asked", **more: str
) -> None:
    by = text.abpc.sel(measure=measure)
    gain = by.sel(technique="DynamicLRP") - by.sel(technique=versus)
    low, high = (float(v) for v in gain.lw.interval(seed=seed).sel(estimate=["low", "high"]))
    lw.claim(
        f"dynamiclrp.{id}", kind="paper", measured=float(gain.mean()), interval=(low, high),
        expect="> 0", statement=statement, pinned={"smollm2-135m": pin}, unit="logit", **same, **more,
    )  # fmt: skip


lead(
    "beats-random", "random", "ABPC of DynamicLRP minus that of a random order, tokens",
    pin="reproduced", paper="table of ABPC",
    note="placebo; six prompts, so this is two to three standard errors, mostly of the random order",
)  # fmt: skip

# %%
lead(
    "beats-ig", "ig", "ABPC of DynamicLRP minus that of IG, tokens (paper, ViT: 1.46 - 0.10)",
    pin="reproduced", paper="abstract",
)  # fmt: skip

# %%
lead(
    "beats-gradient", "gradient", "ABPC of DynamicLRP minus that of the gradient's length, tokens",
    pin="reproduced", paper="table of ABPC",
)  # fmt: skip

# %%
slopes = ["gradient", "input x gradient", "ig"]
ahead = float(
    (area.sel(technique="DynamicLRP") - area.sel(technique=slopes).max("technique")).min()
)
lw.claim(
    "dynamiclrp.beats-gradients-on-pictures", kind="paper", measured=ahead, expect="> 0", unit="logit",
    statement="ABPC minus that of the best of gradient, input x gradient and IG, the worse of two "
    "photographs, EfficientNet-Lite0 (paper, ViT: 1.46 against 0.10 and -0.003)",
    pinned={"smollm2-135m": "reproduced"}, paper="abstract", n=2, seed=seed, model=net,
)  # fmt: skip

# %%
named = task.positions["IO"].numpy()
hits = {
    k: float((techniques[k].argmax("position").values == named).mean())
    for k in list(techniques)[:2]
}
lw.claim(
    "dynamiclrp.top-token-is-the-answer", kind="paper", measured=hits["DynamicLRP"], expect=">= 0.9",
    statement="share of prompts whose most relevant token is the answer's own earlier mention "
    "(paper: inside the answer span, SQuADv2, 93.7 %)", paper="abstract",
    note="the first token, where attention is parked, comes first nearly always",
    pinned={"smollm2-135m": "not reproduced"}, **same,
)  # fmt: skip

# %%
lw.claim(
    "dynamiclrp.top-token-with-attnlrp", kind="paper", measured=hits["with AttnLRP's softmax"],
    expect=">= 0.9", statement="the same with AttnLRP's rule for softmax", paper="AttnLRP option",
    pinned={"smollm2-135m": "reproduced"}, **same,
)  # fmt: skip

# %% [markdown]
# ### What the paper does not ask

# %%
mean = text.abpc.sel(technique="DynamicLRP").mean("prompt")
lw.claim(
    "dynamiclrp.area-is-about-the-answer", kind="paper", expect="> 0.5",
    measured=float(mean.sel(measure="contrast") / mean.sel(measure="asked")),
    statement="ABPC of answer minus foil, as a share of ABPC of the answer's logit",
    note="tokens that go move all logits together (with none left the answer's is higher than at "
    "the start): most of the area is not about this answer",
    pinned={"smollm2-135m": "not reproduced"}, **same,
)  # fmt: skip

# %%
lw.claim(
    "dynamiclrp.batch-norm-identity-conserves", kind="paper", expect="< 0.01",
    measured=abs(float(pictures["paper"].lost)),
    statement="share of relevance lost in EfficientNet-Lite0, the paper's rules",
    note="identity through a batch norm brings relevance to outputs of a convolution that are "
    "zero; without gamma it overflows. VGG16 of the paper has no batch norms",
    pinned={"smollm2-135m": "not reproduced"}, n=2, seed=seed, model=net,
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **An operation without a rule.** Write a `torch.autograd.Function`, ask for relevance through
#    it, read the error, and give it a rule with `Rules(custom={...})`.
# 2. **Your own network.** Any module will do. Take a GRU step built from linear layers: how many
#    promises does it need, and does the relevance of its two inputs add up to one?
# 3. **Who parks?** How much relevance stays at the first token under each set of rules?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.


# %% jupyter={"source_hidden": true}
# 1. The name to give is the one in the error. The rule returns one relevance for each operand.
class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


x = torch.randn(1, 4, requires_grad=True)
y = w4(Double.apply(x))[0, 0]
try:
    dl.propagate(y, [x])
except lw.errors.BadInput as error:
    print(error)
mine = dl.Rules(custom={"DoubleBackward": lambda node, given, values: list(given)})
print(
    f"with a rule of its own: {dl.propagate(y, [x], rules=mine).inputs[0].sum():.4f} of 1 arrives"
)

# %% jupyter={"source_hidden": true}
# 2. (1 - z) holds a constant that the graph does not: it takes nothing.
x, h = torch.randn(1, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
gate, new = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
z = torch.sigmoid(gate(torch.cat([x, h], 1)))
after = (1 - z) * h + z * torch.tanh(new(torch.cat([x, h], 1)))
step = dl.propagate(after[0, 0], [x, h])
print({k: round(float(r.sum()), 4) for k, r in zip("xh", step.inputs)}, f"gap {step.gap:.0e}")
print(*map(str, step.promises), sep="\n")

# %% jupyter={"source_hidden": true}
# 3. Only rules that let the softmax decide keep away from it.
{
    k: round(float(np.abs(s.isel(layer=0, position=0)).sum() / np.abs(s.isel(layer=0)).sum()), 2)
    for k, s in sets.items()
}
