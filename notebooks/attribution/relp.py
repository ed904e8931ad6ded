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
#     id: relp
#     family: attribution
#     title: "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching"
#     paper: "2508.21258"
#     cost: {seconds: 60, memory_mb: 1650}
#     model: smollm2-135m
# ---

# %% [markdown]
# # RelP: which parts of a model made it answer *Mary*?
#
# **The idea in one sentence:** to know what every part of a model contributes, patching them one by
# one takes thousands of runs and a gradient takes one, but gradients lie; propagate *relevance*
# instead of gradients, and one run tells (almost) the truth.
#
# Jafari, Eberle, Khakzar & Nanda 2025, [arXiv:2508.21258](https://arxiv.org/abs/2508.21258) ·
# [their code](https://github.com/FarnoushRJ/RelP)
#
# **Cost** with SmolLM2-135M: about a minute on two CPU cores, 1.7 GB of memory. Any decoder of the
# GPT-2, Llama, Qwen, Gemma, Pythia, OPT, Phi or OLMo kind will do: `lwlab run relp -p model=gpt2`.
# The pinned verdicts are SmolLM2-135M's, the only real model tried so far (besides toy models of
# those architectures, for which the exact claims are tested).

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full is the paper's scale
n: int = 8  # prompts, in pairs that corrupt each other; profile=full takes at least 100
steps: int = 5  # of integrated gradients
seed: int = 0

# %%
import altair as alt
import numpy as np
import torch
import xarray as xr
from IPython.display import display

import lwlab as lw
from lwlab.attribution import COMPONENTS, Pair, agreement, atp, exact, gain, placebo, relp
from lwlab.attribution.panel import RulePanel

lw.charts.enable()
net = lw.load(model)
task = lw.tasks.ioi(net, n=n if profile == "quick" else max(n, 100), seed=seed)
pair = Pair.of(net, task)  # both runs of every prompt, shared by all that follows
task.to_frame().head(4)

# %% [markdown]
# Each prompt $x$ asks for the indirect object. Its corrupt twin $x'$ names the other person as the
# giver, so the answer flips. The question of all that follows: put *one* activation of the clean
# run into the corrupt run. How much of the right answer comes back?
#
# ## The idea in one picture
#
# Take the MLP of the first layer, at the name that was changed (S2). Walk its output on a straight
# line from the corrupt value $a'$ to the clean one $a$, and let the rest of the model run:

# %%
S2 = int(task.positions[task.changed[0]][0])
two = Pair.of(net, task.subset([0, 1]))
ts = np.linspace(0, 1, 9)
ends = [
    lw.cache(net, list(t), "mlp_out", layers=0, positions=S2).mlp_out.values[:, 0]
    for t in (two.task.corrupt, two.task.clean)
]
on_the_way = np.concatenate([ends[0] + t * (ends[1] - ends[0]) for t in ts])
asked = two.task.subset(torch.arange(2).repeat(len(ts)))
run = lw.patch(net, list(asked.corrupt), {"mlp_out.0": on_the_way}, positions=S2, compare=False)
clean, corrupt = (float(m.mean()) for m in two.metrics())
lines = {
    "truth": (asked.metric(run.logits).values.reshape(-1, 2).mean(1) - corrupt) / (clean - corrupt)
}
for name, rules in {"gradient (AtP)": (), "relevance (RelP)": relp.RULES}.items():
    slope = relp.scores(net, two, "mlp_out", 0, rules=rules).mean("prompt").sel(position=S2)
    lines[name] = ts * slope.item()
picture = lw.results.label(
    np.stack(list(lines.values())), ("estimate", "t"), {"estimate": list(lines), "t": ts},
    name="share of the right answer restored",
)  # fmt: skip
picture.lw.profile(x="t", title="From the corrupt activation (t = 0) to the clean one (t = 1)")

