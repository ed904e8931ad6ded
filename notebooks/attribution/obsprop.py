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
#     id: obsprop
#     family: attribution
#     title: "Observable Propagation: A Data-Efficient Approach to Uncover Feature Vectors in Transformers"
#     paper: "2312.16291"
#     cost: {seconds: 40, memory_mb: 1500}
#     model: smollm2-135m
# ---

# %% [markdown]
# # Observable propagation: which directions make a model say *she*?
#
# **The idea in one sentence:** a difference of two logits is a direction in the last stream, and a
# direction can be carried backwards through the weights, one component at a time, without any data:
# what arrives at a head's input is the feature that this head reads for it.
#
# Dunefsky & Cohan 2023, [arXiv:2312.16291](https://arxiv.org/abs/2312.16291) ·
# [their code](https://github.com/jacobdunefsky/ObservablePropagation)
#
# **Cost** with SmolLM2-135M: about 40 seconds on two CPU cores, 1.5 GB of memory. Any decoder whose
# heads and MLPs add to one stream will do: `lwlab run obsprop -p model=gpt2`. The exact claims are
# tested on random models of the GPT-2 and Llama kind too; the pinned verdicts are SmolLM2-135M's.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full uses more prompts
plus: list[str] = [" she"]  # the observable: more of these tokens ...
minus: list[str] = [" he"]  # ... than of these; the prompts below are about he and she
second: list[str] = [" her", " him"]  # a related observable, plus and minus
control: list[str] = [" car", " tree"]  # one that has nothing to do with it
n: int = 12  # prompts, in pairs of a man's and a woman's name; profile=full takes at least 48
seed: int = 0

# %%
import altair as alt
import numpy as np
import pandas as pd
import torch
import xarray as xr

import lwlab as lw
from lwlab.attribution import obsprop
from lwlab.attribution.obsprop import Observable
from lwlab.attribution.obsprop_panel import ObservablePanel

lw.charts.enable()
net = lw.load(model)
task = lw.tasks.pronouns(
    net, n=n if profile == "quick" else max(n, 48), seed=seed, template="because"
)
she = Observable.of(net, plus, minus)
related, other = (Observable.of(net, *words) for words in (second, control))
print(net)
print(f"observable: {she.name}; related: {related.name}; control: {other.name}")
task.to_frame()[["clean", "answers"]].head(4)

# %% [markdown]
# ## The idea in one picture
#
# Left: the length of the feature vector of every head for this observable, **from the weights
# alone**. Right: what each head really does to the observable in the prompts above, by patching its
# direct path to the logits from the twin prompt (the other gender). No prompt was used on the left.

# %%
norms = obsprop.head_map(net, she)
effects = obsprop.direct_effects(net, she, task)
effect = (effects * effects.toward).mean("prompt")
size = np.abs(effect).assign_attrs(long_name="|direct effect|", units="logits")
shares = [norms / norms.max(), size / size.max()]
two = xr.concat(shares, "map", coords="minimal", compat="override")
two = two.assign_coords(map=["norm, from weights", "direct effect, from prompts"])
two.attrs = {**effects.attrs, "long_name": "share of the largest", "units": ""}
two.lw.heatmap(x="head", y="layer", facet="map", title=f"Who can say {she.name}? Who does?")

# %% [markdown]
# ## The method
#
# An **observable** is a linear functional $n$ of the logits; here $+1$ on *she*, $-1$ on *he*.
# It is carried back through one component at a time:
#
# | component | $y$ at its output becomes, at its input |
# |---|---|
# | unembedding and final norm | $y = \gamma_f \odot W_U^\top n$ |
# | head $h$ of layer $l$ | $y_h = \gamma_l \odot W_V^{h\top} W_O^{h\top} y$ |
# | MLP | $\nabla_x \, [\, y \cdot \mathrm{MLP}(\mathrm{N}(x)) \,]$ at a point $x_0$ |
# | residual connection | $y$ |
#
# Attention patterns count as given numbers. A norm divides by $s(x)$, the root mean square of its
# input, and is taken to keep directions (checked below); so a token $j$ that the head attends to
# with $A_{ij}$ adds
#
# $$A_{ij} \; \frac{1}{s_f(x_i)} \; \frac{y_h \cdot x_j}{s_l(x_j)}$$
#
# to the observable at token $i$. (LayerNorm subtracts the mean, so it centres $y$ as well.) Written
# out for every head, with plain matrices (rows of $W$: what each input coordinate does):


