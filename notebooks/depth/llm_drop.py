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
#     id: llm-drop
#     family: depth
#     title: What Matters in Transformers? Not All Attention is Needed
#     paper: "2406.15786"
#     cost: {seconds: 55, memory_mb: 1500}
#     model: smollm2-135m
# ---

# %% [markdown]
# # LLM-Drop: not all attention is needed
#
# **The idea in one sentence:** a sublayer that hands its input on almost as it came can go, and for
# attention, the costlier half because of its cache, that is true surprisingly often.
#
# He, Sun, Shen & Li 2024, [arXiv:2406.15786](https://arxiv.org/abs/2406.15786) ·
# [their code](https://github.com/CASE-Lab-UMD/LLM-Drop)
#
# They drop half of the attention layers of Llama-2-70B: 48.4 % faster, 2.4 % worse. Here it is done
# to a model 500 times smaller, by really taking the modules out, next to random choices.
#
# **Cost** with SmolLM2-135M: about a minute on two CPU cores, 1.5 GB of memory. Any decoder whose
# blocks are attention, then MLP, will do (GPT-2, Llama, Qwen, Gemma, OPT, OLMo, Mixtral):
# `lwlab run llm-drop -p model=gpt2`. Where the two run in parallel (Pythia, Phi), only whole
# blocks can be dropped, and the notebook says so. Also tried: `toys/char-gpt2`.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full takes longer texts
source: str = "pydoc"  # what is read: "pydoc", a file, a folder or a Hugging Face dataset
n: int = 16  # questions of the task
seed: int = 0

# %%
import altair as alt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from IPython.display import display

import lwlab as lw
from lwlab.depth import (
    drop_curve,
    drop_order,
    footprint,
    importance,
    remove,
    single_losses,
    speed,
)
from lwlab.errors import BadInput