# %% [markdown]
# The truth is curved: the model decides somewhere on the way. The gradient looks at the slope
# at the corrupt end only, where the model is sure of the wrong answer and nothing seems to matter.
#
# ## The method
#
# With $m$ the metric (logit of the right name minus logit of the other, at the last token) and $a$
# the activation of one component at one layer and position:
#
# | | score | price for the whole map |
# |---|---|---|
# | **exact** patching | $m(x' \text{ with } a' \leftarrow a) - m(x')$ | one run a cell |
# | **AtP** | $(a - a')^\top \; \partial m / \partial a$ at $x'$ | two runs and a backward pass |
# | **RelP** | $(a - a')^\top \; r$ at $x'$ | two runs and a backward pass |
# | **IG** | $(a - a')^\top \;$ mean gradient from $x'$ to $x$ | that, once a step |
#
# The coefficient $r$ is what backpropagation leaves at $a'$ when it obeys the rules of layer-wise
# relevance propagation. They change no value in the forward pass, only slopes:
#
# * **LN**: a norm divides by a constant, $y = \gamma \odot (x - \bar x) / [\sigma]$;
# * **Identity**: an activation is a constant gain, $y = x \cdot [f(x) / x]$;
# * **Half**: each factor of a gated product $g \odot u$ gets half of the gradient;
# * **AH** (not in the paper's default set): the attention pattern is a constant.
#
# $[\,\cdot\,]$ marks what is held constant. All scores are divided by $m(x) - m(x')$, averaged
# over prompts: 1 is the whole effect. Written out with the library's tracers:

# %%
good, bad = list(two.task.clean), list(two.task.corrupt)
with lw.rules(net, ln=True, identity=True, half=True, attention=False) as ruled:
    back = lw.grads(ruled, bad, two.task, COMPONENTS)  # r, and the values a' it was taken at
a = lw.cache(net, good, COMPONENTS)
shown = [((a[c] - back[f"{c}_value"]) * back[c]).sum("d_model") for c in COMPONENTS]
shown = xr.concat(shown, "component").values / (clean - corrupt)

# %% [markdown]
# That is the algorithm. The library's function does the same from the first changed token on (what
# comes before cannot differ in a causal model), which takes a third of the time:

# %%
library = relp.scores(net, two)
mismatch = float(np.abs(shown - library.values).max() / np.abs(shown).max())
print(f"largest difference, relative to the largest score: {mismatch:.1e}")
library

# %% [markdown]
# ## Results
#
# The ground truth, and every estimate with its ablations. Exact patching is the long part: one
# intervention for each of the components, layers and positions, carried by a batch that grows on
# its way up the model.

# %%
ablations = [r for r in ("ln", "identity", "half") if r in relp.acting_rules(net)]
techniques = ["exact", "atp", *ablations, "ln+identity", "relp", "relp+attention", "ig"]
maps = relp.study(net, pair, techniques, steps=steps)
score = maps.score.mean("prompt", keep_attrs=True)
maps

# %% [markdown]
# Three maps on one colour scale, for each kind of component. Layers go up, tokens to the right;
# where names differ between prompts, their roles stand in place of the token.

# %%
names = {"exact": "exact patching", "atp": "AtP (gradient)", "relp": "RelP"}
for c in COMPONENTS:
    three = score.sel(component=c, technique=list(names))
    three = three.assign_coords(technique=list(names.values())).drop_vars("component")
    display(
        three.isel(position=slice(pair.begin - 1, None)).lw.heatmap(
            facet="technique", title=f"{c}: what brings the answer back", subtitle=""
        )
    )

# %% [markdown]
# The story of the answer in SmolLM2-135M, from the exact maps: the changed name enters with the
# first layer's MLP (there a second embedding), sits in the stream at S2 up to layer 20 or so, is
# moved to the last token by three or four attention layers (one of them, 24, works against it), and
# is finished by the last MLPs. Who predicts this best? Every point is one cell:

# %%
for c in COMPONENTS:
    points = score.sel(component=c).isel(position=slice(pair.begin, None)).drop_vars("component")
    guesses = points.sel(technique=["atp", "relp", "ig"])
    patched = points.sel(technique="exact", drop=True).expand_dims(technique=guesses.technique)
    labels = ["AtP", "RelP", f"IG, {steps} steps"]
    patched, guesses = (x.assign_coords(technique=labels) for x in (patched, guesses))
    patched.attrs, guesses.attrs = {"long_name": "exact"}, {"long_name": "predicted"}
    options = {"facet": "technique", "size": 170, "title": f"{c}: predicted against exact"}
    display(lw.charts.scatter(patched, guesses, subtitle="", **options))

