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
#     id: depth-efficiency
#     family: depth
#     title: Do Language Models Use Their Depth Efficiently?
#     paper: "2505.13898"
#     cost: {seconds: 55, memory_mb: 1400}
#     model: smollm2-135m
# ---

# %% [markdown]
# # Do language models use their depth efficiently?
#
# **The idea in one sentence:** take a layer away, and see who misses it: later layers, later
# tokens, or only the prediction of the token at hand.
#
# Csordás, Manning & Potts 2025, [arXiv:2505.13898](https://arxiv.org/abs/2505.13898) ·
# [their code](https://github.com/RobertCsordas/llm_effective_depth)
#
# They find in Llama 3.1 and Qwen 3 that layers of the second half add little to the residual
# stream, that skipping them hardly disturbs what later tokens compute, and that harder questions
# do not go deeper. Here all of it is measured again on a small model, next to placebos.
#
# **Cost** with SmolLM2-135M: about a minute on two CPU cores, 1.4 GB of memory. Any decoder whose
# layers add attention and MLP to one stream will do (GPT-2, Llama, Qwen, Gemma, Pythia, OPT, Phi,
# OLMo, Mixtral): `lwlab run depth-efficiency -p model=gpt2`. The text tells what SmolLM2 does.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full is the paper's scale
texts: list[str] = []  # your own texts, 12 tokens or more each; empty: word problems made here
source: Literal["made", "hub"] = "made"  # hub: GSM8K, MQuAKE and MATH from Hugging Face
seed: int = 0

# %%
import altair as alt
import numpy as np
import xarray as xr

import lwlab as lw
from lwlab.depth import (
    deepening,
    from_hub,
    future_share,
    halves,
    integrated_gradients,
    layer_contributions,
    lens_distance,
    multi_hop,
    question_effects,
    row_means,
    scores_by_level,
    skip_effects,
    sums,
    token_erasure,
    word_problems,
)