# %%
from lwlab.attribution.obsprop_weights import final_norm, input_norms


def matrix(path: str, width: int) -> torch.Tensor:
    module, eye = net.module.get_submodule(path), torch.eye(width)
    with torch.no_grad():
        return module(eye) - module(0 * eye)


a, tap = net.anatomy, net.anatomy.taps["v"]
W_U = net.module.get_output_embeddings().weight.detach()
y = final_norm(net).back((W_U[list(she.ids)] * torch.tensor(she.weights)[:, None]).sum(0))
norm_in = input_norms(net, range(a.n_layers))
shown = torch.zeros(a.n_layers, a.n_heads, a.d_model)
for layer in range(a.n_layers):
    W_O = matrix(a.o_proj.format(layer), a.n_heads * a.d_head).view(a.n_heads, a.d_head, -1)
    W_V = tap.view.read(matrix(tap.at(layer), a.d_model))  # [d_model, kv heads, d_head]
    for head in range(a.n_heads):
        group = head // (a.n_heads // a.n_kv_heads)  # heads that share their values
        shown[layer, head] = norm_in[layer].back(W_V[:, group] @ (W_O[head] @ y))

vectors = obsprop.head_vectors(net, she)
mismatch = float(np.abs(shown.numpy() - vectors).max() / np.abs(vectors).max())
print(f"largest difference from the library, relative: {mismatch:.1e}")
print(vectors.lw.describe())

# %% [markdown]
# ## Results
#
# ### The norm tells which heads matter
#
# Every point is a head. The norm knows nothing of whether the head attends anywhere of use, so
# among the many heads that do little the ranks are loose; the few that do much it finds.

# %%
norm_axis = norms.assign_attrs(long_name="norm of the feature vector", units="")
lw.charts.scatter(
    norm_axis, size, identity=False, title="What weights promise, what prompts show", size=220
)

# %%
order = np.argsort(-norms.values.ravel())
places = [divmod(int(i), a.n_heads) for i in order]
sweep = lw.sweep(net, task.subset(slice(0, 6)), "head_out", positions="END")
total = np.abs(sweep.head_out.mean("prompt")).squeeze("position", drop=True)
pd.DataFrame(
    [
        {
            "head": f"{i}.{h}",
            "norm": float(norms[i, h]),
            "direct effect": float(effect[i, h]),
            "|patched in the whole model|": float(total[i, h]),
        }
        for i, h in places[:8]
    ]
).round(2)

# %% [markdown]
# (*Patched in the whole model*: the head's output at the last token, taken from the twin, with
# everything after it running on. It also counts what later layers make of the head.)
#
# Resampling pairs of prompts gives intervals. As a placebo, the norms of *other* observables:
# the control, and differences of six pairs of tokens drawn at random.

# %%
groups = effects.group.values
signed = (effects * effects.toward).values
rng = np.random.default_rng(seed)
pairs = [np.flatnonzero(groups == g) for g in np.unique(groups)]
draws = []
for _ in range(1000):
    rows = np.concatenate([pairs[i] for i in rng.integers(len(pairs), size=len(pairs))])
    draws.append(lw.stats.pearson(norms.values, np.abs(signed[rows].mean(0))))
r = lw.stats.pearson(norms.values, size.values)
r_interval = tuple(np.quantile(draws, [0.025, 0.975]))
rank = lw.stats.spearman(norms.values, size.values)
rest = np.arange(size.size) != int(size.values.argmax())  # one head does most: what of the others?
r_rest = lw.stats.pearson(norms.values.ravel()[rest], size.values.ravel()[rest])
r_control = lw.stats.pearson(obsprop.head_map(net, other).values, size.values)
randoms = [
    lw.stats.pearson(obsprop.head_map(net, Observable.of(net, int(i), int(j))).values, size.values)
    for i, j in rng.choice(net.d_vocab, (6, 2), replace=False)
]
r_total = lw.stats.pearson(norms.values, total.values)
print(f"Pearson r(norm, |direct effect|) = {r:.3f}, 95 % interval {np.round(r_interval, 3)}")
print(f"without the strongest head {r_rest:.3f}; by rank (Spearman) {rank:.3f}")
print(f"Pearson with the effect in the whole model {r_total:.3f}")
print(f"placebos: {other.name} {r_control:.3f}; random pairs of tokens {np.round(randoms, 2)}")