# %% [markdown]
# Pearson's r with the exact map, over all cells of the mean maps (as in the paper), with 95 %
# intervals from resampling pairs of prompts:

# %%
found = agreement(maps, n=1000, seed=seed)
table = found.sel(kind="mean").to_dataframe().reset_index()
order = [t for t in techniques if t != "exact"]
base = alt.Chart(table).encode(y=alt.Y("technique:N", sort=order, title=None))
scale = alt.Scale(zero=False, domainMax=1)
across = alt.X("low:Q", title="Pearson r with exact patching", scale=scale)
spans = base.mark_rule(strokeWidth=2, color="#888").encode(x=across, x2="high:Q")
dots = base.mark_point(filled=True, size=70, opacity=1, color="#0072b2").encode(
    x="r:Q", tooltip=["technique", alt.Tooltip("r:Q", format=".3f")]
)
chart = (spans + dots).properties(width=190, height=190)
chart.facet(
    alt.Facet("component:N", sort=list(COMPONENTS), title=None),
    title="How well each estimate, and each rule alone, predicts exact patching",
)

# %%
found.r.transpose("kind", "technique", "component").to_series().unstack("component").round(3)

# %% [markdown]
# (`active`: the same without the columns that are zero by construction; `pooled`: every prompt's
# cells for themselves. Small differences between sets of names are large here: eight prompts.)
#
# ### Relevance is conserved
#
# With all four rules the model above a layer is, to the backward pass, homogeneous in its input.
# Then, by Euler's theorem, the relevance in the stream adds up to the metric **at every layer**
# (what biases absorb counted in):
#
# $$\sum_{p} \langle h_l(p), r_l(p) \rangle
# + \sum_{b \text{ above } l} \langle b, r_b \rangle = m(x').$$

# %%
four = task.subset(slice(0, 4))
sets = {"LN + Identity + Half + AH": relp.EVERY, "without AH (RelP)": relp.RULES, "no rules": ()}
kept = {name: relp.conservation(net, four, rules=rules) for name, rules in sets.items()}
total = xr.concat([k.relevance + k.biases for k in kept.values()], "rules").mean("prompt")
share = (total / next(iter(kept.values())).metric.mean()).assign_coords(rules=list(kept))
share.attrs["long_name"] = "relevance in the stream / metric"
share.lw.profile(x="layer", series="rules", title="Does relevance add up to the metric?")

# %% [markdown]
# Conserving is not the same as being right: the set that conserves (with AH) predicts exact
# patching *less* well than the set that does not.
#
# ### Placebos
#
# What is such a correlation worth? Controls that know less, or nothing, of the answer:
#
# * the bare **size** of the change, $|a - a'|$, without any look at what follows;
# * gradients replaced by **random directions** of the same length (20 draws);
# * RelP for the names of **another pair**, which the prompt does not mention;
# * an **untrained** model: four layers of the same kind with random weights, against its own exact
#   patching.

# %%
import pandas as pd

truth = score.sel(technique="exact")


def r_with_exact(x: xr.DataArray) -> list[float]:
    pairs = [(truth.sel(component=c).values, x.sel(component=c).values) for c in COMPONENTS]
    return [lw.stats.pearson(a, b) for a, b in pairs]


random = placebo.random_direction(net, pair, draws=20, seed=seed).mean("prompt")
draws = np.array([r_with_exact(random.isel(draw=i)) for i in range(20)])
rows = {t: r_with_exact(score.sel(technique=t)) for t in ("relp", "atp")}
rows["size of the change"] = r_with_exact(placebo.size(net, pair).mean("prompt"))
rows["random direction, mean of 20"] = list(draws.mean(0))
rows["random direction, best of 20"] = list(draws.max(0))
if len(set(task.groups.tolist())) > 1:
    others = relp.scores(net, placebo.shuffled_labels(task), normalise=False).mean("prompt")
    rows["names of another pair"] = r_with_exact(others)

blank = placebo.untrained(net, layers=4, seed=seed)
untrained = relp.study(blank, four)
for t in ("relp", "atp"):
    r = agreement(untrained, n=2).r.sel(kind="mean", technique=t)
    rows[f"untrained model: {t}"] = r.values.tolist()