lw.charts.enable()
net = lw.load(model)
L = net.n_layers
quick = profile == "quick"
many, some = (range(0, L, max(1, L // k) if quick else 1) for k in (15, 10))  # layers to skip
few = many[::3] if quick else many

if source == "hub":
    problems = [q.text for q in from_hub("gsm8k", n=10)]
elif quick:
    problems = [q.text for q in word_problems(2, n=4, seed=seed)]
else:
    problems = [q.text for q in word_problems(2, n=10, seed=seed, style="paper")]
short = [q.text for q in word_problems(1, n=3, seed=seed, style="short")]
texts = texts or (short if quick else problems)
lengths = net.tokens(texts).lengths.tolist()
t = min(lengths) // 2 if quick else None  # None: up to four t at random, as in the paper
print(net)
print(f"skips: {len(texts)} texts of {min(lengths)} to {max(lengths)} tokens, such as {texts[0]!r}")

# %% [markdown]
# ## The idea in one picture
#
# Let the first tokens of a text do without one layer $s$ (rows), and look at what every layer $l$
# (columns) writes at the *later* tokens, which kept all their layers. Whatever changes there came
# to them through attention: it was information that layer $s$ had prepared for others.

# %%
future = skip_effects(net, texts, "future", t=t, seed=seed)
average = future.sel(statistic="max").mean("prompt", keep_attrs=True)
average.lw.heatmap(
    variable="effect", x="layer", y="skipped", domain=(0, 0.6),
    title="Skip a layer for the first tokens: what changes at the later ones?",
    width=360, height=270,
)  # fmt: skip

# %% [markdown]
# Bright: what the layer writes at some later token changes by more than half of its size. After the
# first three layers, the rows fade downwards: what the last layers compute is hardly used by other
# tokens. Remember this picture: at the end, placebos ask how much of it is about a *trained* model.
#
# ## The method
#
# Let $h_l$ be the stream that enters layer $l$, $a_l$ and $m_l$ what its attention and its MLP add,
# and $c_l = a_l + m_l$ the contribution of the layer, so that $h_{l+1} = h_l + c_l$.
#
# To **skip** layer $s$ on a set of positions is to put $h_{s+1} := h_s$ there. The model runs on,
# and every later layer writes $\tilde c_l$ in place of $c_l$. The effect on layer $l$, and on the
# output distribution $p$, is
#
# $$D[s,l] = \max_{\text{positions}} \frac{\lVert c_l - \tilde c_l \rVert}{\lVert c_l \rVert},
# \qquad O[s] = \max_{\text{positions}} \lVert p - \tilde p \rVert_2 \le \sqrt 2 .$$
#
# * **current**: skipped and read at all positions but the first;
# * **future**: skipped before position $t$, read from $t$ on;
# * **local**: nothing runs on; each layer $l > s$ reads its own original input less $c_s$, which
#   shows who reads layer $s$ *directly*.
#
# Position 0 is left out everywhere, of skips, means and maxima: SmolLM2 adds no start token, so the
# first word is an attention sink whose norm would dominate every mean.
#
# One skip, written out with the library's tracer:

# %%
text = texts[0]
clean = lw.cache(net, text, ["resid_pre", "resid_post"])
after_first = list(range(1, clean.sizes["position"]))


def norm(x: xr.DataArray) -> xr.DataArray:
    return np.sqrt((x**2).sum("d_model"))


def skip_by_hand(s: int) -> xr.DataArray:
    h = clean.resid_pre.sel(layer=s).isel(position=after_first)
    run = lw.patch(
        net, text, {f"resid_post.{s}": h.values}, positions=after_first,
        read=["resid_pre", "resid_post"], compare=False,
    )  # fmt: skip
    c = clean.resid_post - clean.resid_pre
    changed = run.resid_post - run.resid_pre
    return (norm(changed - c) / norm(c)).isel(prompt=0, position=after_first).max("position")


tried = [many[i] for i in (1, len(many) // 2, -1)]
by_hand = xr.concat([skip_by_hand(s) for s in tried], "skipped").assign_coords(skipped=tried)

# %% [markdown]
# The library gives the same numbers for half the work: blocks before $s$ are not run again, and the
# skips of all layers share one growing batch.

# %%
current = skip_effects(net, texts, "current", layers=many, seed=seed)
from_library = current.effect.sel(statistic="max", skipped=tried).isel(prompt=0)
disagreement = float((abs(by_hand - from_library) / (1 + from_library)).max())
print(f"largest difference between the two, relative to 1 + D: {disagreement:.1e}")
print(current.lw.describe())

# %% [markdown]
# ## Results
#
# ### What layers add
#
# The relative contribution of a sublayer is the norm of what it adds, divided by the norm of the
# stream it adds to. The cosine between the two says in which direction: 0 writes something new,
# below 0 erases, above 0 amplifies what is there.

# %%
added = layer_contributions(net, problems)
by_layer = added.mean(("prompt", "position"), keep_attrs=True)


def bars(name: str, title: str, *parts: str, **scale: object) -> alt.Chart:
    frame = by_layer[name].sel(part=list(parts)).to_dataframe(name).reset_index().round(4)
    up = alt.Scale(**scale) if scale else alt.Undefined
    ticks = alt.Axis(labelAngle=0, values=list(range(0, L, 5)))
    return (
        alt.Chart(frame)
        .mark_bar(clip=True)
        .encode(
            x=alt.X("layer:O", title=None, axis=ticks),
            xOffset="part:N",
            y=alt.Y(f"{name}:Q", scale=up, title=None, axis=alt.Axis(tickCount=4)),
            color=alt.Color("part:N", title=None),
            tooltip=["layer", "part", alt.Tooltip(f"{name}:Q", format=".3f")],
        )
        .properties(width=560, height=85, title=title)
    )  # fmt: skip


top = float(by_layer.relative.sel(part="mlp", layer=0))
note = f"{net.name}, mean over {added.attrs['tokens']} tokens of {added.attrs['n']} texts"
alt.vconcat(
    bars("norm", f"Norms by layer ({note})", "attention", "mlp", "stream"),
    bars("relative", f"Relative contribution (layer 0 up to {top:.1f})", "attention", "mlp",
         domain=[0, 1]),
    bars("cosine", "Cosine of what is written with the stream", "attention", "mlp"),
)  # fmt: skip

# %%
peaks = added.norm.max(("prompt", "position")).sel(layer=few).to_dataframe("norm").norm
print("largest norm at any token but the first:")
peaks.unstack("layer").round(0).astype(int)

# %% [markdown]
# The stream grows with depth, so a write of the same size counts for less and less. Yet SmolLM2's
# later layers also write more: their relative contribution does not fall in the second half, as it
# does in the paper's models. From layer 20 on attention amplifies what is there; layers 11 and 29
# erase.
#
# ### Who needs whom
#
# The same matrix three ways. Between *current* and *future* lies the paper's main point: what late
# layers do matters a great deal now, and hardly at all later.

# %%
one = texts[:1] if quick else texts
local = skip_effects(net, one, "local", layers=many, seed=seed)
modes = {"current": current, "future": future, "local": local}
maps = xr.concat(
    [m.effect.sel(statistic="max", skipped=many).mean("prompt") for m in modes.values()],
    xr.Variable("mode", list(modes)),
)
maps.attrs = {"long_name": "relative change", "model": net.name, "seed": seed}
lw.charts.heatmap(
    maps, x="layer", y="skipped", facet="mode", domain=(0, 1), height=160,
    title="What changes when a layer is skipped, by mode",
)  # fmt: skip

# %%
parts = {
    part: skip_effects(net, one, part=part, layers=few, outputs=False)
    for part in ("attention", "mlp")
}
sublayers = xr.concat(
    [m.effect.sel(statistic="max").mean("prompt") for m in parts.values()],
    xr.Variable("part", list(parts)),
)
sublayers.attrs = {"long_name": "relative change", "model": net.name, "n": len(one)}
lw.charts.heatmap(
    sublayers, x="layer", y="skipped", facet="part", domain=(0, 1), width=270, height=90,
    title="Only the attention, or only the MLP, of a layer silenced (current)",
)  # fmt: skip

# %%
outputs = xr.concat(
    [m.output_effect.sel(statistic="max").mean("prompt") for m in (current, future)],
    xr.Variable("mode", ["current", "future"]), join="inner",
)  # fmt: skip
lw.charts.profile(
    outputs.assign_attrs(long_name="change of p (L2)"), x="skipped",
    series="mode", title="Effect of skipping a layer on the predictions",
    subtitle=f"{net.name}, n = {len(texts)}; max over positions, mean over texts", width=380,
    height=140,
)  # fmt: skip

# %% [markdown]
# ### When the prediction is ready
#
# The logit lens reads each layer's stream as if it were the last. Until the middle it says next to
# nothing about the final prediction; then every layer brings it closer.

# %%
lens = lens_distance(net, problems, every=8 if quick else 1)
by_depth = lens.mean(("prompt", "position"), keep_attrs=True)
lw.charts.beside(
    by_depth.lw.profile(variable="kl", title="KL(lens || final)", width=230, height=130),
    by_depth.lw.profile(variable="overlap", title="Top-5 overlap", width=230, height=130),
)

# %% [markdown]
# ### Until when a token is needed
#
# **Erasure** replaces the stream of one token at one layer by that layer's mean stream. How much do
# the probabilities of the answer change?

# %%
prompt, answer = "The spouse of the performer of Imagine is", " Yoko Ono"
erased = token_erasure(
    net, prompt, answer, reference=problems[:2] if quick else problems,
    layers=[*few, L],
)  # fmt: skip
erased.lw.heatmap(
    variable="effect", title=f"Erase one token at one layer: what happens to {answer!r}?",
    width=360, height=170,
)  # fmt: skip

# %% [markdown]
# After a few layers nobody needs the words of the question any more, only the sink at position 0
# and the tokens that predict. (The answer's last token comes after every prediction.)
#
# **Integrated gradients** ask the other way round: how much did what attention or MLP wrote at a
# layer and token add to the probability of the answer, measured from their mean over positions? The
# attributions of one component sum to the change of that probability (completeness; checked below),
# if the integral is taken finely enough: the library halves the path where it is not.

# %%
ig_layers = range(L - 1, 0, -(L // 4 + 1))[::-1] if quick else range(L)
ig = integrated_gradients(net, prompt, answer, layers=ig_layers, max_steps=128)
ig.lw.heatmap(
    variable="attribution", facet="part", width=270, height=130,
    title=f"Integrated gradients of the probability of {answer!r}",
)  # fmt: skip

# %% [markdown]
# ### Is harder deeper?
#
# A **depth score** is the centre of mass of the layers by future effect,
# $\sum_s s\,w_s / \sum_s w_s$, with $w_s = \sum_{l>s} D[s,l] / (L-1-s)$ ("layers") or $w_s = O[s]$
# ("logits"), at $t$ = the first token of the answer. If chains of more facts or longer sums took
# more depth, it would rise.

# %%
n_each = 3 if quick else 20
if source == "hub":
    asked = {"hops": from_hub("mquake", n=n_each), "sums": from_hub("math", n=n_each)}
else:
    asked = {
        "hops": [q for hops in (1, 2, 3) for q in multi_hop(hops, min(n_each, 8), seed)],
        "sums": [q for terms in (2, 3, 4) for q in sums(terms, n_each, seed)],
    }
difficulty = {
    kind: question_effects(
        net, questions, layers=few, points=4 if questions[0].kind == "math" else 1, seed=seed
    )
    for kind, questions in asked.items()
}


def chart_of_levels(kind: str, what: str, step: str) -> alt.LayerChart:
    by_level = scores_by_level(difficulty[kind], seed=seed)
    score = by_level.score.assign_attrs(long_name="depth score (layer)")
    score["level"].attrs["long_name"] = step
    equal = f"{by_level.attrs['uniform']:.1f} if all layers were equal"
    return lw.charts.profile(
        score, x="level", series="form", low=by_level.low, high=by_level.high, title=what,
        subtitle=f"{net.name}, n = {n_each} a level; {equal}", width=200, height=130,
    )  # fmt: skip


lw.charts.beside(
    chart_of_levels("hops", "Facts in a chain", "hops"),
    chart_of_levels("sums", "Additions", "operations"),
)

# %% [markdown]
# Mind the scale: of 30 layers, the scores move by less than one, with few questions a level.

# %% [markdown]
# ### Placebos
#
# Two questions that every such result must answer. Would **any vector of that size** do? Instead of
# $c_s$, take a random vector of equal norm out of the stream. And would **any network of that
# depth**? The same skips in a randomly initialised transformer (a Llama of as many layers, 192
# wide).

# %%
noise = skip_effects(
    net, texts, "future", t=t, layers=some, removed="random", outputs=False, seed=seed
)

from lwlab.models import toys

module, _ = toys.tiny(
    "llama", seed=seed, num_hidden_layers=L, hidden_size=192, intermediate_size=512,
    num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=4096,
)  # fmt: skip
random_net = lw.wrap(module, name=f"random llama of {L} layers")
ids = net.tokens(texts).ids[:, : min(lengths)] % random_net.d_vocab
random_future = skip_effects(random_net, ids, "future", t=min(lengths) // 2)
random_current = skip_effects(random_net, ids, "current", layers=many)

# %%
rows = xr.Dataset({
    "trained": row_means(future).mean("prompt"),
    "trained, random vector": row_means(noise).mean("prompt"),
    "random network": row_means(random_future).mean("prompt"),
}).sel(skipped=some[1:])  # fmt: skip
share = xr.Dataset({
    "trained": future_share(current, future).mean("prompt"),
    "random network": future_share(random_current, random_future).mean("prompt"),
}).sel(skipped=[s for s in many if 0 < s < L - 1])  # fmt: skip
lw.charts.beside(
    lw.charts.profile(
        rows.to_dataarray("what").assign_attrs(long_name="mean D over later layers"), x="skipped",
        series="what", title="Effect on later tokens", width=220, height=140,
        subtitle=f"{net.name}, n = {len(texts)}, layer 0 left out",
    ),
    lw.charts.profile(
        share.to_dataarray("network").assign_attrs(long_name="future effect / current effect"),
        x="skipped", series="network", title="How much reaches later tokens?",
        width=220, height=140,
        subtitle=f"{net.name}, n = {len(texts)}, layer 0 left out",
    ),
)  # fmt: skip

# %% [markdown]
# The left picture is sobering. A random vector as long as the layer's write does as much to later
# tokens, and a network that never learned anything shows the same fall, because each write is a
# smaller part of a growing stream. By itself, the fading of the first picture is no sign of
# learning, nor of waste.
#
# The right picture divides the future effect of a layer by its effect on *all* tokens (means over
# positions), so that the growth of the stream cancels. The random network still passes on half of
# the effect of its last layers; the trained one passes on less from the start and next to nothing
# at the end. This much survives: late layers of the trained model work on the token at hand.
#
# ## Touch
#
# Switch the mode, drag $t$, click a cell. Moving $t$ runs the model again (a few seconds). The bars
# below mark the two layers of the cell.

# %%
from lwlab.depth.explorer import SkipExplorer

explorer = SkipExplorer(net, texts[0], mode="future", t=t, known=future if quick else None)
explorer.map.pick(L // 3, L // 2)
explorer

# %% [markdown]
# ## Claims
#
# What must hold, because mathematics says so:

# %%
size = float(added.norm.max())
lw.claim(
    "depth-efficiency.stream-identity", kind="exact", expect="< 1e-5", model=net,
    measured=float(added.identity_error.max()) / size, n=added.attrs["tokens"],
    statement="the stream is a sum: largest |h + a + m - y|, relative to the largest norm",
)  # fmt: skip

# %%
lw.claim(
    "depth-efficiency.order", kind="exact", expect="== 0", model=net,
    measured=by_hand.where(by_hand.layer < by_hand.skipped, 0.0).max(),
    statement="a skip changes no earlier layer: largest D[s, l] with l < s, in traced runs",
)  # fmt: skip


# %%
def own_row(effects: xr.Dataset) -> xr.DataArray:
    """D[s, s] of every prompt."""
    return effects.effect.sel(statistic="max", layer=effects.skipped)


lw.claim(
    "depth-efficiency.current-diagonal", kind="exact", expect="== 0", model=net,
    measured=abs(own_row(current) - 1).max(),
    statement="a skipped layer adds nothing: largest |D[s, s] - 1| in mode current",
)  # fmt: skip

# %%
lw.claim(
    "depth-efficiency.future-diagonal", kind="exact", expect="== 0", model=net,
    measured=own_row(future).max(),
    statement="layer s itself is as it was at later tokens: largest D[s, s] in mode future",
)  # fmt: skip

# %%
lw.claim(
    "depth-efficiency.shown-is-library", kind="exact", expect="< 1e-3", model=net,
    measured=disagreement,
    statement="skips traced one by one equal those in a growing batch: largest |gap| / (1 + D)",
)  # fmt: skip

# %%
lw.claim(
    "depth-efficiency.lens-end", kind="exact", expect="< 1e-6", model=net,
    measured=abs(lens.kl.sel(layer=L)).max(),
    statement="the lens of the last stream is the model's prediction: largest KL",
)  # fmt: skip

# %%
allowed = 0.02 + 0.05 * abs(ig.difference)
lw.claim(
    "depth-efficiency.ig-completeness", kind="exact", expect="<= 1", model=net,
    measured=(abs(ig.gap) / allowed).max(),
    statement="attributions sum to F(x) - F(baseline): largest |gap| / (0.02 + 0.05 |difference|)",
    note=f"{int(ig.steps.min())} to {int(ig.steps.max())} gradients for each of {ig.gap.size} sums",
)  # fmt: skip

# %% [markdown]
# What the paper found, measured here. "Halves" are layers 1 to L/2 - 1 and L/2 to L - 1 (to L - 2
# for skips: no layer follows the last). Intervals are bootstraps over texts or questions, few of
# them in the quick profile.

# %%
paper = "arXiv:2505.13898"
yes, no = {"smollm2-135m": "reproduced"}, {"smollm2-135m": "not reproduced"}


def second_over_first(values: xr.DataArray, **options: object) -> dict[str, object]:
    """The ratio of the halves and its interval, as arguments of a claim."""
    ratio = halves(values, n_layers=L, seed=seed, **options).ratio
    found = {"measured": ratio.mean, "n": values.sizes["prompt"], "seed": seed, "model": net}
    return found | ({"interval": ratio[1:]} if np.isfinite(ratio.low) else {})


over_skips = {"dim": "skipped", "skip_last": True}

lw.claim(
    "depth-efficiency.contributions-fall", kind="paper", paper=paper, expect="< 0.75", pinned=no,
    statement="layers of the second half add less: relative contribution, second / first half",
    note="SmolLM2-135M adds a little more in its second half; the paper's models are 60 to 3000 "
    "times larger, and a stream 576 wide in 30 layers has less depth to spare",
    **second_over_first(added.relative.sel(part="layer")),
)  # fmt: skip

# %%
lw.claim(
    "depth-efficiency.future-layers", kind="paper", paper=paper, expect="< 0.75", pinned=yes,
    statement="without a late layer later tokens' layers change less: mean D, second / first half",
    note="layers 1 and 2 make much of it, and see the placebos",
    **second_over_first(row_means(future), **over_skips),
)  # fmt: skip

# %%
lw.claim(
    "depth-efficiency.future-output", kind="paper", paper=paper, expect="< 0.75", pinned=yes,
    statement="without a late layer later tokens' predictions change less: O, second / first half",
    **second_over_first(future.output_effect.sel(statistic="max"), **over_skips),
)  # fmt: skip

# %%
lw.claim(
    "depth-efficiency.current-output", kind="paper", paper=paper, expect="> 0.75", pinned=yes,
    statement="late layers matter to the prediction at hand: O, all tokens, second / first half",
    **second_over_first(current.output_effect.sel(statistic="max"), **over_skips),
)  # fmt: skip

# %%
overlap = lens.overlap.mean("position")
risen = overlap.sel(layer=L) - overlap.sel(layer=L // 2)
late = lw.stats.bootstrap(risen / (overlap.sel(layer=L) - overlap.sel(layer=1)), seed=seed)
lw.claim(
    "depth-efficiency.lens-late", kind="paper", paper=paper, expect="> 0.75", pinned=yes,
    statement="predictions are refined late: share of the gain in top-5 overlap in the second half",
    measured=late.mean, interval=late[1:], n=lens.attrs["n"], seed=seed, model=net,
)  # fmt: skip

# %%
words = slice(1, len(net.tokens(prompt).strings[0]) - 2)  # neither the sink nor what predicts
lw.claim(
    "depth-efficiency.erasure", kind="paper", paper=paper, expect="< 0.5", pinned=yes,
    statement="the question's words are not needed late: effect of an erasure, second / first half",
    **second_over_first(erased.effect.sel(position=words, layer=slice(1, L - 1)).mean("position")
                        .expand_dims("prompt")),
)  # fmt: skip

# %%
for kind, effects in difficulty.items():
    slope = deepening(effects, seed=seed)
    lw.claim(
        f"depth-efficiency.flat-{kind}", kind="paper", paper=paper, expect="< 0.5", pinned=yes,
        statement=f"harder is not deeper ({kind}): what a level adds to the depth score",
        measured=slope.mean, interval=slope[1:], n=effects.attrs["n"], seed=seed, model=net,
        unit="layers", note="by effects on layers; by those on the output {:.2f} [{:.2f}, {:.2f}]; "
        "questions count, answered right or not".format(*deepening(effects, "logits", seed=seed)),
    )  # fmt: skip

# %% [markdown]
# What the placebos say about it:

# %%
both = xr.concat([row_means(future), row_means(noise)], "what", join="inner")
both = both.sel(skipped=slice(1, L - 2)).mean("skipped")
lw.claim(
    "depth-efficiency.placebo-vector", kind="paper", paper="control", expect="> 1.25", pinned=no,
    statement="to later tokens a layer's own write matters more than random ones: mean D, ratio",
    measured=both[0].mean() / both[1].mean(), n=both.sizes["prompt"], seed=seed, model=net,
    note="how long a write is, not so much where it points, decides what others lose",
)  # fmt: skip

# %%
lw.claim(
    "depth-efficiency.placebo-network", kind="paper", paper="control", expect="> 0.75", pinned=no,
    statement="the fall with depth is learned: a random network lacks it (mean D, future, second / "
    "first half)", note="each write is a smaller part of a growing stream, learned or not",
    **second_over_first(row_means(random_future), **over_skips),
)  # fmt: skip

# %%
learned, chance = (
    halves(future_share(a, b), n_layers=L, seed=seed, **over_skips)
    for a, b in ((current, future), (random_current, random_future))
)
against = [x / chance.ratio.mean for x in learned.ratio]
lw.claim(
    "depth-efficiency.future-share", kind="paper", paper="control", expect="< 0.8", pinned=yes,
    statement="late layers work for the token at hand: share of the effect that reaches later "
    "tokens, second / first half, relative to a random network",
    measured=against[0], interval=against[1:], n=len(texts), seed=seed, model=net,
    note=f"trained {learned.first.mean:.2f} to {learned.second.mean:.2f}, random network "
    f"{chance.first.mean:.2f} to {chance.second.mean:.2f}",
)  # fmt: skip

# %% [markdown]
# Not measured here: the paper's linear maps from a shallow to a deep model (they need two trained
# models of one family), its fine-tuned models and its universal transformers.
#
# ## Try it
#
# 1. **Your own text.** Which layer would other tokens miss most in a sentence of yours?
# 2. **Position 0.** Skip layers at the first token too (`front=0`). Which row grows, and why?
# 3. **A small denominator.** $D$ divides by $\lVert c_l \rVert$, so a layer that writes little
#    shows a large effect. How much of the *current* picture is that? Correlate the two over layers.
#
# The solutions are in the folded cells below.

# %% jupyter={"source_hidden": true}
# 1. Layers 1 to 3 prepare the stream for everybody; after them, look for single bright rows.
mine = skip_effects(
    net, "The old lighthouse keeper wrote a letter to his sister in Lisbon.", "future",
    layers=few, outputs=False,
)  # fmt: skip
row_means(mine).isel(prompt=0).drop_vars(["statistic", "text"]).to_series().round(2).to_frame().T

# %% jupyter={"source_hidden": true}
# 2. Without its early layers the first token is no attention sink any more, and every head of
# every later layer misses it.
with_sink = skip_effects(net, texts[:1], front=0, layers=few, outputs=False)
xr.Dataset({
    "front=0": row_means(with_sink).isel(prompt=0),
    "front=1": row_means(current).isel(prompt=0).sel(skipped=few),
}).to_dataframe()[["front=0", "front=1"]].round(2).T  # fmt: skip

# %% jupyter={"source_hidden": true}
# 3. A good part: layers that write little are changed more.
hit = current.effect.sel(statistic="max").where(current.layer > current.skipped)
hit = hit.mean(("prompt", "skipped")).sel(layer=slice(1, None))
written = by_layer.norm.sel(part="layer", layer=slice(1, None))
print(f"Spearman over layers: {lw.stats.spearman(written.values, hit.values):.2f}")
