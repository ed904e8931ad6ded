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
#     id: snmf
#     family: features
#     title: "Decomposing MLP Activations into Interpretable Features via Semi-Nonnegative Matrix Factorization"
#     paper: "2506.10920"
#     cost: {seconds: 50, memory_mb: 1500}
#     model: smollm2-135m
# ---

# %% [markdown]
# # SNMF: what do neurons mean together?
#
# **The idea in one sentence:** one neuron says little, but a token's MLP activations are a sum of
# *non-negative amounts* of a few *sparse combinations of neurons*; find those combinations by
# factorising a matrix, without labels and without training an autoencoder.
#
# Shafran, Ronen, Fahn, Ravfogel, Geiger & Geva 2025,
# [arXiv:2506.10920](https://arxiv.org/abs/2506.10920) ·
# [their code](https://github.com/ordavid-s/snmf-mlp-decomposition)
#
# **Cost** with SmolLM2-135M: under a minute on two CPU cores, 1.5 GB of memory. Any decoder with
# MLP neurons will do: `lwlab run snmf -p model=gpt2`. Encoders will do for all but steering
# (`-p model=all-minilm-l6 -p layer=3` was tried). The text tells what SmolLM2 does.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full: more words, longer fits
layer: int = -1  # whose MLP; -1: three fifths of the way up
k: int = 30  # features
sparsity: float = 0.05  # the share of neurons that a feature keeps; the paper's default is 0.01
n: int = 12  # words of each concept
restarts: int = 3  # factorisations from different random starts
seed: int = 0

# %%
import altair as alt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from IPython.display import display

import lwlab as lw
from lwlab.features import (
    auc,
    collect,
    concepts,
    cosine,
    dictionaries,
    purity,
    snmf,
    steer,
    top_contexts,
    top_neurons,
    vocabulary,
    written,
)
from lwlab.features.concept_words import NEUTRAL
from lwlab.features.snmf_browser import FeatureBrowser

lw.charts.enable()
net = lw.load(model)
quick = profile == "quick"
at = layer if layer >= 0 else (3 * net.n_layers) // 5
words = concepts(net, n=n if quick else None, seed=seed)
every = collect(net, words, at)
seen, unseen = every.sel(sample=~every.held_out), every.sel(sample=every.held_out)
pd.crosstab(every.concept.values, every.held_out.values).T

# %% [markdown]
# The data: words of ten concepts, each at the end of three short sentences. One row of $A$ is the
# MLP's activations (what $W_{down}$ reads) at the word's last token, in one layer. A third of the
# words is held out: features are found, and chosen, without them.
#
# ## The idea in one picture
#
# Left: the thirty neurons that vary most, and how much of their activation each concept gets.
# Right: as many features of SNMF. Neither has seen a label.

# %%
fits = {
    p: [
        snmf.factorise(seen, k, sparsity=p, iterations=120 if quick else 2000, patience=60, seed=s)
        for s in range(seed, seed + restarts)
    ]
    for p in (sparsity, 0.01, 1.0)
}
fit = fits[sparsity][0]
single = dictionaries.neurons(seen, k)


def by_concept(found: xr.Dataset) -> xr.DataArray:
    y = found.coefficient.groupby("concept").mean()
    y = (y / y.sum("concept")).sel(concept=list(words.names))
    best = np.lexsort((-y.max("concept").values, y.argmax("concept").values))
    return y.isel(feature=best).assign_coords(feature=range(y.sizes["feature"]))


two = xr.concat([by_concept(single), by_concept(fit)], "basis", coords="minimal")
two = two.assign_coords(basis=["neurons", "SNMF features"]).transpose("basis", "concept", "feature")
two.attrs = {"long_name": "share of the feature"}
two.lw.heatmap(x="feature", y="concept", facet="basis", title="What is a feature active on?")