# %% [markdown]
# ### It is an exact account, once patterns and scales are known
#
# With the attention patterns and norm scales of a run, the vectors split the observable among heads
# and source tokens with nothing left over. Here for the head with the longest vector: which tokens
# give it *she* (positive) or *he*?

# %%
split = obsprop.contributions(net, she, list(task.clean[:4]))
layer, head = places[0]
at_name = int(task.positions["NAME"][0])
told = [net.tokens(t).strings[0] for t in task.clean[:4]]
words = ["(name)" if p == at_name else t for p, t in enumerate(told[0])]
strongest = split.sources.sel(layer=layer, head=head).drop_vars(["token_str", "text"])
strongest = strongest.assign_coords(prompt=[t[at_name].strip() for t in told])
strongest.attrs = {"long_name": "adds to the observable", "units": "logits"}
title = f"Head {layer}.{head}: what each token gives, for four names"
strongest.lw.heatmap(x="position", y="prompt", tokens=words, title=title, subtitle="")

# %%
parts = split.heads.sum(["layer", "head"]) + split.bias.sum("layer") + split.embed
parts = parts + split.writes.sum(["layer", "part"]) + split.constant
scale = float(np.abs(split.observable).max())
left_over = float(np.abs(parts - split.observable).max()) / scale
gap = np.abs(split.sources.sum("position") - split.heads)
by_source = float(gap.max() / np.abs(split.heads).max())
y_out = obsprop.vector(net, she)
cells = ["attention heads", "MLPs", "embedding"]
values = [split.heads.sum(["layer", "head"]), split.writes.sum(["layer", "part"]), split.embed]
pd.DataFrame(
    {k: v.values for k, v in zip(cells, values)} | {"observable": split.observable.values},
    index=list(task.clean[:4]),
).round(2)

# %% [markdown]
# ### A norm hardly turns a direction
#
# At a real input $x$ the norm's slope is not $\gamma \odot y$ but its part across $x$:
#
# $$\cos(\nabla_x [\, y \cdot \mathrm{N}(x)\,],\; \gamma \odot y)
# = \sqrt{1 - \cos^2(x, \gamma \odot y)}.$$
#
# Measured at the final norm, on every prompt, against the formula:

# %%
slopes = obsprop.tangents(net, she, list(task.clean))
kept = obsprop.cosine(slopes, y_out)
formula = np.sqrt(1 - slopes.along**2)
from lwlab.tasks.fit import Fit
from lwlab.tasks.pronouns import TEMPLATES
from lwlab.tasks.words import FEMALE, MALE

names = [Fit(net).keep(g, "names", 2)[:52] for g in (MALE, FEMALE)]  # of one token each
kinds = {
    t: [TEMPLATES[t][0].format(name=p) for g in names for p in g[:4]]
    for t in ("because", "isnt", "lost")
}
by_template = {t: obsprop.tangents(net, she, texts) for t, texts in kinds.items()}
means = [v.mean("prompt") for v in by_template.values()]
apart = min(float(obsprop.cosine(p, q)) for i, p in enumerate(means) for q in means[:i])
lengths = {t: float(np.sqrt((v.mean("prompt") ** 2).sum())) for t, v in by_template.items()}
print(f"cosine of slope and y: mean {float(kept.mean()):.5f}, least {float(kept.min()):.5f}")
print(f"mean slopes on three kinds of prompt: least cosine {apart:.5f}")
print("their lengths:", {t: round(v, 3) for t, v in lengths.items()})

# %% [markdown]
# ### One feature, two tasks
#
# *she* − *he* and the related observable point in similar directions at the output. At the heads
# that matter they become nearly **one**: the same feature serves both. The control does not join.

