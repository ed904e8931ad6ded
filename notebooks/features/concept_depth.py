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
#     id: concept-depth
#     family: features
#     title: "Exploring Concept Depth: How Large Language Models Acquire Knowledge at Different Layers?"
#     paper: "2404.07066"
#     cost: {seconds: 55, memory_mb: 1600}
#     model: smollm2-135m
# ---

# %% [markdown]
# # Concept depth: in which layer does a model know?
#
# **The idea in one sentence:** ask every layer the same question with the simplest possible reader,
# one weighted sum of its units, and note from which layer on the answer is right.
#
# Jin et al. 2024, [arXiv:2404.07066](https://arxiv.org/abs/2404.07066) ·
# [their code](https://github.com/Luckfort/CD)
#
# They probe Gemma, Llama and Qwen on nine sets of texts and find that facts can be read in shallow
# layers, emotions later, conclusions last; and that noise in the input or 8-bit weights push
# everything deeper. Here the sets are made by seed, so that **words alone do not give the answer
# away**, and every curve has its interval and its placebos.
#
# **Cost** with SmolLM2-135M: under a minute on two CPU cores, 1.6 GB of memory. Any text model
# will do, encoders too: `lwlab run concept-depth -p model=all-minilm-l6`. The pinned verdicts are
# SmolLM2-135M's; tried besides: all-MiniLM-L6 and toys of the Llama and BERT kinds.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full adds coins and 3-bit
n: int = 96  # texts a concept
table: str = ""  # your own concept: a .csv with the columns text, label and, perhaps, group
c: float = 0.05  # weight of the data against the probes' penalty
seed: int = 0

# %%

import altair as alt
import numpy as np
import pandas as pd
import torch
import xarray as xr

import lwlab as lw
from lwlab.features import concept_depth as cd
from lwlab.features.probes import fit_probe, folds_of, held_out

lw.charts.enable()
net = lw.load(model)
L = net.n_layers
names = ["cities", "sentiment", "negated", "syllogism"]
concepts = [lw.tasks.concept(k, n, seed) for k in names]
if profile == "full":
    concepts.append(lw.tasks.concept("coins", min(n, 32), seed))
if table:
    concepts.append(lw.tasks.read_concept(table))
print(net)
pd.concat([k.to_frame().head(4).assign(concept=k.name, kind=k.kind) for k in concepts])

# %% [markdown]
# Texts come in groups that share their words. Look at a group of *cities*: each city and each
# country is in one true and one false sentence. A reader that adds up weights of words gives true
# and false the same sum, however long it trained; and whole groups are held out, so that the probe
# is judged on cities it has never seen. *negated* does the same for feelings ("anything but
# awful"), *syllogism* for conclusions. *sentiment* is the plain kind: the class is in one
# adjective, but in one that the probe has not met.
#
# ## The idea in one picture
#
# Accuracy of a linear probe on held-out texts, at the last token (a full stop in every text), of
# the residual stream after $0, 1, \dots, L$ blocks. Bands: 95 % intervals over groups.