# %% [markdown]
# ## The method
#
# $$A \approx Y Z, \qquad Y \ge 0, \qquad Z \text{ of both signs, each row sparse.}$$
#
# A gated MLP's activations have both signs, so plain NMF does not apply; but *how much* of a
# feature a token has should not be negative. Each iteration:
#
# 1. $Z \leftarrow (Y^\top Y)^{-1} Y^\top A$: the best directions for these amounts;
# 2. keep the largest entries of each $Z_j$, a share `sparsity` of the neurons; zero the others;
# 3. scale the columns of $Y$ to length one, and $Z$ by what they were;
# 4. $Y \leftarrow Y \odot \sqrt{(P^+ + Y Q^-) / (P^- + Y Q^+)}$ with $P = A Z^\top$,
#    $Q = Z Z^\top$: an update that cannot leave $Y \ge 0$, and never raises $\|A - YZ\|$
#    (Ding, Li & Jordan 2010).
#
# Written out, twenty iterations of it:

# %%
A = torch.from_numpy(seen.values).double()
support = int(np.ceil(sparsity * A.shape[1]))
Y = torch.from_numpy(np.random.default_rng(seed).random((len(A), k))).clamp(min=1e-6)
for _ in range(20):
    Z = torch.linalg.solve(Y.T @ Y + 1e-6 * torch.eye(k), Y.T @ A)
    smallest = Z.abs().kthvalue(A.shape[1] - support + 1, dim=1, keepdim=True).values
    Z = torch.where(Z.abs() >= smallest, Z, 0)
    norm = Y.norm(dim=0)
    Y, Z = Y / norm, Z * norm[:, None]
    P, Q = A @ Z.T, Z @ Z.T
    Y = Y * ((P.relu() + Y @ (-Q).relu()) / ((-P).relu() + Y @ Q.relu() + 1e-6)).sqrt()
shown = float(((A - Y @ Z) ** 2).sum() / (A**2).sum())

exactly = seen.astype(float)
twenty = snmf.factorise(exactly, k, sparsity=sparsity, iterations=20, seed=seed)
print(f"error written out {shown:.6f}, the library's after 20 {float(twenty.error[-1]):.6f}")

# %% [markdown]
# Without step 2 the error falls and falls. With it, step 1 and step 2 work against each other; the
# library keeps the best iterate. `refit=True` solves step 1 on what step 2 kept, which costs
# more and errs less:

# %%
mended = snmf.factorise(
    seen,
    k,
    sparsity=sparsity,
    iterations=120 if quick else 2000,
    patience=60,
    refit=True,
    seed=seed,
)
names = {f"keep {p:.0%}": fits[p][0] for p in (1.0, sparsity, 0.01)}
names[f"keep {sparsity:.0%}, refit"] = mended
curves = xr.concat([f.error for f in names.values()], "kept").assign_coords(kept=list(names))
curves.attrs["long_name"] = "share of |A|² not explained"
curves.lw.profile(x="iteration", series="kept", title="The error while it is found")

# %% [markdown]
# ## Results
#
# ### Features, their neurons and their contexts
#
# What makes a feature: where it is largest, of which neurons it consists, and which tokens its
# direction in the stream, $W_{down} Z_j$, raises.

# %%
sim = cosine(seen, fit.direction)
reads = net.anatomy.unembed is not None
lens = vocabulary(net, fit.direction, at, 5) if reads else None
rows = []
for j in auc(sim).max("concept").argsort().values[::-1][:8]:
    best = top_contexts(sim, int(j), 24)
    parts = top_neurons(fit.direction, int(j), 3)
    rows.append({
        "feature": int(j),
        "most at": ", ".join(list(dict.fromkeys(best.word.values))[:6]),
        "neurons": ", ".join(f"{i} ({w:+.2f})" for i, w in zip(parts.neuron.values, parts.values)),
        "writes": " ".join(lens.token_str.sel(feature=j).values) if reads else "",
    })  # fmt: skip
pd.set_option("display.max_colwidth", 60)
pd.DataFrame(rows).set_index("feature")