pd.DataFrame(rows, index=list(COMPONENTS)).T.round(3)

# %%
for c in COMPONENTS:
    cells = truth.sel(component=c)
    layer, position = np.unravel_index(np.abs(cells.values).argmax(), cells.shape)
    part = float(cells[layer, position] ** 2 / (cells**2).sum())
    token = score.position_str.values[position].strip()
    print(f"{c}: the tallest cell, layer {layer} at {token}, holds {part:.0%} of the map's square")

# %% [markdown]
# Three warnings for whoever reads such correlations.
#
# * Maps for *other names* correlate as strongly (the sign is chance): r sees *where* a change
#   travels, hardly what it says. Sizes tell more.
# * The MLP map is nearly **one cell**, the first layer at S2. Whoever finds that cell wins the
#   correlation, and now and then a random direction does. The claims below ask again without it.
# * In the untrained model the gradient is nearly perfect and RelP is the worse of the two: there is
#   no saturation to mend. What RelP repairs, training has bent.
#
# ## Touch
#
# Switch the rules; the model runs backwards again at each click. Which of them matters most for
# MLPs? Which hurts? Click a cell to compare it with the truth.

# %%
panel = RulePanel(net, pair, maps, component="mlp_out")
panel

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
same = {"n": len(task), "seed": seed, "model": net}
few = {**same, "n": 2}  # where every prompt is a proof of its own, two will do
plain = lw.grads(net, bad, two.task, "resid_pre", layers=0)
worst, changes = 0.0, []
for rule in relp.acting_rules(net):
    with lw.rules(net, **{k: k == rule for k in relp.EVERY}) as view:
        ruled = lw.grads(view, bad, two.task, "resid_pre", layers=0)
    worst = max(worst, float(np.abs(ruled.metric - plain.metric).max()))
    gap = ((ruled.resid_pre - plain.resid_pre) ** 2).sum() / (plain.resid_pre**2).sum()
    changes.append(float(gap) ** 0.5)
lw.claim(
    "relp.values-unchanged", kind="exact", measured=worst, expect="== 0", **few,
    statement="rules change slopes, never values: the metric is bit-identical under each of them",
)  # fmt: skip

# %%
lw.claim(
    "relp.rules-act", kind="exact", measured=min(changes), expect="> 1e-6", **few,
    statement="each rule that has something to act on changes the gradient at the first stream",
)  # fmt: skip

# %%
lw.claim(
    "relp.no-rules-is-atp", kind="exact", expect="== 0", **few,
    measured=float(np.abs(relp.scores(net, two, rules=()) - atp.scores(net, two)).max()),
    statement="with all rules off, RelP is attribution patching",
)  # fmt: skip

# %%
lw.claim(
    "relp.shown-is-library", kind="exact", measured=mismatch, expect="< 1e-3", **few,
    statement="the algorithm written out above gives the library's scores, relative to the largest",
)  # fmt: skip

# %%
with_all, without_ah, _ = kept.values()
if obstacle := relp.obstacle(net):
    print(f"relevance need not be conserved in {net.name}: {obstacle}")
else:
    lw.claim(
        "relp.conservation", kind="exact", measured=float(with_all.error.max()), expect="< 1e-3",
        statement="with four rules the relevance in the stream is the metric, at every layer",
        **{**same, "n": len(four)},
    )  # fmt: skip

# %%
lw.claim(
    "relp.attention-rule-needed", kind="exact", measured=float(without_ah.error.max()),
    expect="> 1e-2", statement="without the attention rule relevance is not conserved",
    **{**same, "n": len(four)},
)  # fmt: skip

# %%
if two.begin:
    prefix = range(two.begin)
    a, b = (lw.cache(net, t, COMPONENTS, positions=prefix) for t in (good, bad))
    gap = max(float(np.abs(a[c] - b[c]).max()) for c in COMPONENTS)
    edits = {f"{c}.{i}": a[c].sel(layer=i).values for c in COMPONENTS for i in a.layer.values}
    put = lw.patch(net, bad, edits, positions=prefix)
    moved = float(np.abs(put.logits - put.base_logits).max())
    lw.claim(
        "relp.shared-prefix-is-zero", kind="exact", measured=max(gap, moved), expect="== 0",
        statement="before the first changed token nothing differs, and patching all of it moves "
        "no logit", **few,
    )  # fmt: skip

