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
#     id: exact-sweeps
#     family: attribution
#     title: "How to use and interpret activation patching"
#     paper: "2404.15255"
#     cost: {seconds: 60, memory_mb: 1700}
#     model: smollm2-135m
# ---

# %% [markdown]
# # Exact sweeps: every activation patched, none of it estimated
#
# **The idea in one sentence:** "put this one activation of the clean run into the corrupt run" needs
# a run for every layer, token and head, but these thousands of runs are nearly all the same run, and
# what is the same need not be computed again.
#
# How to read such patches: Heimersheim & Nanda 2024,
# [arXiv:2404.15255](https://arxiv.org/abs/2404.15255). The circuit looked for here: Wang et al. 2022,
# [arXiv:2211.00593](https://arxiv.org/abs/2211.00593), in GPT-2 small.
#
# **Cost** with SmolLM2-135M: about a minute on two CPU cores, 1.7 GB of memory. Any decoder will do
# (`lwlab run exact-sweeps -p model=gpt2`); those without an adapter take a slower engine, which says
# so. The pinned verdicts are SmolLM2-135M's.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full takes 32 prompts
n: int = 8  # prompts, in pairs that corrupt each other
n_heads: int = 4  # of these, how many for the sweeps over heads, which have many cells
seed: int = 0

# %%
import time

import numpy as np
import torch
import xarray as xr
from IPython.display import display

import lwlab as lw
from lwlab.attribution import exact_sweeps
from lwlab.tracing.blocks import capture

lw.charts.enable()
if profile == "full":
    n, n_heads = max(n, 32), max(n_heads, 16)
net = lw.load(model)
task = lw.tasks.ioi(net, n=n, seed=seed)
task.to_frame().head(4)

# %% [markdown]
# Each prompt $x$ asks for the indirect object. Its corrupt twin $x'$ names the other person as the
# giver (S2), so the answer flips. Which activations carry that one word to the end of the prompt?
#
# ## The idea in one picture
#
# One cell of the sweep: the residual stream entering one layer, at one token, is given its clean
# value. What has to be computed again? Everything else is what the corrupt run has shown already.

# %%
one = task.subset([0])
words = list(net.tokens(list(one.corrupt)).strings[0])
T, L = len(words), net.n_layers
S2, END = int(one.positions["S2"][0]), T - 1
at = L // 2
grid = np.zeros((3, L, T))
grid[0] = 1  # one forward pass a cell
grid[1, at:] = 1  # a layer reads only what is below it
grid[2, at:, S2:] = 1  # a token of a causal model reads only what stands before it
panels = [f"{way}: {grid[i].mean():.0%}" for i, way in enumerate(exact_sweeps.WAYS)]
picture = lw.results.label(
    grid, ("way", "layer", "position"),
    {"way": panels, "layer": range(L), "position": range(T)}, name="computed again",
)  # fmt: skip
picture.lw.heatmap(
    facet="way", tokens=words, title="What one patch (middle layer, at S2) makes us compute again",
    subtitle="the share in each title is that of the whole forward pass",
)  # fmt: skip

# %% [markdown]
# ## The method
#
# With $m$ the metric (logit of the right name minus logit of the other, at the last token):
#
# $$S(s, l, p, u) = m\big(x' \text{ with } a'_{s,l,p,u} \leftarrow a_{s,l,p,u}\big) - m(x')$$
#
# for a site $s$ (a stream, what a sublayer writes, queries, keys ...), layer $l$, token $p$ and,
# where the site has them, head $u$. As everybody writes it, with a hook and a forward pass for each:


# %%
def patched(task, donors, layer: int, p: int) -> np.ndarray:
    """m of the corrupt prompts with the clean stream entering `layer` at token `p`: [prompt]."""

    def put(_block, args, kwargs):
        h = args[0] if args else kwargs["hidden_states"]
        h[:, p] = donors[layer][:, p]

    block = net.module.get_submodule(f"{net.anatomy.blocks}.{layer}")
    hook = block.register_forward_pre_hook(put, with_kwargs=True)
    with torch.no_grad(), lw.tracing.lock(net):
        logits = net.module(net.tokens(list(task.corrupt)).ids, use_cache=False).logits
    hook.remove()
    return task.metric(logits[:, -1]).numpy()