# %% [markdown]
# ### Against what else could be done
#
# * the $k$ **neurons** of highest variance;
# * **PCA**: the axes of largest variance, both ends of each;
# * **NMF** of $|A|$: all non-negative, the signs of neurons lost;
# * a small sparse autoencoder (**SAE**, TopK) trained on the same rows, of the same width, with as
#   many features active as SNMF has (by the participation ratio of its rows);
# * **difference in means**, one direction a concept, which is told the labels;
# * **random** directions, and SNMF in an **untrained** model: placebos.
#
# For each concept the feature with the best AUC on the words seen is chosen (the score of a token
# is its cosine with the feature), then asked about the words held out.

# %%
y = fit.coefficient
active = max(1, round(float((y.sum("feature") ** 2 / (y**2).sum("feature")).mean())))
bases = {
    f"SNMF, keep {sparsity:.0%}": fit,
    "SNMF, keep 1%": fits[0.01][0],
    "SNMF, keep all": fits[1.0][0],
    "neurons": single,
    "PCA": dictionaries.pca(seen, k // 2),
    "NMF of |A|": dictionaries.nmf(seen, k, iterations=100, seed=seed),
    f"SAE, {active} active": dictionaries.sae(seen, k, active, steps=600, seed=seed),
    "random": dictionaries.random(seen, k, support, seed=seed),
    "difference in means": dictionaries.difference_in_means(seen),
}
our, sae_name = next(iter(bases)), f"SAE, {active} active"


def detection(found: xr.Dataset, data: xr.DataArray = every) -> xr.Dataset:
    """AUC of each concept's feature, which is chosen on the words seen."""
    two = [data.sel(sample=~data.held_out), data.sel(sample=data.held_out)]
    old, new = (auc(cosine(x, found.direction)) for x in two)
    best = old.argmax("feature")
    return xr.Dataset({"seen": old.isel(feature=best), "unseen": new.isel(feature=best)})


found = {name: detection(b) for name, b in bases.items()}
table = pd.DataFrame({
    "AUC, words seen": {name: float(f.seen.mean()) for name, f in found.items()},
    "AUC, words held out": {name: float(f.unseen.mean()) for name, f in found.items()},
    "purity of features": {
        name: float(purity(b.coefficient).mean()) for name, b in bases.items()
    },
    "error": {name: b.attrs.get("explained_error", np.nan) for name, b in bases.items()},
})  # fmt: skip
table.round(3)

# %% [markdown]
# (Purity: the share of the commonest concept among the twelve tokens that have most of a feature,
# averaged over features; a tenth is chance. Error: the share of $|A|^2$ not explained; no matrix of
# rank $k$ does better than the SVD.)
#
# ### Steering
#
# Add a feature to the neurons at every position of prompts that ask for nothing in particular, as
# strongly as it takes to move the next-token distribution by 0.5 nats (KL). Equal disturbance; who
# moves it *towards the concept*? Measured: the change of $\log p$ of the concept's words, less that
# of the other concepts' words.

# %%
lists = {c: ids for c, ids in words.ids().items() if len(ids) >= 3}
can_steer = net.kind == "decoder" and len(lists) >= 3
steerers = [our, sae_name, "PCA", "neurons", "random", "difference in means"]
if can_steer:
    chosen = []
    for name in steerers:
        best = found[name].seen.feature.sel(concept=list(lists)).values
        chosen.append(bases[name].direction.sel(feature=best).values)
    neuron = lw.results.label(np.concatenate(chosen), ("feature", "neuron"))
    fresh = {f"{c}, unseen": i for c, i in words.ids(held_out=True).items() if c in lists and i}
    prompts = NEUTRAL[:4] if quick else NEUTRAL
    moved = steer(net, prompts, neuron, at, {**lists, **fresh}, target=0.5)
    print(f"KL reached by {int(moved.reached.sum())} of {moved.reached.size} directions")


def lift(names: list[str]) -> xr.DataArray:
    """Gain of the concept's list less the mean gain of the others: (technique, concept)."""
    g = moved.gain.sel(list=names).mean("prompt").values.reshape(len(steerers), len(lists), -1)
    at_own = [i for i, c in enumerate(lists) if any(x.split(",")[0] == c for x in names)]
    g = g[:, at_own]
    own = np.eye(len(names), dtype=bool)
    out = g[:, own] - np.where(own, 0, g).sum(2) / (len(names) - 1)
    dims = ("technique", "concept")
    return lw.results.label(out, dims, {"technique": steerers, "concept": names}, name="lift")


if can_steer:
    lifts = lift(list(lists))
    display(lifts.to_pandas().assign(mean=lifts.mean("concept").values).round(2))


# %%
def dots(values: xr.DataArray, title: str, across: str) -> alt.FacetChart:
    frame = values.to_dataframe("value").reset_index()
    y = alt.Y("technique:N", sort=list(values.technique.values), title=None)
    base = alt.Chart(frame).encode(y=y)
    points = base.mark_point(filled=True, size=40, opacity=0.6, color="#0072b2").encode(
        x=alt.X("value:Q", title=across), tooltip=["concept", alt.Tooltip("value:Q", format=".2f")]
    )
    middle = base.mark_tick(thickness=3, size=20, color="#d55e00").encode(x="mean(value):Q")
    return (points + middle).properties(width=420, height=170, title=title)


if can_steer:
    title = "Steering at equal KL: one point a concept, the mean in orange"
    display(dots(lifts, title, "log p of the concept's words, less that of others' (nats)"))

# %% [markdown]
# ### A tree of features
#
# Factorise the *features* again, with fewer, and again: parents are neuron combinations that
# several features share. Here from sixty features (fine enough to split concepts) down to ten. Each
# leaf is named after the words it is largest on; does the tree put leaves of one concept together?

# %%
sizes = [min(2 * k, seen.sizes["sample"] // 2), k, len(words.names)]
leaves = snmf.factorise(seen, sizes[0], sparsity=sparsity, iterations=120, patience=60, seed=seed)
tree = snmf.hierarchy(leaves, sizes[1:], iterations=200, seed=seed)
leaf = leaves.coefficient.groupby("concept").sum().idxmax("concept").values
lines = []
for parent in range(sizes[2]):
    below = np.flatnonzero(tree.ancestor_2.values == parent)
    if len(below):
        said = [top_contexts(leaves.coefficient, int(j), 1).word.item() for j in below]
        common, count = max(
            ((c, (leaf[below] == c).sum()) for c in set(leaf[below])), key=lambda t: t[1]
        )
        lines.append({"parent": parent, "mostly": common, "share": count / len(below),
                      "leaves": len(below), "their words": ", ".join(said)})  # fmt: skip
pd.DataFrame(lines).sort_values("share", ascending=False).set_index("parent").round(2)

# %%
from sklearn.metrics import adjusted_rand_score

agree = adjusted_rand_score(leaf, tree.ancestor_2.values)
rng = np.random.default_rng(seed)
chance = [adjusted_rand_score(rng.permutation(leaf), tree.ancestor_2.values) for _ in range(500)]
kept = (leaves.direction.values != 0).astype(float)
shared = kept @ kept.T / kept.sum(1)
same = leaf[:, None] == leaf[None, :]
off = ~np.eye(len(leaf), dtype=bool)
alike, unlike = shared[same & off].mean(), shared[~same].mean()
print(f"tree against concepts, adjusted Rand index: {agree:.2f} (labels shuffled: at most "
      f"{max(chance):.2f} of 500)")  # fmt: skip
print(f"neurons shared by two leaves of one concept {alike:.0%}, of two concepts {unlike:.0%}")

# %% [markdown]
# ## Touch
#
# Every feature against every concept. Click one: its words, its neurons, what it writes; and below,
# where it is in a text. Give it a text of your own with `browser.read("...")`. Look for a feature
# that is bright in two rows: what do these concepts have in common?

# %%
browser = FeatureBrowser(net, fit, seen)
best_of = auc(sim).sel(concept="food").argmax().item()
browser.show(best_of)
browser

# %% [markdown]
# Adding $\alpha Z_j$ to the neurons is adding $\alpha W_{down} Z_j$ to the stream, so the steering
# dial takes a feature too. Turn it up until the text breaks.

# %%
to_stream = can_steer and not net.anatomy.stream_norms
if to_stream:
    push = written(net, fit.direction, at).sel(feature=best_of)
    strength = float(moved.alpha[list(lists).index("food")]) if "food" in lists else 1.0
    push = push.values * strength / float(np.linalg.norm(fit.direction.sel(feature=best_of)))
    dial = lw.widgets.steer(net, push, at, "For lunch I had a", strength=1.5, limit=4, tokens=12)
    dial.wait()
    display(dial)

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
about = {"n": seen.sizes["sample"], "seed": seed, "model": net}
lw.claim(
    "snmf.shown-is-library", kind="exact", measured=abs(shown - float(twenty.error[-1])),
    expect="< 1e-6", statement="the iterations written out above end at the library's error",
    **about,
)  # fmt: skip

# %%
free = snmf.factorise(exactly, k, sparsity=1, iterations=100, patience=100, tolerance=0, seed=seed)
lw.claim(
    "snmf.monotone-without-cut", kind="exact", measured=free.attrs["rises"], expect="== 0",
    statement="iterations of 100 in which the error rose, when every neuron is kept", **about,
)  # fmt: skip

# %%
lw.claim(
    "snmf.coefficients-nonnegative", kind="exact", expect=">= 0", **about,
    measured=min(float(f.coefficient.min()) for several in fits.values() for f in several),
    statement="the smallest coefficient of all factorisations",
)  # fmt: skip

# %%
wrong = [
    int(((f.direction != 0).sum("neuron") > int(np.ceil(round(p * A.shape[1], 9)))).sum())
    for p, several in fits.items() for f in several
]  # fmt: skip
lw.claim(
    "snmf.support", kind="exact", measured=sum(wrong), expect="== 0", **about,
    statement="features with more neurons than the share they may keep",
)  # fmt: skip

# %%
floor = dictionaries.svd_error(seen, k)
above = min(f.attrs["explained_error"] for several in fits.values() for f in several) - floor
lw.claim(
    "snmf.svd-is-a-bound", kind="exact", measured=above, expect=">= 0", **about,
    statement="the smallest error of all factorisations less that of the best matrix of rank k",
)  # fmt: skip

# %%
gram, cross = Y.T @ Y, Y.T @ A
Z = torch.linalg.solve(gram + 1e-6 * torch.eye(k), cross)
keep = Z.abs() >= Z.abs().kthvalue(A.shape[1] - support + 1, dim=1, keepdim=True).values
cut, refit = ((A - Y @ z).square().sum() for z in (Z * keep, snmf.on_support(gram, cross, keep)))
lw.claim(
    "snmf.refit-is-no-worse", kind="exact", measured=float((cut - refit) / A.square().sum()),
    expect=">= 0", **about,
    statement="error of the cut directions less that of directions solved for on what is kept",
)  # fmt: skip

# %%
rng = np.random.default_rng(seed)
blocks = np.kron(np.eye(12), np.ones(16)) * rng.normal(size=(12, 192))
amounts = rng.random((300, 12)) * (rng.random((300, 12)) < 0.3)
planted = lw.results.label(amounts @ blocks, ("sample", "neuron"))
again = snmf.factorise(planted, 12, sparsity=16 / 192, init="svd", seed=seed).direction.values
match = again @ blocks.T / np.outer(*(np.linalg.norm(z, axis=1) for z in (again, blocks)))
lw.claim(
    "snmf.planted-features-found", kind="exact", measured=float((match.max(0) > 0.99).mean()),
    expect=">= 0.9", n=12, seed=seed,
    statement="share of 12 planted features (disjoint neurons, sparse amounts) found, cosine > 0.99",
)  # fmt: skip

# %%
if to_stream:
    text = NEUTRAL[:2]
    z = fit.direction.sel(feature=best_of).values
    f = written(net, fit.direction, at).sel(feature=best_of).values
    inside, outside = (
        lw.patch(net, text, {f"{site}.{at}": lambda h, v=v: h + torch.as_tensor(v).to(h)}).logits
        for site, v in (("neurons", z), ("resid_post", f))
    )
    gap = float(np.abs(inside - outside).max() / np.abs(inside).max())
    lw.claim(
        "snmf.neurons-are-the-stream", kind="exact", measured=gap, expect="< 1e-4",
        statement="adding z to the neurons moves the logits as adding W_down z to the stream does",
        **{**about, "n": 2},
    )  # fmt: skip

# %% [markdown]
# ### What the paper says, and what this data says
#
# Intervals are 95 %, from resampling concepts (or features). The paper's words are about Llama 3.1
# 8B, Gemma 2 2B and GPT-2, with features judged by a language model; here is a small model, and
# counting.


# %%
def paired(first: xr.DataArray, second: xr.DataArray | float) -> dict:
    """The mean of a difference over concepts, with its interval."""
    e = lw.stats.bootstrap(np.asarray(first) - np.asarray(second), seed=seed)
    return {"measured": e.mean, "interval": (e.low, e.high), "n": len(first), "seed": seed,
            "model": net}  # fmt: skip


# %%
ours = np.concatenate([purity(f.coefficient).values for f in fits[sparsity]])
theirs = purity(single.coefficient).values
draw = np.random.default_rng(seed)
spread = [draw.choice(ours, len(ours)).mean() - draw.choice(theirs, k).mean() for _ in range(2000)]
lw.claim(
    "snmf.purer-than-neurons", kind="paper", measured=ours.mean() - theirs.mean(), expect=">= 0.1",
    interval=np.quantile(spread, [0.025, 0.975]), n=len(ours), seed=seed, model=net,
    statement="share of one concept among a feature's top 12 tokens, less that of single neurons",
    paper="abstract: interpretable features", pinned={"smollm2-135m": "reproduced"},
)  # fmt: skip


# %%
def average(p: float, which: str) -> xr.DataArray:
    return (
        sum(detection(f)[which] for f in fits[p]).drop_vars("feature", errors="ignore") / restarts
    )


lw.claim(
    "snmf.sparsity-makes-it-readable", kind="paper", expect=">= 0.05",
    **paired(average(sparsity, "seen"), average(1.0, "seen")),
    statement=f"AUC of the best feature, neurons cut to {sparsity:.0%}, less that without a cut",
    paper="method: winner-take-all", pinned={"smollm2-135m": "reproduced"},
)  # fmt: skip

# %%
lw.claim(
    "snmf.finds-unseen-words", kind="paper", expect=">= 0.1",
    **paired(average(sparsity, "unseen"), found["random"].unseen),
    statement="AUC on words held out, less that of random directions chosen in the same way",
    paper="abstract: features match human concepts", pinned={"smollm2-135m": "reproduced"},
)  # fmt: skip

# %%
lw.claim(
    "snmf.detects-better-than-sae", kind="paper", expect="> 0",
    **paired(average(sparsity, "unseen"), found[sae_name].unseen),
    statement="AUC on words held out, less that of a small SAE trained on the same rows",
    paper="concept detection", pinned={"smollm2-135m": "reproduced"},
)  # fmt: skip

# %%
if can_steer:
    lw.claim(
        "snmf.steers", kind="paper", expect="> 0",
        **paired(lifts.sel(technique=our), lifts.sel(technique="random")),
        statement="lift of the concept's words by its SNMF feature, less that by a random one",
        paper="abstract: causal steering", pinned={"smollm2-135m": "reproduced"},
    )  # fmt: skip

# %%
if can_steer:
    lw.claim(
        "snmf.steers-like-difference-in-means", kind="paper", expect=">= -0.1",
        **paired(lifts.sel(technique=our), lifts.sel(technique="difference in means")),
        statement="lift by SNMF less that by the supervised direction, nats at equal KL",
        paper="abstract: better than difference-in-means", pinned={"smollm2-135m": "reproduced"},
    )  # fmt: skip

# %%
if can_steer:
    lw.claim(
        "snmf.steers-better-than-sae", kind="paper", expect="> 0",
        **paired(lifts.sel(technique=our), lifts.sel(technique=sae_name)),
        statement="lift by SNMF less that by a small SAE trained on the same rows",
        paper="abstract: better than SAEs", pinned={"smollm2-135m": "reproduced"},
    )  # fmt: skip

# %%
if can_steer and len(fresh) >= 3:
    new = lift(list(fresh))
    lw.claim(
        "snmf.steers-to-unseen-words", kind="paper", expect="> 0",
        **paired(new.sel(technique=our), 0.0),
        statement="lift of those of the concept's words that the feature was made without",
        paper="abstract: features match human concepts", pinned={"smollm2-135m": "reproduced"},
    )  # fmt: skip

# %%
lw.claim(
    "snmf.tree-follows-concepts", kind="paper", measured=agree, expect="> 0.1", n=len(leaf),
    seed=seed, model=net, paper="abstract: hierarchical structure",
    statement=f"adjusted Rand index of concepts and the {sizes[2]} roots of the tree "
    f"(labels shuffled: {np.mean(chance):.2f}, at most {max(chance):.2f})",
    pinned={"smollm2-135m": "reproduced"},
)  # fmt: skip

# %%
lw.claim(
    "snmf.related-features-share-neurons", kind="paper", measured=alike - unlike, expect="> 0.05",
    n=len(leaf), seed=seed, model=net, paper="abstract: neuron combinations are reused",
    statement="share of neurons that two features of one concept have in common, less that of two "
    "features of different concepts",
    pinned={"smollm2-135m": "reproduced"},
)  # fmt: skip

# %%
from lwlab.attribution import placebo

blank = placebo.untrained(net, layers=3, seed=seed)
raw = collect(blank, words, 2)
null = snmf.factorise(
    raw.sel(sample=~raw.held_out), k, sparsity=sparsity, iterations=120, seed=seed
)
lw.claim(
    "snmf.nothing-without-training", kind="paper", expect="< 0.65",
    **paired(detection(null, raw).unseen, 0.0),
    statement="placebo: AUC on words held out, in an untrained model of the same kind",
    pinned={"smollm2-135m": "reproduced"},
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **Which neurons are days?** Take the feature that finds *days* best. Zero its five largest
#    neurons in the data: does the AUC fall? And five random ones?
# 2. **Other layers.** Is the AUC of features higher early or late? Try a layer near the bottom.
# 3. **How much of a new token?** `snmf.encode` finds amounts for tokens that were not factorised.
#    Is the amount as good a detector as the cosine, on words held out?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. The feature is not its few largest neurons: many others carry it too.
days = auc(sim).sel(concept="days").argmax().item()
big = top_neurons(fit.direction, days, 5).neuron.values
small = np.random.default_rng(seed).choice(seen.sizes["neuron"], 5, replace=False)
for which, off in (("as it is", []), ("its largest five zeroed", big), ("five random ones", small)):
    there = seen.copy()
    there[:, list(off)] = 0
    print(f"{which}: {auc(cosine(there, fit.direction)).sel(concept='days', feature=days):.3f}")

# %% jupyter={"source_hidden": true}
# 2. Early layers know words, and words are what these concepts are made of.
low = collect(net, words, max(1, at // 4))
below = snmf.factorise(
    low.sel(sample=~low.held_out), k, sparsity=sparsity, iterations=120, seed=seed
)
for where, value in ((at, found[our]), (max(1, at // 4), detection(below, low))):
    print(f"layer {where}: AUC on words held out {float(value.unseen.mean()):.3f}")

# %% jupyter={"source_hidden": true}
# 3. The amounts compete with each other, the cosines do not.
amount = auc(snmf.encode(unseen, fit.direction))
chosen_ = found[our].seen.feature
print(f"cosine {float(found[our].unseen.mean()):.3f}, ", end="")
print(f"amount {float(amount.sel(feature=chosen_).mean()):.3f}")