# %%
from dataclasses import replace

equal = Pair.of(net, replace(two.task, corrupt=two.task.clean))
equal = equal.from_the_start()  # so that every position is really computed
nothing = relp.scores(net, equal, normalise=False)
lw.claim(
    "relp.equal-prompts-are-zero", kind="exact", measured=float(np.abs(nothing).max()),
    expect="== 0", statement="prompts that corrupt themselves score zero everywhere", **few,
)  # fmt: skip

# %%
if len(task.changed) == 1:
    whole = truth.sel(component="resid_pre", layer=0, position=S2)
    lw.claim(
        "relp.all-enters-at-s2", kind="exact", measured=float(whole), expect="1 +- 1e-3",
        statement="the first stream at the only changed token carries the whole effect", **same,
    )  # fmt: skip

# %% [markdown]
# ### What the paper says
#
# The paper's numbers for GPT-2 small (stream / attention / MLP): AtP 0.753 / 0.979 / 0.195, RelP
# 0.968 / 0.962 / 0.992. Intervals are 95 %, from resampling pairs of prompts.


# %%
def compare(
    id: str, component: str, versus: str, expect: str, statement: str, pin: str,
    first: str = "relp", kind: str = "mean", rank: bool = False, drop: int = 0, **more: str,
) -> None:  # fmt: skip
    one = maps.sel(component=[component])
    g = gain(one, first, versus, kind=kind, rank=rank, drop=drop, seed=seed).isel(component=0)
    lw.claim(
        f"relp.{id}", kind="paper", measured=float(g.r), interval=(float(g.low), float(g.high)),
        expect=expect, statement=statement, pinned={"smollm2-135m": pin}, **same, **more,
    )  # fmt: skip


compare(
    "beats-atp-in-the-stream", "resid_pre", "atp", "> 0.1", pin="reproduced",
    statement="r(RelP) - r(AtP), residual stream (paper: +0.22)", paper="table, GPT-2 small",
)  # fmt: skip

# %%
compare(
    "beats-atp-in-mlps", "mlp_out", "atp", "> 0.1", pin="reproduced",
    statement="r(RelP) - r(AtP), MLP outputs (paper: +0.80; GPT-2 Large: 0.006 to 0.956)",
    paper="abstract",
)  # fmt: skip

# %%
compare(
    "no-worse-in-attention", "attn_out", "atp", "> -0.05", pin="reproduced",
    statement="r(RelP) - r(AtP), attention outputs, which were easy for AtP (paper: -0.02)",
    paper="table, GPT-2 small",
)  # fmt: skip

# %%
r = found.sel(kind="mean", technique="relp")
r = r.isel(component=int(r.r.values.argmin()))
lw.claim(
    "relp.close-to-exact", kind="paper", measured=float(r.r), expect=">= 0.95", **same,
    interval=(float(r.low), float(r.high)), pinned={"smollm2-135m": "not reproduced"},
    statement=f"the lowest r(RelP) of the components (here {r.component.item()}; paper: 0.962)",
    note="the direction holds; in this smaller, gated model saturation is not mended entirely",
    paper="table, GPT-2 small",
)  # fmt: skip

# %%
import time


def seconds(scores) -> float:
    start = time.process_time()
    scores(net, pair)
    return time.process_time() - start


ratios = [seconds(relp.scores) / seconds(atp.scores) for _ in range(2)]
lw.claim(
    "relp.costs-as-much-as-atp", kind="paper", measured=min(ratios), expect="< 2",
    statement="CPU seconds of RelP over those of AtP, activations at hand; best of two",
    paper="abstract: two forward passes and one backward pass", unit="x",
    pinned={"smollm2-135m": "reproduced"}, **same,
)  # fmt: skip

# %% [markdown]
# ### What the paper does not ask

# %%
compare(
    "beats-atp-in-mlps-without-one-cell", "mlp_out", "atp", "> 0.1", pin="not reproduced", drop=1,
    statement="the lead in MLPs survives leaving out the one tallest cell",
    note="the MLP map is nearly one cell, the first layer at S2, which AtP all but misses",
)  # fmt: skip