two = task.subset([0, 1])
donors = capture(net, list(two.clean)).streams
rng = np.random.default_rng(seed)
asked = [(int(rng.integers(L)), int(rng.integers(S2, T))) for _ in range(8)]
slow = np.array([patched(two, donors, *cell) for cell in asked])
slow -= exact_sweeps.gap(net, two).corrupt.values

# %% [markdown]
# Now without doing anything twice. The first saving fits into a cell: **the batch grows on its way
# up.** Copies of the corrupt stream, one for each token, get their clean value and join at their
# layer; all that joined below go through the layer's matrices together.

# %%
bad, good = capture(net, one.corrupt[0]), capture(net, one.clean[0])
live = list(range(S2, T))  # before S2 the two prompts are the same, and so are their runs
births = {}
for layer in range(L):
    copies = bad.streams[layer].repeat(len(live), 1, 1)
    copies[range(len(live)), live] = good.streams[layer][0, live]
    births[layer] = copies
with torch.no_grad():
    *_, (_, last, _) = bad.run(births)
    logits = net.unembed(last[:, -1])
by_hand = task.subset([0] * len(logits)).metric(logits).numpy().reshape(L, -1)
by_hand -= exact_sweeps.gap(net, one).corrupt.values

# %% [markdown]
# The library adds the second saving (of a copy only the tokens from $p$ on are computed; keys and
# values before $p$ come from the unedited run), packs the rows of all copies into one matrix, and
# unembeds the two names only. It says beforehand what it is going to do:

# %%
exact_sweeps.sweep_plan(net, one, skip=False)

# %%
whole = lw.sweep(net, one, skip=False)
pairs = lw.sweep(net, two)  # without what provably does nothing: see below
mine = whole.resid_pre.isel(position=live, prompt=0).values
theirs = np.array([pairs.resid_pre.sel(layer=i).isel(position=p).values for i, p in asked])
off = {"hooks": float(abs(slow - theirs).max()), "by hand": float(abs(by_hand - mine).max())}
largest = float(abs(whole.resid_pre).max())
print(f"largest effect {largest:.2f}; largest difference to the library: {off}")
print(whole.lw.describe())

# %% [markdown]
# And it does so for every site: some cells of every kind, each run again as one whole forward pass.