# %%
pulled = {o.name: obsprop.head_vectors(net, o) for o in (related, other)}
angles = {k: obsprop.cosine(vectors, v) for k, v in pulled.items()}
at_output = {o.name: float(obsprop.cosine(y_out, obsprop.vector(net, o))) for o in (related, other)}
cells = pd.DataFrame(
    [
        {"head": f"{i}.{h}", "norm": float(norms[i, h]), "with": k, "cosine": float(v[i, h])}
        for k, v in angles.items()
        for i, h in places
        if norms[i, h] > 0.01 * norms.max()  # a handful of heads that read next to nothing
    ]
)
lines = pd.DataFrame([{"with": k, "cosine": v} for k, v in at_output.items()])
colour = alt.Color("with:N", title=f"{she.name}, with").scale(range=["#0072b2", "#d55e00"])
points = alt.Chart(cells).mark_point(filled=True, opacity=1, size=14)
points = points.encode(
    x=alt.X("norm:Q", scale=alt.Scale(type="log"), title="norm of the feature vector"),
    y=alt.Y("cosine:Q", title="cosine of the two feature vectors"),
    color=colour, tooltip=["head", "with", "norm", "cosine"],
)  # fmt: skip
rule = alt.Chart(lines).mark_rule(strokeDash=[5, 4]).encode(y="cosine:Q", color=colour)
title = "At the heads that matter, related observables ask for one feature"
(points + rule).properties(
    width=290, height=170, title=alt.Title(title, subtitle="dashed: the same at the output")
)

# %%
named = pulled[related.name]
top = [{"layer": i, "head": h} for i, h in places]
pd.DataFrame(
    [
        {
            "head": f"{s['layer']}.{s['head']}",
            "cosine": float(angles[related.name].sel(s)),
            "C(first, second)": float(obsprop.coupling(vectors.sel(s), named.sel(s))),
            "C(second, first)": float(obsprop.coupling(named.sel(s), vectors.sel(s))),
            "cosine with control": float(angles[other.name].sel(s)),
        }
        for s in top[:6]
    ]
).round(3)

# %% [markdown]
# The **coupling** $C(y_1, y_2) = y_1 \cdot y_2 / \lVert y_1 \rVert^2$ says how much of the second
# observable comes with a unit of the first, for an input of which nothing else is known.
# What the strongest feature is about, by the embeddings nearest to it (a hint only: embeddings
# belong to layer 0):

# %%
near = obsprop.nearest_tokens(net, vectors.sel(top[0]))
near.token.to_pandas()

# %% [markdown]
# ### MLPs: a slope, at a point
#
# An MLP is not linear, so its feature vector is a gradient at some $x_0$: by default where
# $y \cdot \mathrm{MLP}$ crosses zero between a positive and a negative example. Always ask how much
# the choice matters. Here for the MLP that tells men from women most, with several choices of $x_0$:

# %%
sign = xr.DataArray([1, -1, 1, -1], dims="prompt")  # men and women take turns
told_apart = np.abs((split.writes.isel(part=0) * sign).mean("prompt"))
at_layer = int(told_apart.values.argmax())
stream = "resid_pre" if a.parallel else "resid_mid"
x0 = lw.cache(net, list(task.clean[:4]), stream, layers=at_layer, positions=-1)[stream]
x0 = x0.isel(layer=0, position=0, drop=True)
at_prompts = obsprop.mlp_vector(net, y_out, at_layer, x0)
choices = {f"prompt {i}": at_prompts.isel(prompt=i) for i in range(4)}
try:
    between = obsprop.crossing(net, y_out, at_layer, x0.isel(prompt=0), x0.isel(prompt=1))
    choices[f"crossing, t = {between.attrs['t']:.2f}"] = obsprop.mlp_vector(
        net, y_out, at_layer, between
    )
except lw.errors.BadInput as refused:  # both on one side: then the paper's default point is nowhere
    print(refused)
