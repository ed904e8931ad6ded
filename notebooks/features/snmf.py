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
#     cost: {seconds: 50, memory_mb: 1650}
#     model: smollm2-135m
# ---

# %% [markdown]
# # SNMF: what do neurons mean together?
#
# **The idea in one sentence:** one neuron says little, but a token's MLP activations are a sum of
# *non-negative amounts* of a few *sparse combinations of neurons*; find those combinations by
# factorising a matrix, without labels and without training an autoencoder.
#
# Shafran, Geiger & Geva 2025,
# [arXiv:2506.10920](https://arxiv.org/abs/2506.10920) ·
# [their code](https://github.com/ordavid-s/snmf-mlp-decomposition)
#
# **Cost** with SmolLM2-135M: under a minute on two CPU cores, 1.7 GB of memory. Any decoder with
# MLP neurons will do: `lwlab run snmf -p model=gpt2`; an encoder too, for all but steering. Tried
# besides: `all-minilm-l6` (an encoder; finding concepts and the tree come out as here, but features
# are no purer than neurons beyond noise), and `toys/char-gpt2`, which reads a word by its last letter
# and rightly fails the paper's claims. The text tells what SmolLM2 does.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full: all words, longer fits
layers: list[int] = []  # whose MLPs; empty: an early and a late one
k: int = 30  # features
sparsity: float = 0.05  # the share of neurons that a feature keeps; the paper's default is 0.01
n: int = 12  # words of each concept
restarts: int = 2  # factorisations from different random starts
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
    collect_layers,
    concepts,
    cosine,
    dictionaries,
    purity,
    reaches_stream,
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
if not layers:
    layers = sorted({2 * net.n_layers // 15, 3 * net.n_layers // 5})
words = concepts(net, n=n if quick else None, seed=seed)
every = collect_layers(net, words, layers)
early, late = layers[0], layers[-1]
seen = {at: x.sel(sample=~x.held_out) for at, x in every.items()}
unseen = {at: x.sel(sample=x.held_out) for at, x in every.items()}
print(
    f"layers {layers}: {seen[early].sizes['sample']} tokens, and {unseen[early].sizes['sample']} held out"
)
pd.Series({c: ", ".join(list(words.lists[c])[:6]) + ", ..." for c in words.names})

# %% [markdown]
# The data: words of ten concepts, each at the end of three short sentences. One row of $A$ is the
# MLP's activations (what $W_{down}$ reads) at the word's last token. A third of the words is held
# out: features are found, and chosen, without them. Two layers are looked at, an early and a late
# one; they will not say the same.
#
# ## The idea in one picture
#
# Left: the thirty neurons that vary most in the early layer, and how much of their activation each
# concept gets. Right: as many features of SNMF. Neither has seen a label.

# %%
budget = {"iterations": 120, "patience": 60} if quick else {"iterations": 2000, "patience": 500}
starts = range(seed, seed + restarts)
fits = {
    (at, p): [snmf.factorise(seen[at], k, sparsity=p, seed=s, **budget) for s in starts]
    for at in layers
    for p in (sparsity, 1.0)
}
fit = fits[early, sparsity][0]


def by_concept(found: xr.Dataset) -> xr.DataArray:
    y = found.coefficient.groupby("concept").mean()
    y = (y / y.sum("concept").clip(1e-30)).sel(concept=list(words.names))
    best = np.lexsort((-y.max("concept").values, y.argmax("concept").values))
    return y.isel(feature=best).assign_coords(feature=range(y.sizes["feature"]))


two = [by_concept(dictionaries.neurons(seen[early], k)), by_concept(fit)]
two = xr.concat(two, "basis", coords="minimal", compat="override", join="override")
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
A = torch.from_numpy(seen[early].values).double()
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

exactly = seen[early].astype(float)
twenty = snmf.factorise(exactly, k, sparsity=sparsity, iterations=20, seed=seed)
print(f"error written out {shown:.6f}, the library's after 20 {float(twenty.error[-1]):.6f}")

# %% [markdown]
# Without step 2 the error falls and falls. With it, step 1 and step 2 work against each other, and
# the library keeps the best iterate. `refit=True` solves step 1 again for what step 2 kept: each step
# errs less, and the descent is faster, if not deeper.

# %%
x = seen[early]
curves = {
    "keep 100%": fits[early, 1.0][0],
    f"keep {sparsity:.0%}": fit,
    f"keep {sparsity:.0%}, refit": snmf.factorise(
        x, k, sparsity=sparsity, refit=True, seed=seed, **budget
    ),
    "keep 1%": (paper_fit := snmf.factorise(x, k, sparsity=0.01, seed=seed, **budget)),
}
errors = xr.concat([f.error for f in curves.values()], "kept", join="outer").assign_coords(
    kept=list(curves)
)
errors.attrs["long_name"] = "share of |A|² not explained"
errors.lw.profile(x="iteration", series="kept", title="The error while it is found")

# %% [markdown]
# ## Results
#
# ### Features, their neurons and their contexts
#
# What makes a feature: where it is largest, of which neurons it consists, and which tokens its
# direction in the stream, $W_{down} Z_j$, raises. Early features are about the token that is *read*;
# what they write is for later layers, not for the vocabulary.

# %%
sim = cosine(seen[early], fit.direction)
reads = net.anatomy.unembed is not None and net.anatomy.down is not None
lens = vocabulary(net, fit.direction, early, 5) if reads else None
rows = []
for j in auc(sim).max("concept").argsort().values[::-1][:10]:
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
# * **random** directions of as many neurons: a placebo.
#
# For each concept the feature with the best AUC on the words seen is chosen (the score of a token
# is its cosine with the feature), then asked about the words held out. Purity: the share of the
# commonest concept among the twelve tokens that have most of a feature; a tenth is chance. Error:
# the share of $|A|^2$ not explained; no matrix of rank $k$ does better than the SVD.


# %%
def detection(found: xr.Dataset, at: int) -> xr.Dataset:
    """AUC of each concept's feature, which is chosen on the words seen."""
    old, new = (auc(cosine(x[at], found.direction)) for x in (seen, unseen))
    best = old.argmax("feature")
    return xr.Dataset({"seen": old.isel(feature=best), "unseen": new.isel(feature=best)})


def alternatives(at: int) -> dict[str, xr.Dataset]:
    x, y = seen[at], fits[at, sparsity][0].coefficient
    active = max(1, round(float((y.sum("feature") ** 2 / (y**2).sum("feature")).mean())))
    support = int((fits[at, sparsity][0].direction != 0).sum("neuron").max())
    return {
        "SNMF": fits[at, sparsity][0],
        "SNMF, no cut": fits[at, 1.0][0],
        "SAE": dictionaries.sae(x, k, active, steps=400, seed=seed),
        "PCA": dictionaries.pca(x, k // 2),
        "NMF of |A|": dictionaries.nmf(x, k, iterations=100, seed=seed),
        "neurons": dictionaries.neurons(x, k),
        "random": dictionaries.random(x, k, support, seed=seed),
        "difference in means": dictionaries.difference_in_means(x),
    }


bases = {at: alternatives(at) for at in layers}
found = {at: {name: detection(b, at) for name, b in bases[at].items()} for at in layers}
table = pd.DataFrame({
    (f"layer {at}", name): {
        "AUC, words seen": float(f.seen.mean()),
        "AUC, held out": float(f.unseen.mean()),
        "purity": float(purity(bases[at][name].coefficient).mean()),
        "error": bases[at][name].attrs.get("explained_error", np.nan),
    }
    for at in layers for name, f in found[at].items()
}).T.round(3)  # fmt: skip
table.unstack(0).swaplevel(axis=1).sort_index(axis=1, level=0, sort_remaining=False).loc[
    list(bases[early])
]

# %%
for at in layers:
    middle = float((seen[at].mean("sample") ** 2).sum() / (seen[at] ** 2).sum("neuron").mean())
    print(f"layer {at}: the mean of all tokens is {middle:.0%} of their square")

# %% [markdown]
# SNMF's features are about one concept far more often than those found without the cut. As finders
# of a concept, SNMF, PCA and the small autoencoder are within each other's noise (ten concepts), so
# no claim is made about them; who was told the labels is better than all. Note how well *random*
# directions do, the best of thirty: an AUC near 0.8 is no finding.
#
# ### Steering
#
# Add a feature to the neurons at every position of prompts that ask for nothing in particular, as
# strongly as it takes to move the next-token distribution by 0.5 nats (KL). Equal disturbance; who
# moves it *towards the concept*? Lift: the change of $\log p$ of the concept's words, less the mean
# change for the other concepts' words.

# %%
lists = {c: ids for c, ids in words.ids().items() if len(ids) >= 3}
fresh = {c: ids for c, ids in words.ids(held_out=True).items() if c in lists and ids}
can_steer = net.kind == "decoder" and len(lists) >= 3 and len(fresh) == len(lists)
prompts = list(NEUTRAL[:3] if quick else NEUTRAL)


def steered(at: int) -> xr.Dataset:
    """Lift of all the words and of those held out, (technique, concept); SNMF: mean of restarts."""
    several = {f"SNMF {i}": f for i, f in enumerate(fits[at, sparsity])}
    several |= {t: bases[at][t] for t in ("SAE", "random", "difference in means")}
    chosen = []
    for found in several.values():
        best = auc(cosine(seen[at], found.direction)).argmax("feature").sel(concept=list(lists))
        chosen.append(found.direction.isel(feature=best).values)
    z = lw.results.label(np.concatenate(chosen), ("feature", "neuron"))
    both = {
        **{f"all {c}": i for c, i in lists.items()},
        **{f"new {c}": i for c, i in fresh.items()},
    }
    run = steer(net, prompts, z, at, both, target=0.5, tolerance=0.05)
    gain = run.gain.mean("prompt").values.reshape(len(several), len(lists), 2, len(lists))
    own = np.eye(len(lists), dtype=bool)[:, None]
    lift = (gain * own).sum(-1) - (gain * ~own).sum(-1) / (len(lists) - 1)
    lift = np.concatenate([lift[:restarts].mean(0, keepdims=True), lift[restarts:]])
    dims, names = ("technique", "concept", "words"), ["SNMF", *list(several)[restarts:]]
    coords = {"technique": names, "concept": list(lists), "words": ["all", "held out"]}
    out = lw.results.label(lift, dims, coords, name="lift", units="nats")
    return xr.Dataset({"lift": out, "alpha": run.alpha, "kl": run.kl, "reached": run.reached})


if can_steer:
    steers = {at: steered(at) for at in layers}
    lifts = xr.concat([s.lift for s in steers.values()], "layer").assign_coords(layer=layers)
    reached = [int((~s.reached).sum()) for s in steers.values()]
    print(f"directions that did not come to the target: {sum(reached)}")
    display(
        lifts.mean("concept").to_series().unstack(["layer", "words"]).loc[lifts.technique].round(2)
    )

# %%
if can_steer:
    frame = lifts.sel(words="all").to_dataframe("value").reset_index()
    y = alt.Y("technique:N", sort=list(lifts.technique.values), title=None)
    base = alt.Chart(frame).encode(y=y)
    across = alt.X("value:Q", title="lift of the concept's words (nats)")
    tips = ["concept", alt.Tooltip("value:Q", format=".2f")]
    points = base.mark_point(filled=True, size=40, opacity=0.6, color="#0072b2")
    middle = base.mark_tick(thickness=3, size=20, color="#d55e00").encode(x="mean(value):Q")
    both = (points.encode(x=across, tooltip=tips) + middle).properties(width=270, height=130)
    title = "Steering at equal KL: a point is a concept, orange the mean"
    display(both.facet(alt.Facet("layer:O", title="layer"), title=title))

# %% [markdown]
# In the early layer of SmolLM2 what SNMF finds without labels pushes the model towards a concept at
# least as well as the direction that was told the labels, and further than the autoencoder's. In the
# late layer it does not. Perhaps because so much of what is active there is common to all tokens;
# perhaps because a late feature that *recognises* months calls for what follows months. (In which
# layers the paper's lead is largest we do not know; both layers are in the claims below.)
#
# ### A tree of features
#
# Factorise the *features* again, with fewer, and again: parents are neuron combinations that
# several features share. From sixty features, fine enough to split concepts, down to ten roots. Does
# the tree put the leaves of one concept together?

# %%
x = seen[early]
fine = min(2 * k, x.sizes["sample"] // 2)
sizes = [fine, fine // 2, min(len(words.names), fine // 2 - 1)]
leaves = snmf.factorise(x, sizes[0], sparsity=sparsity, seed=seed, **budget)
tree = snmf.hierarchy(leaves, sizes[1:], iterations=200, seed=seed)
leaf = leaves.coefficient.groupby("concept").sum().idxmax("concept").values
lines = []
for root in range(sizes[2]):
    below = np.flatnonzero(tree.ancestor_2.values == root)
    if len(below):
        said = [top_contexts(leaves.coefficient, int(j), 1).word.item() for j in below]
        kinds = pd.Series(leaf[below]).value_counts()
        lines.append({"root": root, "mostly": kinds.index[0], "share": kinds.iloc[0] / len(below),
                      "leaves, by their first word": ", ".join(dict.fromkeys(said))})  # fmt: skip
pd.DataFrame(lines).sort_values("share", ascending=False).set_index("root").round(2)

# %%
from sklearn.metrics import adjusted_rand_score

kept = (leaves.direction.values != 0).astype(float)
common = kept @ kept.T / kept.sum(1)
pairs = np.triu(np.ones_like(common, dtype=bool), 1)


def sharing(of: np.ndarray) -> float:
    """Share of neurons common to two leaves of one concept, less that of two concepts."""
    same = of[:, None] == of[None, :]
    return common[same & pairs].mean() - common[~same & pairs].mean()


rng = np.random.default_rng(seed)
shuffles = [rng.permutation(leaf) for _ in range(500)]
roots = tree.ancestor_2.values
agree, chance = adjusted_rand_score(leaf, roots), [adjusted_rand_score(s, roots) for s in shuffles]
shared, by_luck = sharing(leaf), [sharing(s) for s in shuffles]
print(
    f"tree against concepts, adjusted Rand index {agree:.3f}; labels shuffled: at most {max(chance):.3f}"
)
print(
    f"neurons shared beyond those of strangers {shared:.3f}; labels shuffled: at most {max(by_luck):.3f}"
)

# %% [markdown]
# ## Touch
#
# Every feature against every concept. Click one: its words, its neurons, what it writes; and below,
# where it is in a text. Give it a text of your own with `browser.read("...")`. Look for a feature
# that is bright in two rows: what do these concepts have in common?

# %%
browser = FeatureBrowser(net, fit, seen[early])
food = int(auc(sim).sel(concept=words.names[-2]).values.argmax())
browser.show(food)
browser

# %% [markdown]
# Adding $\alpha Z_j$ to the neurons is adding $\alpha W_{down} Z_j$ to the stream, so the steering
# dial takes a feature too. Turn it up until the text breaks.

# %%
in_the_stream = can_steer and reaches_stream(net)
if in_the_stream:
    z = fit.direction.sel(feature=food).values
    alpha = float(steers[early].alpha[list(lists).index(words.names[-2])])
    push = written(net, fit.direction, early).sel(feature=food).values * alpha / np.linalg.norm(z)
    dial = lw.widgets.steer(
        net, push, early, "On the table there is a", strength=1, limit=4, tokens=10
    )
    dial.wait()
    display(dial)

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
about = {"n": seen[early].sizes["sample"], "seed": seed, "model": net}
all_fits = [f for several in fits.values() for f in several]
lw.claim(
    "snmf.shown-is-library", kind="exact", measured=abs(shown - float(twenty.error[-1])),
    expect="< 1e-6", statement="the iterations written out above end at the library's error",
    **about,
)  # fmt: skip

# %%
free = snmf.factorise(exactly, k, sparsity=1, iterations=60, patience=60, tolerance=0, seed=seed)
lw.claim(
    "snmf.monotone-without-cut", kind="exact", measured=free.attrs["rises"], expect="== 0",
    statement="iterations of 60 in which the error rose, when every neuron is kept", **about,
)  # fmt: skip

# %%
lw.claim(
    "snmf.coefficients-nonnegative", kind="exact", expect=">= 0", **about,
    measured=min(float(f.coefficient.min()) for f in all_fits),
    statement="the smallest coefficient of all factorisations",
)  # fmt: skip

# %%
most = max(
    int((f.direction != 0).sum("neuron").max()) - int(np.ceil(round(p * A.shape[1], 9)))
    for (_, p), several in fits.items() for f in several
)  # fmt: skip
lw.claim(
    "snmf.support", kind="exact", measured=most, expect="<= 0", **about,
    statement="neurons of the largest feature beyond the ceil(sparsity d) it may keep",
)  # fmt: skip

# %%
margin = min(
    f.attrs["explained_error"] - floor
    for at in layers
    for floor in [dictionaries.svd_error(seen[at], k)]
    for p in (sparsity, 1.0)
    for f in fits[at, p]
)
lw.claim(
    "snmf.svd-is-a-bound", kind="exact", measured=margin, expect=">= 0", **about,
    statement="error less that of the best matrix of rank k, the smallest of all factorisations",
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
if in_the_stream:
    z = fit.direction.sel(feature=food).values
    f = written(net, fit.direction, early).sel(feature=food).values
    inside, outside = (
        lw.patch(
            net, prompts, {f"{site}.{early}": lambda h, v=v: h + torch.as_tensor(v).to(h)}
        ).logits
        for site, v in (("neurons", z), ("resid_post", f))
    )
    gap = float(np.abs(inside - outside).max() / np.abs(inside).max())
    lw.claim(
        "snmf.neurons-are-the-stream", kind="exact", measured=gap, expect="< 1e-4",
        statement="adding z to the neurons moves the logits as adding W_down z to the stream does",
        **{**about, "n": len(prompts)},
    )  # fmt: skip

# %% [markdown]
# ### What the paper says, and what this data says
#
# Intervals are 95 %, from resampling concepts (or features). The paper's numbers are about Llama 3.1
# 8B, Gemma 2 2B and GPT-2, with features judged by a language model; here is a small model, a few
# hundred tokens, and counting. Pinned verdicts are SmolLM2-135M's.


# %%
def paired(first: xr.DataArray, second: xr.DataArray | float, pin: str) -> dict:
    """The mean of a difference over concepts, with its interval."""
    e = lw.stats.bootstrap(np.asarray(first) - np.asarray(second), seed=seed)
    return {"measured": e.mean, "interval": (e.low, e.high), "n": len(first), "seed": seed,
            "model": net, "kind": "paper", "pinned": {"smollm2-135m": pin}}  # fmt: skip


def average(p: float, which: str) -> np.ndarray:
    """AUC of each concept's feature, averaged over layers and restarts."""
    return np.mean([detection(f, at)[which].values for at in layers for f in fits[at, p]], 0)


# %%
ours = [purity(f.coefficient).values for at in layers for f in fits[at, sparsity]]
theirs = [purity(bases[at]["neurons"].coefficient).values for at in layers]
draw = np.random.default_rng(seed)
spread = [
    np.mean([draw.choice(a, k).mean() for a in ours])
    - np.mean([draw.choice(b, k).mean() for b in theirs])
    for _ in range(2000)
]
lw.claim(
    "snmf.purer-than-neurons", kind="paper", measured=np.mean(ours) - np.mean(theirs), expect="> 0",
    interval=np.quantile(spread, [0.025, 0.975]), n=k, seed=seed, model=net,
    statement="share of one concept among a feature's top 12 tokens, less that of single neurons",
    paper="abstract: interpretable features", pinned={"smollm2-135m": "reproduced"},
    note="the most variable neurons of the early layer are themselves about one concept each",
)  # fmt: skip

# %%
raw = [purity(f.coefficient).mean().item() for at in layers for f in fits[at, 1.0]]
lw.claim(
    "snmf.sparsity-makes-it-readable", expect=">= 0.05",
    **paired(average(sparsity, "seen"), average(1.0, "seen"), "not reproduced"),
    statement=f"AUC of the best feature, neurons cut to {sparsity:.0%}, less that without a cut",
    paper="method: winner-take-all",
    note="without the cut some feature still finds each concept; what the cut changes is that most "
    f"features are about one: purity {np.mean(ours):.2f} with it, {np.mean(raw):.2f} without",
)  # fmt: skip

# %%
# One random draw may be lucky: the mean of ten.
luck = [
    detection(dictionaries.random(seen[at], k, support, seed=s), at).unseen.values
    for at in layers
    for s in range(seed, seed + 10)
]
lw.claim(
    "snmf.finds-unseen-words", expect=">= 0.1",
    **paired(average(sparsity, "unseen"), np.mean(luck, 0), "reproduced"),
    statement="AUC on words held out, less that of random directions chosen in the same way",
    paper="abstract: features match human concepts",
)  # fmt: skip

# %%
if can_steer:
    best = lifts.sel(words="all", layer=early)
    lw.claim(
        "snmf.steers", expect="> 0",
        **paired(best.sel(technique="SNMF"), best.sel(technique="random"), "reproduced"),
        statement=f"layer {early}: lift by a concept's SNMF feature, less that by a random one",
        paper="abstract: causal steering",
    )  # fmt: skip

# %%
if can_steer:
    lw.claim(
        "snmf.steers-like-difference-in-means", expect=">= -0.1",
        **paired(best.sel(technique="SNMF"), best.sel(technique="difference in means"), "reproduced"),
        statement=f"layer {early}: lift by SNMF less that by the supervised direction, equal KL",
        paper="abstract: better than difference-in-means",
    )  # fmt: skip

# %%
if can_steer and late != early:
    worse = lifts.sel(words="all", layer=late)
    lw.claim(
        "snmf.steers-like-difference-in-means-late", expect=">= -0.1",
        **paired(worse.sel(technique="SNMF"), worse.sel(technique="difference in means"), "not reproduced"),
        statement=f"the same in layer {late}",
        paper="abstract: better than difference-in-means",
        note="features found by what they respond to; late in a small model those are not what makes "
        "the model say the concept's words",
    )  # fmt: skip

# %%
if can_steer:
    lw.claim(
        "snmf.steers-better-than-sae", expect="> 0",
        **paired(best.sel(technique="SNMF"), best.sel(technique="SAE"), "reproduced"),
        statement=f"layer {early}: lift by SNMF less that by a small SAE trained on the same rows",
        paper="abstract: better than SAEs",
    )  # fmt: skip

# %%
if can_steer:
    new = lifts.sel(words="held out", layer=early)
    lw.claim(
        "snmf.steers-to-unseen-words", expect="> 0",
        **paired(new.sel(technique="SNMF"), 0.0, "reproduced"),
        statement=f"layer {early}: lift of those of the concept's words the feature was made without",
        paper="abstract: features match human concepts",
    )  # fmt: skip

# %%
lw.claim(
    "snmf.tree-follows-concepts", kind="paper", expect="< 0.05", n=len(leaf), seed=seed, model=net,
    measured=np.mean(np.array(chance) >= agree), paper="abstract: hierarchical structure",
    statement="share of 500 shuffles of the labels in which the tree's roots agree as well with "
    f"the concepts as they do (adjusted Rand index {agree:.2f})",
    pinned={"smollm2-135m": "reproduced"},
    note="the agreement is far from chance and small: leaves are about words, not only concepts",
)  # fmt: skip

# %%
lw.claim(
    "snmf.related-features-share-neurons", kind="paper", measured=shared, expect="> 0.05",
    n=len(leaf), seed=seed, model=net, paper="abstract: neuron combinations are reused",
    statement="share of neurons that two features of one concept have in common, less that of two "
    "features of different concepts",
    pinned={"smollm2-135m": "not reproduced"},
    note=f"they do share more ({np.mean(np.array(by_luck) >= shared):.1%} of label shuffles come as "
    "far), but most neurons of a feature are its own",
)  # fmt: skip

# %%
from lwlab.attribution import placebo

blank = placebo.untrained(net, layers=3, seed=seed)
seen["untrained"] = (null := collect_layers(blank, words, [1])[1]).sel(sample=~null.held_out)
unseen["untrained"] = null.sel(sample=null.held_out)
nothing = snmf.factorise(seen["untrained"], k, sparsity=sparsity, seed=seed, **budget)
lw.claim(
    "snmf.nothing-without-training", expect="< 0.65",
    **paired(detection(nothing, "untrained").unseen, 0.0, "reproduced"),
    statement="placebo: AUC on words held out, in an untrained model of the same kind",
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **Which neurons matter?** Zero the largest neurons of each concept's feature: a few, a quarter,
#    two thirds. How far does the AUC fall? And with as many of its neurons drawn at random?
# 2. **How sparse?** Keep 1 %, 2 %, 5 %, all of the neurons. Which gives the purest features, and what
#    does it cost in error?
# 3. **How much of a new token?** `snmf.encode` finds amounts for tokens that were not factorised.
#    Is the amount as good a detector as the cosine, on words held out?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. The largest few are not missed; of many, the largest are missed more than others.
best = auc(sim).argmax("feature")
order = np.argsort(-np.abs(fit.direction.values), axis=1)[:, :support]
for m in (0, support // 16, support // 4, 2 * support // 3):
    told = []
    for which in (order[:, :m], rng.permuted(order, axis=1)[:, :m]):
        z = fit.direction.copy()
        np.put_along_axis(z.values, which, 0, axis=1)
        told.append(float(auc(cosine(seen[early], z)).isel(feature=best).mean()))
    print(f"{m} of {support} neurons zeroed: largest {told[0]:.3f}, random {told[1]:.3f}")

# %% jupyter={"source_hidden": true}
# 2. Purity has a maximum: features of one neuron are as impure as neurons, of all neurons worse.
for share, f in (
    (0.01, paper_fit),
    (0.02, None),
    (sparsity, fit),
    (1.0, fits[early, 1.0][0]),
):
    f = snmf.factorise(seen[early], k, sparsity=share, seed=seed, **budget) if f is None else f
    print(
        f"keep {share:.0%}: purity {purity(f.coefficient).mean():.2f}, error {f.explained_error:.2f}"
    )

# %% jupyter={"source_hidden": true}
# 3. Amounts compete with each other, cosines do not.
amount = auc(snmf.encode(unseen[early], fit.direction))
chosen = detection(fit, early)
print(f"cosine {float(chosen.unseen.mean()):.3f}, ", end="")
print(f"amount {float(amount.sel(feature=chosen.seen.feature).mean()):.3f}")