# %%
KINDS = ["resid_pre", "resid_mid", "attn_out", "mlp_out", "head_out", "q", "k", "v", "neurons"]
kinds = [s for s in KINDS if s in net.sites()]
mixed = lw.sweep(net, one, kinds, layers=[L // 2, L - 1], positions=["S2", "END"])
again = exact_sweeps.verify(net, one, mixed, n=len(kinds), seed=seed)
again.to_dataframe().groupby("site").agg(
    cells=("difference", "size"), largest=("sweep", lambda x: abs(x).max()),
    difference=("difference", "max"),
)  # fmt: skip

# %% [markdown]
# ### What it saves
#
# In this process, now: CPU time of a forward pass with a hook (four of them), times the number of
# cells, over that of the sweep of these cells with all it needs; three rounds, turn about.

# %%
layers = sorted({round(i) for i in np.linspace(0, L - 1, 6)})  # of even depth on average
cells = [(i, p) for i in layers for p in range(T)]
some = [cells[i] for i in rng.choice(len(cells), 4, replace=False)]
ratios = []
for _ in range(3):
    start = time.process_time()
    for cell in some:
        patched(one, good.streams, *cell)
    middle = time.process_time()
    lw.sweep(net, one, layers=layers, skip=False)
    sweep_took = time.process_time() - middle
    ratios.append((middle - start) / len(some) * len(cells) / sweep_took)
print(f"one forward a cell takes {np.median(ratios):.1f} times as long ", end="")
print(f"({min(ratios):.1f} to {max(ratios):.1f}); nothing skipped")

# %% [markdown]
# The arithmetic behind it, for the whole grid of $L$ layers and $T$ tokens, is at most a factor of
# four: half of the layers times half of the tokens. What a small prompt gains beyond comes from
# matrices large enough to be multiplied fast. What is **provably nothing** is not run at all: cells
# whose clean and corrupt values are bit for bit equal, which here are all cells before S2.

# %%
work = exact_sweeps.arithmetic(net, [4, 8, 14, 32, 64, 128, 256])
share = (work / work.sel(way=exact_sweeps.WAYS[0])).rename("share of the operations")
share.attrs = {"long_name": "share of one forward a cell", "units": ""}
share.lw.profile(x="length", series="way", title="Operations of a sweep over the stream")

# %% [markdown]
# ## Results
#
# ### Where the answer is, layer by layer
#
# The stream, and what attention and MLP write into it, all layers and tokens, as shares of the whole
# effect $m(x) - m(x')$: 1 means that this one vector brings the right answer back. Means over
# prompts; the band of the lines is a 95 % interval over pairs of prompts.

# %%
half = task.subset(slice(0, max(2, n // 2)))
shares = exact_sweeps.restored(net, task, lw.sweep(net, task))
writes = exact_sweeps.restored(net, half, lw.sweep(net, half, ["attn_out", "mlp_out"]))
names = [f"{w}·{ {S2: 'S2', END: 'END'}[i] }" if i in (S2, END) else w for i, w in enumerate(words)]
begin = max(S2 - 1, 0)
for found in (shares.resid_pre, writes.attn_out, writes.mlp_out):
    mean = found.mean("prompt", keep_attrs=True).isel(position=slice(begin, None))
    title = f"{found.name}: what brings the answer back"
    display(mean.lw.heatmap(tokens=names[begin:], title=title, subtitle=f"{len(found)} prompts"))

# %%
interval = shares.lw.interval()
lines = interval.resid_pre.isel(position=[S2, END]).assign_coords(position=["at S2", "at END"])
lines = lines.rename(position="token")
band = {k: lines.sel(estimate=k, drop=True) for k in ("mean", "low", "high")}
band["mean"].attrs["long_name"] = "share of the effect"
band["mean"].lw.profile(
    x="layer", series="token", low=band["low"], high=band["high"],
    title="The stream hands the answer over",
)  # fmt: skip

# %%
holds = shares.resid_pre.values[..., END] > shares.resid_pre.values[..., S2]  # prompt, layer
takes_over = np.where(holds.any(1), holds.argmax(1), L)
handover = min(int(np.median(takes_over)), L - 1)
print(f"the last token's stream holds more than S2's from layer {takes_over.tolist()} on, of {L}")

# %% [markdown]
# ### Which heads carry it
#
# One cell for each head: what heads put out at the last token, the queries they ask with there, and
# the keys and values they find. Keys and values may be shared by groups of heads (here
# three), so they have fewer cells.

# %%
heads_task = task.subset(slice(0, n_heads))
at_end = lw.sweep(net, heads_task, ["head_out", "q"], positions=["END"])
upper = range(L // 3, L)  # below, nothing at S2 has been read yet: see the stream
found_by = lw.sweep(net, heads_task, ["k", "v"], layers=upper, positions=["S2", "END"])
at_end, found_by = (exact_sweeps.restored(net, heads_task, x) for x in (at_end, found_by))
end = at_end.sel(position="END", drop=True)
out = end.head_out.mean("prompt", keep_attrs=True)
out.lw.heatmap(
    x="head", y="layer", title="Heads' outputs at the last token: share restored",
    subtitle=f"{len(heads_task)} prompts",
)  # fmt: skip

# %%
order = np.argsort(-abs(out.values).ravel())
strongest = [tuple(int(k) for k in np.unravel_index(i, out.shape)) for i in order[:6]]
for layer, head in strongest:
    values = end.head_out.sel(layer=layer, head=head).values
    print(f"head {layer}.{head}: {values.mean():+.2f}  (by prompt: {values.round(2).tolist()})")

# %%
s2 = found_by.sel(position="S2", drop=True)
reads = {
    "queries at END": abs(end.q.sel(layer=list(upper))).max("head"),
    "keys at S2": abs(s2.k).max("kv_head"),
    "values at S2": abs(s2.v).max("kv_head"),
}
reads = xr.concat(list(reads.values()), "what", coords="minimal", compat="override")
reads = reads.assign_coords(what=["queries at END", "keys at S2", "values at S2"]).mean("prompt")
reads.attrs = {"long_name": "share of the effect, strongest head", "units": ""}
reads.lw.profile(x="layer", series="what", title="What heads read the changed name with")

# %% [markdown]
# The story in SmolLM2-135M, from these charts: the changed name sits at S2 through two thirds of the
# model. Heads of layers 19, 20 and 23 find it there (its **values** matter) and write it to the last
# token. In layer 24, **queries** at the last token and keys at S2 matter, and the net effect of
# that layer is against the answer; in the last layer two heads all but cancel. A heat map of
# attention layers shows none of the cancelling.
#
# ### Two directions, two questions
#
# Patching clean into corrupt asks what is *enough* to bring the answer back; corrupt into clean asks
# what the answer *needs*. Prompts that corrupt each other make them one question; with three fresh
# names in place of the old ones (`corruption="abc"`) they are two.

# %%
abc = lw.tasks.ioi(net, n=2, seed=seed, corruption="abc")
both = {}
for into in ("corrupt", "clean"):
    found = lw.sweep(net, abc, "attn_out", into=into, positions=["S2", "END"])
    both[into] = exact_sweeps.restored(net, abc, found).attn_out
enough, needed = both["corrupt"].mean("prompt"), -both["clean"].mean("prompt")
enough.attrs["long_name"], needed.attrs["long_name"] = "enough: brought back", "needed: taken away"
lw.charts.scatter(
    enough, needed, title="Attention layers: what is enough against what is needed", size=220
)

# %% [markdown]
# ## Touch
#
# The map of one prompt. Click a cell: the model runs once, in full, with that one vector exchanged,
# and says what it would answer now.

# %%
before = exact_sweeps.gap(net, one).corrupt.item()
widget = lw.widgets.HeatMap(
    shares.resid_pre.sel(prompt=0), x="position", y="layer", tokens=names,
    title="Click a cell: one exact patch", subtitle=one.corrupt[0],
)  # fmt: skip


def patch_again(pick):
    layer, p = int(pick["layer"]), int(pick["position"])
    value = good.streams[layer][:, [p]]
    run = lw.patch(net, list(one.corrupt), {f"resid_pre.{layer}": value}, positions=p)
    logits = torch.tensor(run.logits.values)
    share = (one.metric(logits) - before).item() / shares.attrs["whole_effect"]
    said = net.tokenizer.decode([int(logits[0].argmax())])
    return (
        f"Layer {layer}, {names[p].strip()!r}: {share:+.3f} of the effect; the model now says "
        f"{said.strip()!r} (clean: {one.answers[0].strip()!r}, corrupt: {one.foils[0].strip()!r})."
    )


widget.on_pick(patch_again)
widget.pick(handover, END)
widget

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
same = {"seed": seed, "model": net}
lw.claim(
    "exact-sweeps.equals-hooks", kind="exact", measured=off["hooks"], expect="<= 1e-4", n=len(asked),
    statement="the sweep gives what a hook and a forward pass for each cell give, in logits", **same,
)  # fmt: skip

# %%
lw.claim(
    "exact-sweeps.shown-is-library", kind="exact", measured=off["by hand"], expect="<= 1e-4",
    n=by_hand.size, statement="the growing batch written out above gives the library's values",
    **same,
)  # fmt: skip

# %%
lw.claim(
    "exact-sweeps.every-site", kind="exact", measured=float(again.difference.max()),
    expect="<= 1e-4", n=again.sizes["cell"], **same,
    statement=f"so does a whole forward pass for each of some cells of {len(kinds)} sites",
)  # fmt: skip

# %%
packed = whole.attrs["engine"] == "packed"
rows = sum((L - i) * (T - p if packed else T) for i in range(L) for p in range(T))
lw.claim(
    "exact-sweeps.rows-are-the-formula", kind="exact", measured=whole.attrs["rows"] - rows,
    expect="== 0", n=whole.resid_pre.size, **same, unit="rows",
    statement="rows computed, less the sum over cells of the layers and tokens above and after",
)  # fmt: skip

# %%
plan = exact_sweeps.sweep_plan(net, one, skip=False)
lw.claim(
    "exact-sweeps.does-what-was-planned", kind="exact", measured=whole.attrs["flops"] - plan.flops,
    expect="== 0", n=whole.resid_pre.size, unit="operations", **same,
    statement="operations counted while running, less those the plan announced",
)  # fmt: skip

# %%
idle = pairs.resid_pre.sel(prompt=[0]) == 0
lw.claim(
    "exact-sweeps.no-ops-are-zero", kind="exact", expect="<= 1e-4", n=int(idle.sum()), **same,
    measured=float(abs(whole.resid_pre).where(idle).max()),
    statement="cells that are not run because they provably change nothing change nothing when run",
)  # fmt: skip

# %%
start = float(shares.resid_pre.sel(layer=0).isel(position=S2).mean())
lw.claim(
    "exact-sweeps.all-enters-at-s2", kind="exact", measured=start, expect="1 +- 1e-3", n=len(task),
    statement="the first stream at the only changed token carries the whole effect", **same,
)  # fmt: skip

# %%
mirror = lw.sweep(net, two, into="clean", positions=["S2", "END"]).resid_pre.values
straight = pairs.resid_pre.isel(position=[S2, END]).values
lw.claim(
    "exact-sweeps.twins-mirror", kind="exact", expect="<= 1e-4", n=2, **same,
    measured=float(abs(mirror + straight[::-1]).max()),
    statement="where two prompts corrupt each other, patching one way is minus patching the other "
    "prompt the other way",
)  # fmt: skip

# %% [markdown]
# ### What the papers say
#
# Measured on a model they did not look at; intervals are 95 %, from resampling pairs of prompts.

# %%
pins = {"smollm2-135m": "reproduced"}
elsewhere = abs(shares.resid_pre.drop_isel(position=[S2, END])).max(("layer", "position"))
best = lw.stats.bootstrap(elsewhere.values, groups=task.groups.tolist(), seed=seed)
lw.claim(
    "exact-sweeps.nowhere-else", kind="paper", measured=best.mean, interval=(best.low, best.high),
    expect="< 0.2", n=len(task), pinned=pins, paper="2211.00593, section 3", **same,
    statement="information about S2 goes to the last token and to no other: the largest share that "
    "a stream at any other token restores, mean over prompts",
)  # fmt: skip

# %%
depth = lw.stats.bootstrap(takes_over / L, groups=task.groups.tolist(), seed=seed)
lw.claim(
    "exact-sweeps.handed-over-late", kind="paper", measured=depth.mean,
    interval=(depth.low, depth.high), expect="> 0.5", n=len(task), pinned=pins, **same,
    paper="2211.00593: S-inhibition heads in layers 7 and 8 of 12",
    statement="the layer from which the last token holds more than S2, as a share of the depth",
)  # fmt: skip

# %%
sizes = np.sort(abs(end.head_out.values).reshape(len(heads_task), -1), 1)[:, ::-1]
top = max(1, sizes.shape[1] // 20)
of_heads = {"groups": heads_task.groups.tolist(), "seed": seed}
held = lw.stats.bootstrap(sizes[:, :top].sum(1) / sizes.sum(1), **of_heads)
lw.claim(
    "exact-sweeps.few-heads", kind="paper", measured=held.mean, interval=(held.low, held.high),
    expect="> 0.5", n=len(heads_task), pinned=pins, paper="2211.00593: 26 of 144 heads", **same,
    statement=f"share of the heads' effects at the last token held by {top} of {sizes.shape[1]} "
    "heads, mean over prompts",
)  # fmt: skip

# %%
layer, head = (int(i) for i in np.unravel_index(out.values.argmin(), out.shape))
against = lw.stats.bootstrap(end.head_out.sel(layer=layer, head=head).values, **of_heads)
lw.claim(
    "exact-sweeps.negative-heads", kind="paper", measured=against.mean, expect="< -0.05",
    interval=(against.low, against.high), n=len(heads_task), pinned=pins, **same,
    paper="2211.00593: negative name movers",
    statement="the head whose clean output at the last token speaks most against the right answer",
)  # fmt: skip

# %%
late = slice(max(min(handover, L - 2), L // 3), None)
query = abs(end.q.sel(layer=late).mean("prompt")).max().item()
rest = max(abs(found_by[s].sel(layer=late).mean("prompt")).max().item() for s in "kv")
lw.claim(
    "exact-sweeps.movers-are-steered-by-queries", kind="paper", measured=query - rest, **same,
    expect="> 0", n=len(heads_task), pinned={"smollm2-135m": "not reproduced"},
    paper="2211.00593: S-inhibition acts on queries",
    statement="after the handover: the largest share of a query at the last token, less that of any "
    "key or value",
    note="queries matter here too, in the layer after; but layers of this model that move the name "
    "and layers that answer to it overlap, and the values that move it weigh more",
)  # fmt: skip

# %%
r = lw.stats.pearson(enough.values, needed.values)
lw.claim(
    "exact-sweeps.directions-differ", kind="paper", measured=r, expect="< 0.9", n=len(abc),
    pinned=pins, paper="2404.15255: noising and denoising are not symmetric", **same,
    statement="Pearson's r between what attention layers bring back and what they take away, fresh "
    "names as corruption",
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **Another question.** `lw.tasks.pronouns(net)`: at which layer does the last token take over?
# 2. **Ablate instead.** What do the strongest heads above do when their output is set to zero in the
#    clean run (`edit="zero"`)? Is what restores the answer also what the answer needs?
# 3. **An edit of your own.** Halve the stream at the last token, layer by layer
#    (`edit=lambda cells: cells / 2`). Every reader of the stream normalises it: should that not be
#    nothing?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. The same two lines for another task.
question = lw.tasks.pronouns(net, n=2, seed=seed)
found = exact_sweeps.restored(net, question, lw.sweep(net, question, layers=range(0, L, 3)))
last = found.resid_pre.mean("prompt").isel(position=-1)
print(question.clean[0], "->", question.answers[0], "not", question.foils[0])
print({int(i): round(float(v), 2) for i, v in zip(last.layer.values, last.values)})

# %% jupyter={"source_hidden": true}
# 2. What brings the answer back is missed when it is gone, by less: zero is not the other name.
for layer, head in strongest[:3]:
    gone = lw.sweep(net, heads_task, "head_out", layers=layer, heads=head, positions=["END"],
                    edit="zero").head_out.mean().item()  # fmt: skip
    back = out.sel(layer=layer, head=head).item() * at_end.attrs["whole_effect"]
    print(f"head {layer}.{head}: patched {back:+.2f}, zeroed {gone:+.2f} in the metric")

# %% jupyter={"source_hidden": true}
# 3. The next reader sees no difference, but what is written from there on counts double.
halved = lw.sweep(net, heads_task, positions=["END"], layers=range(0, L, 5), edit=lambda c: c / 2)
moved = halved.resid_pre.mean("prompt").squeeze("position")
print({int(i): round(float(v), 2) for i, v in zip(moved.layer.values, moved.values)})
print("of", round(float(halved.base_metric.mean()), 2))