choices["their mean"] = obsprop.mlp_vector(net, y_out, at_layer, x0.mean("prompt"))
x0s = choices.items()
agree = {p: {q: float(obsprop.cosine(u, v)) for q, v in x0s} for p, u in x0s}
print(f"MLP of layer {at_layer}: cosines of feature vectors taken at different points")
pd.DataFrame(agree).round(2)

# %% [markdown]
# In SmolLM2 the choice matters a great deal: taken at a man's prompt and at a woman's, the last MLP
# has feature vectors with a cosine of about 0.35. One real prompt does *not* suffice here, and
# everything below stays with heads, which need none.
#
# ### The low-data regime
#
# Can the vector of the strongest head tell women from men in the stream it reads, as well as a probe
# that was trained? Half of the names, in two templates, are there to train on; the test has the
# *other* names in two *other* templates. Every example is the last token of a prompt such as those
# printed below. (At the token of the name itself there is nothing to compare: in a first trial every
# direction and every probe had an AUC above 0.999 there, from five examples on.)

# %%
halves = [[list(rng.permutation(g))[i::2] for g in names] for i in (0, 1)]
depths = sorted({*range(a.n_layers // 3, a.n_layers, 2 if a.n_layers > 12 else 1), layer})


def examples(templates: list[str], people: list[list[str]]) -> tuple[xr.DataArray, np.ndarray]:
    texts = [TEMPLATES[t][0].format(name=p) for t in templates for g in people for p in g]
    women = np.array([g for _ in templates for g in (0, 1) for _ in people[g]], bool)
    found = lw.cache(net, texts, "resid_pre", layers=depths, positions=-1).resid_pre
    return found.isel(position=0, drop=True).rename(prompt="example"), women


train, test = examples(["because", "isnt"], halves[0]), examples(["lost", "mother"], halves[1])
print(train[0].text.values[[0, -1]], test[0].text.values[[0, -1]])

# %%
ks = [k for k in (5, 10, 25, 50) if k <= train[1].sum()] or [1, 2]
here = {"layer": layer}
directions = {"propagated (no data)": vectors.sel(top[0]), "raw W_U n (no data)": y_out}
curve = obsprop.low_data_curve(
    train[0].sel(here), train[1], test[0].sel(here), test[1], directions, k=ks, seed=seed
)
ends = curve.mean("draw")
real = [t for t in curve.technique.values if t not in ("shuffled labels", "random direction")]
low, high = (curve.quantile(q, "draw").drop_vars("quantile") for q in (0.1, 0.9))
drawn = [x.sel(technique=real).rename(k="examples_a_class") for x in (ends, low, high)]
drawn[0].attrs = {"long_name": "AUC on held-out examples"}
drawn[0].lw.profile(
    x="examples_a_class", series="technique", low=drawn[1], high=drawn[2],
    interval="10-90 % of training sets", width=360,
    title=f"Women or men? The stream entering layer {layer}",
)  # fmt: skip

# %%
ends.to_pandas().round(4)

# %% [markdown]
# A vector that has seen no data stands above probes of five examples. But look at the second row:
# the *raw* unembedding direction, which was carried back through nothing, does it just as well here.
# So near the output there is little left to propagate. Is that so in earlier layers? There are two
# ways to propagate further down: each layer's own longest vector, and the strongest head's, carried
# through residual connections alone, unchanged.

# %%
rows = {}
for i in depths:
    best = vectors.sel(layer=i).isel(head=int(norms.sel(layer=i).values.argmax()))
    ways = {"the layer's longest": best, f"that of {layer}.{head}": vectors.sel(top[0])}
    one = obsprop.low_data_curve(
        train[0].sel(layer=i), train[1], test[0].sel(layer=i), test[1],
        {**ways, "raw W_U n": y_out}, k=ks[:1], draws=10, seed=seed,
    )  # fmt: skip
    rows[i] = one.isel(k=0, drop=True).mean("draw").drop_sel(technique="random direction")
by_layer = xr.concat(list(rows.values()), xr.Variable("layer", list(rows)))
by_layer.attrs = {"long_name": "AUC on held-out examples"}
title = f"Women or men, by layer (probes: {ks[0]} examples a class)"
by_layer.lw.profile(x="layer", series="technique", title=title, width=360, height=210)

# %% [markdown]
# At the last token there is little to read before layer 24: the gender of the name gets there with
# heads of layers 24 to 26. On the way, the strongest head's vector, carried down through residual
# connections, reads a little more than the raw direction. A layer's *own* longest vector reads less,
# and that of layer 28 tells women from men in reverse: it belongs to a head that works (slightly)
# against the observable. A feature vector says what its head would make of an input, not what the
# input is.
#
# ### Does the model use the direction?
#
# Take the one coordinate away, $x \leftarrow x - \frac{y \cdot x}{\lVert y \rVert^2} y$, at every
# token of the stream that the strongest head reads, and see how much of the observable is left.


# %%
def left(direction: np.ndarray) -> float:
    d = torch.as_tensor(direction / np.linalg.norm(direction), dtype=torch.float32)
    cut = {f"resid_pre.{layer}": lambda x: x - (x @ d)[..., None] * d}
    z = lw.patch(net, list(task.clean), cut, compare=False).logits
    return float((she(z) * effects.toward).mean())


asked = lw.cache(net, list(task.clean), "logits", positions=-1).logits.isel(position=0)
whole = float((she(asked) * effects.toward).mean())
erased = {
    "feature vector of the head": 1 - left(vectors.sel(top[0]).values) / whole,
    "raw W_U n": 1 - left(y_out.values) / whole,
    "control's feature vector": 1 - left(pulled[other.name].sel(top[0]).values) / whole,
    "random (mean of 3)": float(
        np.mean([1 - left(rng.normal(size=a.d_model)) / whole for _ in range(3)])
    ),
}
pd.Series(erased, name="share of the observable that is gone").round(3).to_frame()

# %% [markdown]
# ## Touch
#
# Type words into the boxes (*more of* and *than of*, with spaces or commas between them) and press
# Enter: both maps are made anew, the left one from the weights, the right one from eight prompts.
# Click a head: what does it read? A word of several tokens is refused, with its pieces.

# %%
panel = ObservablePanel(net, " ".join(map(repr, plus)), " ".join(map(repr, minus)),
                        task=task.subset(slice(0, 8)), text=task.clean[1] + " she said so.")  # fmt: skip
panel.pick(layer, head)

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
same = {"n": len(task), "seed": seed, "model": net}
lw.claim(
    "obsprop.shown-is-library", kind="exact", measured=mismatch, expect="< 1e-4",
    statement="products of plain matrices give the library's vectors of all heads", model=net,
)  # fmt: skip

# %%
lw.claim(
    "obsprop.heads-split-by-token", kind="exact", measured=by_source, expect="< 1e-4",
    statement="pattern times (y_h . input), summed over source tokens, is what the head adds to the "
    "observable; all heads, relative to the largest", **{**same, "n": 4},
)  # fmt: skip

# %%
lw.claim(
    "obsprop.parts-add-up", kind="exact", measured=left_over, expect="< 1e-4",
    statement="heads, MLPs, embedding and constants add up to the observable of the model",
    **{**same, "n": 4},
)  # fmt: skip

# %%
lw.claim(
    "obsprop.norm-slope-formula", kind="exact", measured=float(np.abs(kept - formula).max()),
    expect="< 1e-4", statement="the cosine of the norm's slope with y is sqrt(1 - cos^2(x, y)), "
    "largest deviation over prompts", **same,
)  # fmt: skip

# %%
products = obsprop.coupling(vectors, named) * obsprop.coupling(named, vectors)
lw.claim(
    "obsprop.couplings-make-the-cosine", kind="exact", expect="< 1e-4",
    measured=float(np.abs(products - angles[related.name] ** 2).max()),
    statement="C(y1, y2) C(y2, y1) = cos^2, for all heads", model=net,
)  # fmt: skip

# %% [markdown]
# ### What the paper says

# %%
pins = dict.fromkeys(
    ["norm", "total", "top", "shared", "control", "slopes", "probe", "mean", "fifty"], "reproduced"
)


def paper(id: str, key: str, measured: float, expect: str, statement: str, **more: object) -> None:
    lw.claim(
        f"obsprop.{id}", kind="paper", measured=measured, expect=expect, statement=statement,
        pinned={"smollm2-135m": pins[key]}, **{**same, **more},
    )  # fmt: skip


paper(
    "norm-tracks-direct-effect", "norm", r, "> 0.6", interval=r_interval,
    statement="Pearson r of the norm with the patched direct effect, over all heads",
    paper="section on ranking heads by norm",
)  # fmt: skip

# %%
paper(
    "norm-tracks-whole-effect", "total", r_total, "> 0.6", n=min(6, len(task)),
    statement="the same with the head patched in the whole model, later layers running on",
    paper="the heads with the largest norms are those path patching finds",
)  # fmt: skip

# %%
strong = np.argsort(-size.values.ravel())[:3]
paper(
    "top-three-heads", "top", len(set(strong) & set(order[:3])), ">= 2",
    statement="of the three heads with the longest vectors, those among the three with the largest "
    "direct effects", paper="the same",
)  # fmt: skip

# %%
gain = [float(angles[related.name].sel(s)) - at_output[related.name] for s in top[:5]]
paper(
    "shared-feature", "shared", min(gain), ">= 0.1", n=5,
    statement="how much closer (cosine) the two related observables are at the five longest heads "
    "than at the output, least of the five", paper="0.57 at the output, 0.98 at three heads",
)  # fmt: skip

# %%
paper(
    "control-stays-apart", "control", max(abs(float(angles[other.name].sel(s))) for s in top[:5]),
    "< 0.5", "placebo: |cosine| with the control observable at those heads, the largest", n=5,
)  # fmt: skip

# %%
paper(
    "norm-keeps-direction", "slopes", apart, "> 0.999", n=sum(map(len, kinds.values())),
    statement="least cosine of the final norm's mean slopes on three kinds of prompt",
    paper="> 0.999998, in GPT-Neo",
)  # fmt: skip


# %%
def lead(over: str, k: int) -> tuple[float, tuple[float, float]]:
    gap = curve.sel(technique="propagated (no data)", k=k) - curve.sel(technique=over, k=k)
    found = lw.stats.bootstrap(gap.values, seed=seed)
    return found.mean, (found.low, found.high)


few_, many_ = ks[0], ks[-1]
gap, between_ = lead("logistic regression", few_)
paper(
    "beats-few-example-probe", "probe", gap, "> 0", interval=between_, n=len(test[1]),
    statement=f"AUC of the propagated vector less that of a logistic regression on {few_} examples "
    "a class (interval over training sets)", paper="abstract: low-data regime",
)  # fmt: skip

# %%
gap, between_ = lead("difference of means", few_)
paper(
    "beats-few-example-means", "mean", gap, "> 0", interval=between_, n=len(test[1]),
    statement=f"the same over the difference of means of {few_} examples a class",
    paper="0.9974 against 0.905 of 50 examples a class",
)  # fmt: skip

# %%
gap, between_ = lead("logistic regression", many_)
paper(
    "as-good-as-large-probe", "fifty", gap, "> -0.02", interval=between_, n=len(test[1]),
    statement=f"the same over a logistic regression on {many_} examples a class",
    paper="0.9974 against 0.9971 of 25 examples a class",
)  # fmt: skip

# %% [markdown]
# ### What the paper does not ask

# %%
pins |= {"random": "reproduced", "raw": "not reproduced", "early": "not reproduced"}
pins |= {
    "erase": "reproduced",
    "shuffled": "reproduced",
    "carried": "reproduced",
    "rest": "reproduced",
}
paper(
    "random-observables-do-not", "random", r - max(*randoms, r_control), "> 0.1",
    statement="placebo: r(norm, direct effect) less the best r of seven other observables' norms",
)  # fmt: skip

# %%
chance = float(curve.sel(technique="shuffled labels").mean())
paper(
    "shuffled-labels-learn-nothing", "shuffled", chance, "in [0.35, 0.65]", n=len(test[1]),
    statement="placebo: AUC of probes trained on shuffled labels",
)  # fmt: skip

# %%
paper(
    "norm-tracks-without-one-head", "rest", r_rest, "> 0.6",
    statement="r(norm, direct effect) over all heads but the one with the largest effect, which "
    "alone makes much of the correlation",
)  # fmt: skip

# %%
gap, _ = lead("raw W_U n (no data)", few_)
paper(
    "propagating-beats-not-propagating", "raw", gap, "> 0.01", n=len(test[1]),
    statement="AUC of the propagated vector less that of the raw unembedding direction",
    note="four layers before the end the stream is already written in the language of the output: "
    "both are perfect, so this data cannot tell them apart",
)  # fmt: skip

# %%
early = by_layer.sel(technique="the layer's longest") - by_layer.sel(technique="raw W_U n")
paper(
    "propagating-helps-in-other-layers", "early", float(early.mean()), "> 0.01", n=len(test[1]),
    statement="the same, mean over layers from a third of the depth on, each with its longest head",
    note="the longest head of a layer need not be one that reads this feature, and one that works "
    "against the observable reads it in reverse; see the next claim",
)  # fmt: skip


# %%
def told_apart_by(v: xr.DataArray) -> float:
    x = train[0]
    scores = (x @ v) / (x**2).mean("d_model") ** 0.5
    return float(np.mean([obsprop.auc(scores.sel(layer=i), train[1]) for i in depths]))


paper(
    "carried-down-beats-raw", "carried", told_apart_by(vectors.sel(top[0])) - told_apart_by(y_out),
    "> 0", n=len(train[1]),
    statement="AUC of the strongest head's vector, carried down through the residual connection, "
    "less that of the raw direction, mean over the same layers",
    note="asked after the picture above, hence measured on the other names and templates",
)  # fmt: skip

# %%
paper(
    "the-model-uses-it", "erase", erased["feature vector of the head"] - erased["random (mean of 3)"],
    "> 0.1", statement="share of the observable that goes with the feature's one coordinate, less "
    "that of random directions",
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **A stereotype, from weights.** Take the observable *nurse* − *engineer*. Which heads could say
#    it? At these heads, how close is its feature to that of *she* − *he*? Compare with the output.
# 2. **One step further back.** The strongest head reads a direction; who writes it? Carry its
#    vector on through the heads of earlier layers, and compare with `path_vector`.
# 3. **Does it depend on the words?** Replace *she* − *he* by *woman* − *man* (or *Mary* − *John*).
#    How much of the head map changes?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. No text was read for this: it is a property of the weights.
try:
    jobs = Observable.of(net, " nurse", " engineer")
except lw.errors.BadInput as refused:
    print(refused)
else:
    job_vectors, job_norms = obsprop.head_vectors(net, jobs), obsprop.head_map(net, jobs)
    print(f"at the output: {float(obsprop.cosine(obsprop.vector(net, jobs), y_out)):.2f}")
    for i in np.argsort(-job_norms.values.ravel())[:6]:
        s = dict(zip(("layer", "head"), divmod(int(i), a.n_heads)))
        shared = float(obsprop.cosine(job_vectors.sel(s), vectors.sel(s)))
        print(*s.values(), f"norm {float(job_norms.sel(s)):.1f}, cosine {shared:.2f}")

# %% jupyter={"source_hidden": true}
# 2. A feature vector is as good a starting point as an observable.
before = list(range(max(layer, 1)))
onward = obsprop.head_map(net, vectors.sel(top[0], drop=True), before)
i, h = (int(x) for x in np.unravel_index(onward.values.argmax(), onward.shape))
steps = [f"head_out.{layer}.{head}", f"head_out.{i}.{h}"] if layer else [f"head_out.{layer}.{head}"]
through = obsprop.path_vector(net, she, steps)
print(f"longest path: {through.attrs['path']}, norm {float(np.sqrt((through**2).sum())):.1f}")
print(obsprop.nearest_tokens(net, through, k=5).token.to_pandas())

# %% jupyter={"source_hidden": true}
# 3. Other words for the same thing find the same heads.
for words in ((" woman", " man"), (" Mary", " John")):
    o = Observable.of(net, *words)
    alike = lw.stats.pearson(obsprop.head_map(net, o).values, norms.values)
    print(f"{o.name}: r with the norms of {she.name} = {alike:.2f}")