# %%
vectors = {k.name: cd.states(net, k.texts) for k in concepts}  # (layer, prompt, d_model) each
every = range(0, L + 1, max(1, L // 10))  # where controls are measured
options = {"c": c, "seed": seed}
found = cd.study(net, concepts, draws=5, control_layers=every, vectors=vectors, **options)
acc = cd.accuracy(found, seed=seed).isel(variant=0)


def curves(of: xr.DataArray, title: str) -> alt.LayerChart:
    low, high = (of.sel(estimate=e) for e in ("low", "high"))
    return lw.charts.profile(
        of.sel(estimate="mean"), x="layer", series="concept", low=low, high=high, title=title,
        subtitle=f"{net.name}, {n} texts a concept", width=520, height=260,
    )  # fmt: skip


curves(acc, "From which layer on can each concept be read?")

# %% [markdown]
# At layer 0 nothing can be read: the last token is a full stop, the same vector for every text.
# What rises above 0.5 was brought there by attention.
#
# ## The method
#
# Let $x_i^{(l)}$ be the vector of text $i$ at layer $l$, every unit standardised on the training
# texts, and $s_i = \pm 1$ its class. A probe is the minimum of
#
# $$\tfrac12 \lVert w \rVert^2 + C \sum_i \log\left(1 + e^{-s_i (w^\top x_i^{(l)} + b)}\right),$$
#
# a logistic regression. There are fewer texts than units, so the penalty is strong ($C = 0.05$).
# With $\alpha_l$ the accuracy on held-out texts and $\beta_l = \alpha_l / \alpha_{l-1}$ the paper
# reads two depths off a curve, to which we add two:
#
# | | |
# |---|---|
# | **jump** | the first $l$ with $\beta_l \ge 1.1$ |
# | **converge** | the last $l$ with $\lvert\beta_l - 1\rvert \ge 0.03$: after it the curve is flat |
# | **ready** | the first $l$ with $\alpha_l \ge \max \alpha - 0.02$ |
# | **half** | the first $l$ half way up from chance to $\max \alpha$ (none where $\max \alpha < 0.65$) |
#
# The whole of it, written out with scikit-learn, for one concept at four layers:

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

facts = concepts[0]
y, fold = np.array(facts.labels), folds_of(facts.labels, facts.groups, seed=seed)
shown = [1, L // 3, 2 * L // 3, L]
by_hand = np.zeros((len(shown), len(y)))
for i, layer in enumerate(shown):
    x = vectors[facts.name].sel(layer=layer).values.astype(np.float64)
    for k in range(5):
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(C=c, tol=1e-8, max_iter=1000)
        ).fit(x[fold != k], y[fold != k])
        by_hand[i, fold == k] = probe.decision_function(x[fold == k])

# %% [markdown]
# The library solves all layers at once with Newton's method in the span of the texts, which is
# a hundred times less work than this loop at every layer, and gives the same numbers:

# %%
library = cd.probe_layers(net, facts, vectors=vectors[facts.name], **options)
mismatch = float(np.abs(by_hand - library.score.sel(layer=shown).values).max())
print(f"largest difference in log odds: {mismatch:.1e}")
library

# %% [markdown]
# ## Results
#
# ### Where each concept arrives

# %%
points = cd.points(found, n=1000, seed=seed).isel(variant=0)
rows = []
for k in found.concept.values:
    row = {"concept": k, "kind": str(found.kind.sel(concept=k).values)}
    for name in ("jump", "converge", "ready", "half"):
        value, low, high = cd.estimate(points[name].sel(concept=k))
        row[name] = "none" if np.isnan(value) else f"{value:.0f} [{low:.0f}, {high:.0f}]"
    best = acc.sel(concept=k, estimate="mean")
    row |= {"best layer": int(best.idxmax()), "best accuracy": round(float(best.max()), 2)}
    row["AUC there"] = round(float(found.auc.isel(variant=0).sel(concept=k).max()), 2)
    rows.append(row)
pd.DataFrame(rows).set_index("concept")

# %% [markdown]
# Intervals are from resampled groups of texts. *jump*, *converge* and *ready* hang on a wiggle: with
# a hundred texts, one text more is a change of 1 %, and their intervals span ten layers. *half*
# stands where the curve is steep, and is used to compare from here on.
#
# In SmolLM2-135M a feeling that is in one word can be read after one or two blocks. A feeling that
# must be put together waits for the middle of the model, and so does the fact that Paris is in
# France: little until layer 9, almost all of it two blocks later. So whether facts come before
# feelings depends on how the feeling is put. Whether a conclusion follows, no layer's full stop
# tells: this model is too small, or keeps it elsewhere.
#
# ### Placebos
#
# What is an accuracy worth?
#
# * **shuffled labels**: the same probes, on classes that mean nothing (accuracy less this is the
#   *selectivity* of the probe);
# * a **bag of words**, and the **mean of the word embeddings**, which need no model above them;
# * an **untrained** network of as many layers (192 wide) on the same tokens.

# %%
from lwlab.models import toys

module, _ = toys.tiny(
    "llama", seed=seed, num_hidden_layers=L, hidden_size=192, intermediate_size=512,
    num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=4096,
    vocab_size=net.d_vocab,
)  # fmt: skip
blank = lw.wrap(module, tokenizer=net.tokenizer, name=f"untrained llama of {L} layers")
untrained = cd.study(blank, concepts, **options)
del module, blank


def embedded(k: lw.tasks.Concept) -> float:
    """Accuracy of the same probe on the mean of a text's embeddings."""
    x = cd.states(net, k.texts, token="mean", layers=[0]).values
    right = held_out(torch.as_tensor(x), k.labels, folds_of(k.labels, k.groups, seed=seed), c)
    return float((np.sign(right.numpy()) == 2 * np.array(k.labels) - 1).mean())


blank_best = untrained.correct.isel(variant=0).mean("prompt").max("layer")
pd.DataFrame({
    "best layer": acc.sel(estimate="mean").max("layer").to_series(),
    "shuffled labels": found.control.mean(("draw", "layer")).to_series(),
    "bag of words": found.words.to_series(),
    "mean embedding": pd.Series({k.name: embedded(k) for k in concepts}),
    "untrained, its best layer": blank_best.to_series(),
}).round(2)  # fmt: skip

# %% [markdown]
# (The best of 31 layers is 0.5 only on average of layers: with 96 texts the luckiest of so many
# useless probes gets 0.6.)
#
# ### Why whole groups are held out
#
# Give every group of *cities* a class at random. There is nothing to know. Yet if texts are split
# at random, both halves hold the same cities, and the probe learns them by heart:

# %%
rng, of = np.random.default_rng(seed), np.array(facts.groups)
parts = min(5, len(set(facts.groups)) // 2)  # two groups or more to a fold
deal = folds_of(facts.labels, facts.groups, parts, seed)
secret = np.zeros(len(of), dtype=int)
for k in range(parts):  # half of the groups of each fold, as near as may be
    inside = rng.permutation(np.unique(of[deal == k]))
    secret[np.isin(of, inside[::2])] = 1

x = torch.as_tensor(vectors[facts.name].sel(layer=list(every)).values)
splits = {"texts split at random": range(len(of)), "whole groups held out": facts.groups}
right = [
    held_out(x, secret, folds_of(secret, groups, parts, seed), c).numpy() * (2 * secret - 1) > 0
    for groups in splits.values()
]
leak = lw.results.label(
    np.stack(right).astype(float), ("split", "layer", "prompt"),
    {"split": list(splits), "layer": list(every)}, long_name="accuracy",
)  # fmt: skip
lw.charts.profile(
    leak.mean("prompt", keep_attrs=True).isel(layer=slice(1, None)), series="split", width=420, height=150,
    title="Held-out accuracy on classes that mean nothing", subtitle=f"{net.name}, cities",
)  # fmt: skip

# %% [markdown]
# ### Noise and rounded weights
#
# The paper puts a meaningless string before each text ("aaa" or "bbb"), or rounds the weights to 8
# bits. Do concepts arrive later?

# %%
variants = ["plain", "noise", "8-bit", *(["3-bit", "noise+8-bit"] if profile == "full" else [])]
short = concepts if profile == "full" else [concepts[0], concepts[2]]  # those with a steep rise
before = cd.states(net, facts.texts[:32])
hurt = cd.study(net, short, variants[1:], **options)
after = cd.states(net, facts.texts[:32])  # the weights must be what they were
kept = found.drop_vars("control").sel(concept=[k.name for k in short])
moved = xr.concat(
    [kept, hurt], "variant", data_vars="minimal", coords="minimal", compat="override",
    combine_attrs="override",
)  # fmt: skip
arrival = cd.points(moved, n=1000, seed=seed)
table_ = []
for k in moved.concept.values:
    for v in moved.variant.values:
        one = dict(
            zip(("half", "low", "high"), cd.estimate(arrival.half.sel(concept=k, variant=v)))
        )
        table_.append({"concept": k, "variant": v, **one})
base = alt.Chart(pd.DataFrame(table_)).encode(
    y=alt.Y("variant:N", sort=variants, title=None),
    color=alt.Color("variant:N", sort=variants, legend=None),
)
across = alt.X("low:Q", title="half way at layer (95 % interval)", scale=alt.Scale(domain=[0, L]))
spans = base.mark_rule(strokeWidth=3).encode(x=across, x2="high:Q")
dots = base.mark_point(filled=True, size=80, opacity=1).encode(x="half:Q", tooltip=["half:Q"])
(spans + dots).properties(width=190, height=70).facet(
    alt.Facet("concept:N", sort=list(moved.concept.values), title=None), columns=3,
    title=f"When each concept is half way ({net.name})",
)  # fmt: skip

# %%
hurt_acc = cd.accuracy(moved, n=50, seed=seed).sel(estimate="mean")
hurt_acc.attrs["long_name"] = "held-out accuracy"
picked = [k.name for k in short if k.name in ("cities", "negated")]
lw.charts.beside(*(
    lw.charts.profile(hurt_acc.sel(concept=k), x="layer", series="variant", title=str(k),
                      subtitle="", width=230, height=150)
    for k in picked
))  # fmt: skip

# %% [markdown]
# ## Touch
#
# Type sentences, one a line, ending in a full stop. Rows are layers, columns sentences; a cell is
# what the probe of that layer says at the last token. Click it; switch the concept; put noise in
# front; take bits from the weights. Does the fact arrive before the feeling?

# %%
from lwlab.features.concept_depth_panel import ProbePanel

lines = [
    "The city of Paris is in France.",
    "The city of Paris is in Poland.",
    "The soup was nothing but awful.",
    "The soup was anything but awful.",
]
panel = ProbePanel(net, concepts[:3], lines, c=c, vectors=vectors)
panel.map.pick(L // 2, 0)
panel

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
about = {"n": n, "seed": seed, "model": net}
level = float(np.ptp(vectors[facts.name].sel(layer=0).values, axis=0).max())
if level == 0:
    start = found.correct.isel(variant=0, layer=0).mean("prompt")
    lw.claim(
        "concept-depth.nothing-at-the-full-stop", kind="exact", expect="== 0", **about,
        measured=float(abs(start - 0.5).max()),
        statement="texts end in one token, so at layer 0 their vectors are equal: |accuracy - 1/2|",
    )  # fmt: skip
else:
    print(f"{net.name}: texts start with unequal last vectors (positions are in them)")

# %%
lw.claim(
    "concept-depth.words-alone-say-nothing", kind="exact", expect="== 0", **about,
    measured=float(abs(found.words.sel(concept=names) - 0.5).max()),
    statement="a linear bag of words gets one half of the held-out texts: |accuracy - 1/2|",
)  # fmt: skip

# %%
lw.claim(
    "concept-depth.shown-is-library", kind="exact", expect="< 1e-3", **about, measured=mismatch,
    statement="scikit-learn in a loop and the library's solver agree: largest gap of log odds",
)  # fmt: skip

# %%
z = torch.as_tensor(vectors[facts.name].values)
fitted = fit_probe(z, facts.labels, c)
units = (z.double() - fitted.mean[:, None]) / fitted.scale[:, None]
pull = torch.einsum("lnd,ln->ld", units, fitted.probability(z) - torch.as_tensor(y))
lw.claim(
    "concept-depth.probe-is-the-minimum", kind="exact", expect="< 1e-6", **about,
    measured=float((fitted.weight + c * pull).abs().max()),
    statement="the objective is convex and its slope at every layer's probe is zero",
)  # fmt: skip

# %%
lw.claim(
    "concept-depth.weights-come-back", kind="exact", expect="== 0", **about,
    measured=float(abs(after - before).max()),
    statement="after the rounded runs the model gives the vectors it gave before, to the bit",
)  # fmt: skip

# %% [markdown]
# ### What the paper says
#
# "Learned" compares the best layer with layer 1 (0.15 is three standard errors of 96 texts); intervals are over groups, at that layer. Depths
# are *half*, differences in layers, with intervals from resampled groups.

# %%
paper = "arXiv:2404.07066"
plain = found.correct.isel(variant=0)


def gap(k: str, a: int, b: int) -> dict[str, object]:
    """Accuracy of concept k at layer a less that at b, as arguments of a claim."""
    one = plain.sel(concept=k)
    of = found.group.sel(concept=k).values
    difference = (one.sel(layer=a) - one.sel(layer=b)).values
    there = of >= 0
    e = lw.stats.bootstrap(difference[there], seed=seed, groups=of[there])
    return {"measured": e.mean, "interval": e[1:], **about}


def peak(k: str) -> int:
    return int(acc.sel(concept=k, estimate="mean").idxmax())


for k, kind, expect, pin in (
    ("cities", "facts", "> 0.3", "reproduced"),
    ("sentiment", "feelings in a word", "> 0.1", "reproduced"),
    ("negated", "feelings turned round", "> 0.1", "reproduced"),
    ("syllogism", "conclusions", "> 0.15", "not reproduced"),
):
    lw.claim(
        f"concept-depth.learned-{k}", kind="paper", expect=expect, paper=paper,
        statement=f"{kind}: accuracy at the best layer ({peak(k)}) less that at layer 1",
        pinned={"smollm2-135m": pin}, **gap(k, peak(k), 1),
    )  # fmt: skip


# %%
def later(draws: xr.DataArray, id: str, expect: str, statement: str, pin: str, **more: str) -> None:
    value, low, high = cd.estimate(draws)
    lw.claim(
        f"concept-depth.{id}", kind="paper", expect=expect, statement=statement, unit="layers",
        measured=value, interval=(low, high), pinned={"smollm2-135m": pin}, **about, **more,
    )  # fmt: skip


half, ready = (points[k].drop_vars("variant") for k in ("half", "ready"))
facts_, words_, turned = (half.sel(concept=k, drop=True) for k in names[:3])
by_ready = cd.estimate(
    ready.sel(concept="sentiment", drop=True) - ready.sel(concept="cities", drop=True)
)
later(
    words_ - facts_, "facts-before-feelings", "> 0", "feelings are half way later than facts",
    "not reproduced", paper=f"{paper}, abstract",
    note="polarity is in a word and its embedding; a capital must be recalled. By *ready*, fixed "
    "before half was added: {:.0f} [{:.0f}, {:.0f}]".format(*by_ready),
)  # fmt: skip

# %%
shift = arrival.half - arrival.half.sel(variant="plain")
jumps = (arrival.jump - arrival.jump.sel(variant="plain")).mean("concept")
later_jump = "; by *jump* {:.1f} [{:.1f}, {:.1f}]"
tenth = max(1, round(L / 10))
why = {
    "noise": "one odd word before the sentence; a delay of one layer is not excluded",
    "8-bit": "eight bits a weight lose little; SmolLM2's own weights were made from four",
}
for v, id in (("noise", "noise-delays"), ("8-bit", "rounding-delays")):
    later(
        shift.sel(variant=v).mean("concept"), id, f">= {tenth}",
        f"{v}: concepts are half way later by a tenth of the layers or more, on average", "not reproduced",
        paper=f"{paper}, abstract", note=why[v] + later_jump.format(*cd.estimate(jumps.sel(variant=v))),
    )  # fmt: skip

# %% [markdown]
# ### What the paper does not ask

# %%
later(
    turned - words_, "turned-later-than-plain", "> 0",
    "a feeling that must be put together (anything but awful) is half way later than one in a word",
    "reproduced", paper="control",
)  # fmt: skip

# %%
spread = 3 * (0.25 / n) ** 0.5
control = found.control.mean(("draw", "layer"))
lw.claim(
    "concept-depth.shuffled-labels", kind="paper", paper="control", expect=f"< {spread:.3f}",
    measured=float(abs(control - 0.5).max()), pinned={"smollm2-135m": "reproduced"}, **about,
    statement="shuffled labels give one half: |accuracy - 1/2|, the worst concept",
)  # fmt: skip

# %%
selective = (acc.sel(estimate="mean").max("layer") - control).sel(concept=names[:2])
lw.claim(
    "concept-depth.selectivity", kind="paper", paper="arXiv:1909.03368", expect="> 0.2",
    measured=float(selective.min()), pinned={"smollm2-135m": "reproduced"}, **about,
    statement="probes read the concept, not anything: accuracy less that on shuffled labels, the "
    "lower of facts and feelings",
)  # fmt: skip

# %%
lw.claim(
    "concept-depth.not-without-training", kind="paper", paper="control", expect="< 0.7",
    measured=float(blank_best.max()), pinned={"smollm2-135m": "reproduced"}, **about,
    statement="no layer of an untrained network knows any of the concepts: best accuracy of all",
)  # fmt: skip

# %%
gain = (leak.isel(split=0) - leak.isel(split=1)).sel(layer=list(every)[1:]).mean("layer")
e = lw.stats.bootstrap(gain.values, seed=seed, groups=of)
lw.claim(
    "concept-depth.random-splits-leak", kind="paper", paper="control", expect="> 0.2",
    measured=e.mean, interval=e[1:], pinned={"smollm2-135m": "reproduced"}, **about,
    statement="classes without meaning look known if texts are split at random: gain in accuracy",
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **Your own concept.** Write eight sentences of two classes and see whether any layer tells them
#    apart. Which words would a bag of words use?
# 2. **Another place to read.** The paper's code hooks the MLP's normalised input (`mlp_in`). Does
#    the depth of *cities* change?
# 3. **The mean instead of the last token.** Read the mean over tokens. Why is layer 0 no longer
#    blind to *sentiment*?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. Questions and statements, which differ in word order; every subject is its own group.
pairs = [("the dog", "hungry"), ("the train", "late"), ("the soup", "hot"), ("the door", "open")]
mine = [(f"{s.capitalize()} is {a}.", 0, i) for i, (s, a) in enumerate(pairs)]
mine += [(f"Is {s} {a}.", 1, i) for i, (s, a) in enumerate(pairs)]
texts, labels, groups = zip(*mine)
question = lw.tasks.Concept("question", texts, labels, groups, ("statement", "question"))
own = cd.probe_layers(net, question, folds=4)
print(f"bag of words: {cd.bag_of_words(question, folds=4):.2f}")
print("by layer:", own.correct.mean("prompt").values[:: max(1, L // 6)])

# %% jupyter={"source_hidden": true}
# 2. Layer l of mlp_in lies inside block l, so compare it with the stream after l blocks.
some = lw.tasks.concept("cities", max(24, n // 2), seed)
stream, inside = (cd.probe_layers(net, some, site=s, **options) for s in ("resid", "mlp_in"))
for name, one in (("stream", stream), ("mlp_in", inside)):
    value, low, high = cd.estimate(cd.points(one, n=300, seed=seed).half)
    best = float(one.correct.mean("prompt").max())
    print(f"{name}: best {best:.2f}, half way at {value:.0f} [{low:.0f}, {high:.0f}]")

# %% jupyter={"source_hidden": true}
# 3. The embedding of an adjective that was never trained on still lies near its like.
for k in concepts[:3]:
    print(f"{k.name}: the mean of the embeddings gives {embedded(k):.2f}")