# %%
compare(
    "beats-atp-by-rank", "mlp_out", "atp", "> 0", pin="not reproduced", kind="active", rank=True,
    statement="RelP also leads by Spearman's rank correlation, MLP outputs, active cells",
    note="RelP mends the size of the large, saturated effects; the many small ones the gradient "
    "ranks better",
)  # fmt: skip

# %%
compare(
    "as-good-as-ig-in-mlps", "mlp_out", "ig", "> -0.05", pin="not reproduced",
    statement=f"RelP is as good as integrated gradients of {steps} steps, {steps} times the price",
    paper="abstract, of sparse feature circuits",
)  # fmt: skip

# %%
compare(
    "attention-rule-hurts-in-the-stream", "resid_pre", "relp", "< 0", pin="reproduced",
    first="relp+attention", paper="the rule is left out of the paper's default set",
    statement="adding the attention rule, which makes relevance conserved, lowers r",
)  # fmt: skip

# %%
blank_lead = gain(untrained, "relp", "atp", n=100, seed=seed).r.max()
lw.claim(
    "relp.no-lead-without-training", kind="paper", measured=float(blank_lead), expect="< 0.05",
    statement="placebo: r(RelP) - r(AtP) in an untrained model, the best of three components",
    pinned={"smollm2-135m": "reproduced"}, n=4, seed=seed, model=net,
)  # fmt: skip

# %%
beaten = (draws >= np.array(rows["relp"])).mean(0).max()
lw.claim(
    "relp.beats-random-directions", kind="paper", measured=float(beaten), expect="< 0.1",
    statement="share of random directions that correlate as well as RelP, worst component",
    pinned={"smollm2-135m": "reproduced"}, **same,
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **Your own question.** Take another task (`lw.tasks.pronouns(net)`, `lw.tasks.agreement(net)`).
#    Let RelP find the component that matters most, then patch that one exactly. Was RelP right?
# 2. **The other way round.** Exchange clean and corrupt, and patch the strongest attention layer
#    again. Must its effect stay what it was?
# 3. **How many steps?** Integrated gradients with one step take the slope half way. Is one such
#    step, as cheap as RelP, better or worse than RelP? And without the tallest cell?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. RelP looks everywhere for the price of one backward pass; exact patching checks one layer.
question = Pair.of(net, lw.tasks.pronouns(net, n=2, seed=seed))
found_ = relp.scores(net, question, ["attn_out", "mlp_out"]).mean("prompt")
at = found_.isel(np.abs(found_).argmax(...))
check = exact.scores(net, question, at.component.item(), [at.layer.item()]).mean("prompt")
print(question.task.clean[0], "->", question.task.answers[0])
print(f"{at.component.item()}, layer {at.layer.item()}, token {at.position_str.item()!r}: ", end="")
print(f"RelP {at.item():.3f}, exact {check.sel(position=at.position.item()).item():.3f}")

# %% jupyter={"source_hidden": true}
# 2. In pairs that corrupt each other an exchange only reorders the prompts, so take one of each.
strongest = np.abs(truth.sel(component="attn_out")).max("position").argmax("layer").item()
half = task.subset(slice(0, 4, 2))
for name, t in (
    ("as it was", half),
    ("exchanged", replace(half, clean=half.corrupt, corrupt=half.clean)),
):
    effect = exact.scores(net, t, "attn_out", strongest).mean("prompt").isel(position=-1)
    print(f"attention of layer {strongest} at the last token, {name}: {effect.item():.3f}")

# %% jupyter={"source_hidden": true}
# 3. One step costs what RelP costs; where the truth is a step, its slope half way is the jump.
one_step = relp.study(net, pair, ["ig"], steps=1).assign_coords(technique=["one step"])
both = xr.concat([maps, one_step], "technique", combine_attrs="override")
for drop in (0, 1):
    lead = gain(both, "one step", "relp", drop=drop, seed=seed).r.values.round(3).tolist()
    print(f"r(one step) - r(RelP), {drop} cells left out:", dict(zip(COMPONENTS, lead)))