lw.charts.enable()
net = lw.load(model)
L = net.n_layers
quick = profile == "quick"
few, some, many, half = (max(1, round(L * x / 30)) for x in (2, 4, 8, 15))
joint = max(1, round(2 * L * 31 / 80))  # the paper's 31 of the 80 sublayers of Llama-2-13B
most = net.max_tokens or 1024
calibrated, judged = (min(most, x) for x in ((96, 48) if quick else (1024, 1024)))  # tokens
texts = lw.tasks.corpus(source, n=8 if quick else 64, tokens=calibrated, model=net, seed=seed)
known, unseen = texts[: len(texts) // 2], texts[len(texts) // 2 :]
try:
    task = lw.tasks.ioi(net, n=n if quick else max(n, 100), seed=seed)
except BadInput as why:
    task = None
    print(f"no accuracy for {net.name}: {why}")
print(net)
print(
    f"scored on {len(known)} texts of {calibrated} tokens, judged on {judged} of {len(unseen)} more"
)

# %% [markdown]
# ## The idea in one picture
#
# How far does each attention, each MLP and each whole block turn the stream that flows through it?
# $S = 0$ says: out comes what went in.

# %%
scores = importance(net, known)
bars = scores.importance.to_series().reset_index()
bars["part"] = bars.part.map({"attn": "attention", "mlp": "MLP", "block": "block"})
top = max(0.3, float(scores.importance.quantile(0.9)))
alt.Chart(bars.round(4)).mark_bar(clip=True).encode(
    x=alt.X("layer:O", axis=alt.Axis(labelAngle=0, values=list(range(0, L, 5)))),
    y=alt.Y("importance:Q", title="S", scale=alt.Scale(domain=[0, top])),
    color=alt.Color("part:N", legend=None),
    row=alt.Row("part:N", title=None, sort=["attention", "MLP", "block"]),
    tooltip=["part", "layer", alt.Tooltip("importance:Q", format=".3f")],
).properties(width=480, height=75, title=f"Importance of every part of {net.name}")  # fmt: skip

# %% [markdown]
# The first layers and the last turn it a lot (bars are cut at the top). In between lies a plain
# of attention that hardly does anything to the direction of the stream.
#
# ## The method
#
# Of a sublayer $F$ with its norm $N$ and its residual, $Y = X + F(N(X))$, the **importance** is
#
# $$S = 1 - \frac1T\sum_t \cos(X_t, Y_t).$$
#
# Score once on a few texts, sort, and **remove** the $k$ lowest at once; no training. Position 0
# stays out of the mean: SmolLM2 adds no start token, so the first word is an attention sink with a
# massive activation, whose cosine is 1 from layer 11 on. Written out:

# %%
one = lw.cache(net, known[0], ["resid_pre", "attn_out", "mlp_out"])


def turned(x: xr.DataArray, write: xr.DataArray) -> xr.DataArray:
    y = x + write
    size = ((x**2).sum("d_model") * (y**2).sum("d_model")) ** 0.5
    return 1 - ((x * y).sum("d_model") / size).isel(position=slice(1, None)).mean("position")


by_hand = xr.concat(
    [turned(one.resid_pre, one.attn_out), turned(one.resid_pre + one.attn_out, one.mlp_out)], "part"
).isel(prompt=0)
from_library = scores.by_prompt.sel(part=["attn", "mlp"]).isel(prompt=0)
shown = float(np.abs(by_hand.values - from_library.values).max())
print(f"largest difference to the library's: {shown:.1e}")
print("attention goes in this order:", *drop_order(scores, "attn")[:10], "...")

# %% [markdown]
# **To remove is not to silence.** A hook that zeroes what a sublayer writes gives the same logits, and
# costs the same arithmetic and the same cache. `remove` makes a smaller model: the module, its
# norms, its keys and values are gone, what stays is shared with the whole model.

# %%
gone = drop_order(scores, "attn")[:many]
small = remove(net, gone)
silenced = {f"attn_out.{name.partition('.')[2]}": 0.0 for name in gone}
put = lw.patch(net, known[0], silenced, compare=False).logits.values
less = lw.cache(small, known[0], "logits").logits.values[:, -1]
same = float(np.abs(put - less).max() / np.abs(put).max())
print(f"removed against silenced, {many} attentions: logits differ by {same:.1e} of the largest")
small

# %% [markdown]
# ## Results
#
# ### What it costs to drop k
#
# Four lists by similarity, against the same number of attentions chosen at random (four draws) and
# the *most* important ones first.

# %%
orders = {mode: drop_order(scores, mode) for mode in ("attn", "mlp", "block", "joint")}
ks = {"attn": [many, half], "mlp": [many], "block": [many], "joint": [many, joint]}
by_s = drop_curve(net, orders, ks, unseen, task, max_tokens=judged)

draws = [f"random attn {i}" for i in range(4)]
controls = {name: drop_order(scores, kind="random", seed=seed + i) for i, name in enumerate(draws)}
controls["reverse attn"] = drop_order(scores, kind="reverse")
controls |= {mode: orders[mode] for mode in ("attn", "mlp", "block")}
ks = {name: [many] for name in controls} | {"attn": [few, some], "mlp": [some], "block": [some]}
others = drop_curve(net, controls, ks, unseen, max_tokens=judged)
curve = by_s.nll.combine_first(others.nll)


def mean_loss(order: str, k: int) -> float:
    """Nats a token, over all tokens."""
    return float(curve.sel(order=order, k=k).weighted(by_s.tokens).mean())


base = mean_loss("attn", 0)
curve.weighted(by_s.tokens).mean("prompt").to_series().unstack("k").reindex(
    [*orders, *others.order.values[:-3]]
).round(2)

# %%
lines = curve.sel(order=["attn", "mlp", "block", *draws]).mean("prompt")
frame = lines.to_series().dropna().reset_index(name="nll")
frame["what"] = frame.order.where(~frame.order.isin(draws), "attn, random (4 draws)")
kinds = ["attn", "attn, random (4 draws)", "mlp", "block"]
colours = ["#0072b2", "#999999", "#d55e00", "#009e73"]
alt.Chart(frame.round(3)).mark_line(point=True).encode(
    x=alt.X("k:Q", title="sublayers or blocks dropped"),
    y=alt.Y("nll:Q", title="loss (nats a token)", scale=alt.Scale(zero=False)),
    color=alt.Color("what:N", sort=kinds, title=None,
                    scale=alt.Scale(domain=kinds, range=colours)),
    strokeDash=alt.StrokeDash("what:N", sort=kinds, legend=None),
    detail="order:N",
).properties(width=420, height=230, title=f"{net.name}: loss without k of its parts")  # fmt: skip

# %% [markdown]
# Random attention is a gamble: it is harmless until it hits one of the few that everything rests
# on (layers 0 and 1). That is what $S$ is good for: it knows the few. And what the accuracy says:

# %%
if task is not None:
    print(
        f"{task.name}: share of {len(task)} questions where the answer beats the foil (chance 1/2)"
    )
    display(by_s.correct.mean("question").to_series().unstack("k").reindex(by_s.order).round(2))

# %% [markdown]
# ### Does S guess what a removal costs?
#
# Each attention removed alone (an oracle that needs labels and a run for each): how well does the
# order by $S$ predict the rise of the loss?

# %%
story = (
    "The lighthouse stood on a rock above the harbour. Every evening the keeper climbed the stairs, "
    "lit the lamp, and watched the ships come home before the storm."
)
rises = single_losses(net, story if quick and most > 200 else unseen, "attn").mean("prompt")
attention = scores.importance.sel(part="attn", drop=True)
rank = lw.stats.spearman(attention.values, rises.values)
points = pd.DataFrame({"S": attention.values, "rise": rises.values, "layer": range(L)})
points["label"] = points.layer.astype(str).where((points.S > 0.03) | (points.rise > 0.3), "")
dots = alt.Chart(points.round(4)).encode(
    x=alt.X("S:Q", scale=alt.Scale(type="log"), title="S of the attention"),
    y=alt.Y("rise:Q", scale=alt.Scale(type="symlog", constant=0.05),
            title="rise of the loss (nats a token)"),
    tooltip=["layer", "S", "rise"],
)  # fmt: skip
(
    dots.mark_point(filled=True, size=40, opacity=1)
    + dots.mark_text(dx=10, dy=-6).encode(text="label:N")
).properties(width=380, height=220, title=f"Removed alone: Spearman {rank:.2f}")

# %% [markdown]
# ### Speed and memory, measured
#
# The whole model, half of its attention gone, and as many whole blocks gone, in turn, in one
# process. Times are CPU time on one thread; sizes are those of the tensors themselves.

# %%
models = {
    "whole": net,
    f"{half} attn less": remove(net, orders["attn"][:half], check=False),
    f"{many} blocks less": remove(net, orders["block"][:many], check=False),
}
size = footprint(models, tokens=calibrated)
pace = speed(models, prompt=judged // 2, new=3, rounds=3, seed=seed)
summary = size.to_dataframe()
for phase in ("prefill", "decode"):
    summary[f"{phase}, ms a token"] = pace.seconds.sel(phase=phase).min("round") * 1000
    summary[f"{phase}, times faster"] = pace.speedup.sel(phase=phase).median("round")
summary.round(2).T

# %% [markdown]
# The cache falls exactly as the number of attentions does; the weights fall less, because three
# quarters of a block here are its MLP, and a fifth of the model is the embedding. How much time that
# saves depends on what dominates: in the paper's 70B model, at long contexts on a GPU, the cache.
#
# ### Placebo: a model that never learned
#
# Sort the attention of a randomly initialised model by the same $S$. Without training nothing
# depends on anything, so the order should be worth nothing.

# %%
from lwlab.models import toys

module, _ = toys.tiny(
    "llama", seed=seed, num_hidden_layers=L, hidden_size=96, intermediate_size=256,
    num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=512,
)  # fmt: skip
blank = lw.wrap(module, tokenizer=toys.tokenizer(), name=f"random llama of {L} layers")
words = [" ".join(np.random.default_rng(seed + i).permutation(toys.WORDS)[:40]) for i in range(4)]
blank_scores = importance(blank, words)
blank_orders = {"attn": drop_order(blank_scores)} | {
    name: drop_order(blank_scores, kind="random", seed=seed + i) for i, name in enumerate(draws)
}
blank_curve = drop_curve(blank, blank_orders, [many], words)
blank_loss = blank_curve.nll.mean("prompt").sel(k=many)
blank_gain = float(blank_loss.sel(order=draws).mean() - blank_loss.sel(order="attn"))
print(f"by S better than random by {blank_gain:.3f} nats, of {float(blank_loss.mean()):.2f}")

# %% [markdown]
# ## Touch
#
# Choose a list and drag the budget: the bars that turn orange are gone, and the board below runs
# what is left. Up to where does it still know the capital of France? Click single rows back on.

# %%
from lwlab.depth.llm_drop_board import DropBoard

board = DropBoard(net, scores, "The capital of France is", text=unseen[0], mode="attn", k=many)
board

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
about = {"seed": seed, "model": net}
lw.claim(
    "llm-drop.shown-is-library", kind="exact", measured=shown, expect="< 1e-4", n=1, **about,
    statement="S written out above is the library's: largest difference",
)  # fmt: skip

# %%
ids = net.tokens(known[0]).ids
with torch.no_grad():
    nothing = float((remove(net, []).module(ids).logits - net.module(ids).logits).abs().max())
lw.claim(
    "llm-drop.nothing-dropped", kind="exact", measured=nothing, expect="== 0", n=1, **about,
    statement="with k = 0 the logits are the whole model's bit for bit",
)  # fmt: skip

# %%
lw.claim(
    "llm-drop.removed-is-silenced", kind="exact", measured=same, expect="< 1e-4", n=1, **about,
    statement=f"without {many} attentions, removed or silenced by a patch: largest difference of "
    "logits, relative",
)  # fmt: skip

# %%
at = L // 2
whole_chain = lw.chain(net, known[0], [i for i in range(L) if i != at], compare=False).logits
halves = lw.cache(remove(net, [f"attn.{at}", f"mlp.{at}"]), known[0], "logits").logits[:, -1]
both = float(np.abs(halves.values - whole_chain.values).max() / np.abs(whole_chain).max())
lw.claim(
    "llm-drop.two-halves-are-a-block", kind="exact", measured=both, expect="< 1e-4", n=1, **about,
    statement="dropping both halves of a block is skipping it: largest difference of logits",
)  # fmt: skip

# %%
first, second, _ = size.cache_mb.values
lw.claim(
    "llm-drop.cache-shrinks", kind="exact", measured=abs(second / first - (L - half) / L),
    expect="< 1e-9", n=1, **about,
    statement=f"without {half} of {L} attentions the cache holds {L - half} / {L} of the bytes",
)  # fmt: skip

# %%
with torch.no_grad():
    cut = ids.shape[1] // 2
    start = small.module(ids[:, :cut], use_cache=True)
    rest = small.module(ids[:, cut:], past_key_values=start.past_key_values).logits
    direct = small.module(ids).logits[:, cut:]
kept = float((rest - direct).abs().max() / direct.abs().max())
lw.claim(
    "llm-drop.cache-is-right", kind="exact", measured=kept, expect="< 1e-3", n=1, **about,
    statement="the smaller model continues from its smaller cache as if it had read it all",
)  # fmt: skip

# %% [markdown]
# ### What the paper says
#
# $k$ is 8 of 30 where nothing else is said; losses in nats a token; intervals are 95 % bootstraps
# over the texts (four of them in the quick profile).


# %%
def loss(order: str, k: int = many) -> np.ndarray:
    """Loss of each text."""
    return curve.sel(order=order, k=k).values


def compare(id: str, a: np.ndarray, b: np.ndarray, expect: str, statement: str, pin: str, **more):
    found = lw.stats.bootstrap(a - b, seed=seed)
    return lw.claim(
        f"llm-drop.{id}", kind="paper", measured=found.mean, interval=found[1:], expect=expect,
        statement=statement, pinned={"smollm2-135m": pin}, unit="nats", n=len(a), **about, **more,
    )  # fmt: skip


draws_of = np.stack([loss(name) for name in draws])
random = draws_of.mean(0)
compare(
    "beats-random", random, loss("attn"), "> 1", pin="reproduced",
    statement="loss of random attention dropped (mean of 4 draws) less that by S",
    note="the interval is over texts; over draws the loss has two modes, with and without layers 0, 1",
)  # fmt: skip

# %%
compare(
    "attention-cheaper-than-mlps", loss("mlp"), loss("attn"), "> 0", pin="reproduced",
    statement="dropping as many MLPs costs more than dropping attention", paper="abstract",
)  # fmt: skip

# %%
rise = {o: mean_loss(o, many) - base for o in ("attn", "mlp", "block")}
lw.claim(
    "llm-drop.attention-far-cheaper-than-blocks", kind="paper", expect="< 0.5", n=len(unseen),
    measured=rise["attn"] / rise["block"], paper="abstract", **about,
    statement="rise of the loss for attention over that for as many whole blocks ('far less')",
    pinned={"smollm2-135m": "reproduced"},
)  # fmt: skip

# %%
compare(
    "reverse-is-worst", loss("reverse attn"), random, "> 0", pin="reproduced",
    statement="the most important attentions dropped first: loss above that of random choices",
)  # fmt: skip

# %%
lw.claim(
    "llm-drop.s-predicts-removal", kind="paper", measured=rank, expect="> 0.25", n=L, **about,
    statement="Spearman over layers: S of an attention, and the rise of the loss without it",
    pinned={"smollm2-135m": "reproduced"},
    note="one short text; most of the thirty cost next to nothing and are ranked by noise. With "
    "longer ones: 0.6 to 0.75",
)  # fmt: skip

# %%
if task is not None:
    right = by_s.correct.sel(order="attn")
    before, after = right.sel(k=0).values, right.sel(k=half).values
    jointly = by_s.correct.sel(order="joint", k=joint).values
    fall = lw.stats.bootstrap(before - after, seed=seed, groups=by_s.group.values)
    lw.claim(
        "llm-drop.half-of-attention", kind="paper", measured=fall.mean, interval=fall[1:],
        expect="<= 0.024", paper="abstract: Llama-2-70B, 2.4 % lower", n=len(task), **about,
        statement=f"accuracy lost with half of the attention ({half}): {task.name}",
        pinned={"smollm2-135m": "not reproduced"},
        note=f"the loss rises by {mean_loss('attn', half) - base:.2f} nats; 70B parameters have more "
        "to spare than 135M",
    )  # fmt: skip

# %%
if task is not None:
    ratio = jointly.mean() / before.mean()
    lw.claim(
        "llm-drop.joint", kind="paper", measured=ratio, expect=">= 0.9", n=len(task), **about,
        statement=f"share of the accuracy kept without {joint} of {2 * L} sublayers: {task.name}",
        paper="abstract: Llama-2-13B keeps 90 % of its MMLU without 31 of 80",
        pinned={"smollm2-135m": "not reproduced"},
        note=f"the loss rises by {mean_loss('joint', joint) - base:.2f} nats",
    )  # fmt: skip

# %%
faster = pace.speedup.sel(phase="decode").isel(model=1)
lw.claim(
    "llm-drop.faster", kind="paper", measured=float(faster.median()), expect="> 1", unit="x",
    statement=f"decoding without {half} attentions, times faster (CPU time, one thread, median)",
    paper="abstract: 48.4 % for Llama-2-70B", n=int(faster.size), **about,
    pinned={"smollm2-135m": "reproduced"},
)  # fmt: skip

# %% [markdown]
# ### What the paper does not ask

# %%
compare(
    "one-shot-mlps-worse-than-blocks", loss("mlp"), loss("block"), "> 0", pin="reproduced",
    statement="at this k, one-shot MLP drop is worse than dropping as many whole blocks",
    note="several MLPs in a row look idle one by one, and are not together",
)  # fmt: skip

# %%
typical = float(np.median(draws_of.mean(1))) - mean_loss("attn", many)
lw.claim(
    "llm-drop.beats-the-typical-draw", kind="paper", measured=typical, expect="> 0", unit="nats",
    n=len(draws), **about, pinned={"smollm2-135m": "reproduced"},
    statement="loss of the median random draw less that by S",
)  # fmt: skip

# %%
lw.claim(
    "llm-drop.nothing-to-choose-untrained", kind="paper", measured=blank_gain,
    expect="< 0.1", unit="nats", n=len(words), seed=seed, model=net,
    statement="placebo: in an untrained model, the order by S is no better than random ones",
    pinned={"smollm2-135m": "reproduced"},
)  # fmt: skip

# %% [markdown]
# The iterative way (`lw.depth.iterative_order`: drop two, score again) is no claim either. It gave
# 5.1 nats for eight MLPs where one shot gives 6.3, and 11.4 when scored on texts half as long: which
# MLP is next hangs on thousandths of $S$, and one of them can cost several nats.
#
# Not measured here: that redundancy is stable along pre-training (it takes the checkpoints of a
# large model), and other benchmarks than one small task.
#
# ## Try it
#
# 1. **Position 0.** Score with `front=0`. By how much does $S$ fall in the layers above 11, and
#    does the order change?
# 2. **Other texts.** Score on sentences of your own. How many of the eight that would go stay the
#    same?
# 3. **What breaks first?** Let the model write on with 0, 4, 8 and half of its attentions gone.

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. One position of so many is a sink with cosine 1, so S falls by one part in the length; in short
# texts that matters, in an order it does not: all layers above share it.
with_sink, without = (importance(net, known[:1], parts=["attn"], front=f) for f in (0, 1))
ratio = (with_sink.importance / without.importance).isel(part=0)
print("S with position 0 over S without, by layer:", ratio.values.round(2))
both_ = set(drop_order(with_sink)[:many]) & set(drop_order(without)[:many])
print(f"same first {many}: {len(both_)}")

# %% jupyter={"source_hidden": true}
# 2. The list is noisy where many layers are equally idle; who is needed (0, 1, 24) stays.
mine = importance(
    net, ["The old man and the sea is a book. The cat went to the house of the king."],
    parts=["attn"],
)  # fmt: skip
print(f"same first {many}: {len(set(drop_order(mine)[:many]) & set(gone))}")

# %% jupyter={"source_hidden": true}
# 3. Facts go before grammar.
for k in sorted({0, some, many, half}):
    left = remove(net, orders["attn"][:k], check=False) if k else net
    said = lw.generate(left, "The capital of France is", 8)
    print(f"{k:2d} gone: {str(said.text.values[0])!r}")
