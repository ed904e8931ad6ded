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
#     id: af1
#     family: attribution
#     title: "All for One: LLMs Solve Mental Math at the Last Token With Information Transferred From Other Tokens"
#     paper: "2509.09650"
#     cost: {seconds: 50, memory_mb: 1550}
#     model: smollm2-135m
# ---

# %% [markdown]
# # All for One: where does a model do sums?
#
# **The idea in one sentence:** take from a model all that a sum does not need (early blocks may not
# mix tokens, late blocks may only work at the last token, two blocks in between carry the operands
# over) and see whether it still adds.
#
# Mamidanna, Rai, Yao & Zhou 2025, [arXiv:2509.09650](https://arxiv.org/abs/2509.09650)
#
# **Cost** with SmolLM2-135M: about 50 seconds on one CPU core, 1.5 GB of memory. Decoders of the
# GPT-2, Llama, Qwen, Gemma, Pythia, OPT, Phi and OLMo kind will do, if they can add:
# `lwlab run af1 -p model=toys/arithmetic`, or a Hugging Face id. Pinned verdicts are those of
# SmolLM2-135M; the second model below is `toys/arithmetic`, trained by this library.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # full: every block for every curve
first: int = 5  # operands a are 1 .. first
second: int = 4  # operands b are 1 .. second
prefix: str = "1 + 2 = 3, 4 + 5 = 9, 3 + 3 = 6, "  # solved sums before each prompt
template: str = "{a} + {b} = "
threshold: float = 0.9  # accuracy that a subgraph must keep
seed: int = 0

# %%
import numpy as np
import xarray as xr

import lwlab as lw
from lwlab.attribution import af1
from lwlab.attribution.af1_panel import BoundaryPanel, scheme

lw.charts.enable()
net = lw.load(model)
n = net.n_layers
digits = {"operands": [range(5)] * 3, "prefix": "", "template": "{a} + {b} + {c} ="}
sums = {"operands": [range(1, first + 1), range(1, second + 1)]}
sums |= {"prefix": prefix, "template": template}
own = digits if model.startswith("toys/arithmetic") else sums
task = lw.tasks.arithmetic_grid(net, **own)
rows = af1.prepare(net, task)  # one run of every prompt, shared by all that follows
chance = af1.chance(rows)
print(f"{int(rows.solved.sum())} of {len(task)} answered right; best constant: {chance:.0%}")
task.to_frame()[["clean", "answers"]].iloc[[0, 7, -1]]

# %% [markdown]
# Every combination of the operands is asked once. The model's first choice among all its tokens
# must be the answer; prompts that it cannot do are left out of every accuracy below. (SmolLM2 has
# no start token: solved sums stand in for it, the same ones before every prompt, and teach the
# form. They say nothing of the operands.)
#
# ## The idea in one picture
#
# What each token behind the common start does in each block, if the claim is right (the boundaries
# are a guess here; they are looked for below):

# %%
guess = 2 * n // 3
scheme(rows, guess, guess + 2).lw.heatmap(
    x="position", y="layer", title="One token does it all: -1 wait, 0 look at yourself, 1 look at all",
    subtitle="",
)  # fmt: skip

# %% [markdown]
# **Waiting**: no token knows of another. **Transfer**: the last token looks at all others, and they
# look at nobody. **Alone**: the last token finishes by itself.
#
# ## The method
#
# *Context-aware mean ablation* (CAMA) takes from the stream $h^{(L)}_t$ entering block $L$ all that
# token $t$ has heard from other tokens: it becomes what it is on average, given that token,
#
# $$\tilde h^{(L)}_t(x) = \mathbb E_{x' \sim P(x' \mid x'_t = x_t)}\big[h^{(L)}_t(x')\big].$$
#
# *Attention-based peeking* (ABP) masks attention from there on. In the transfer blocks
# $L, \dots, U-1$ the last token sees all; every other one sees itself and the common start; from
# $U$ on so does the last. Accuracy is counted among the problems that the full model solves.
# Written out with the library's tracers:

# %%
clean, ids = list(task.clean), net.tokens(list(task.clean)).ids.numpy()
T, s = ids.shape[1], rows.shared  # tokens of a prompt, and of the common start
L, U = guess, guess + 2
h = lw.cache(net, clean, "resid_pre", layers=L).resid_pre.values[:, 0]
mean = [[h[ids[:, t] == row[t], t].mean(0) for t in range(T)] for row in ids]

alone = np.tril(np.ones((T, T), np.float32))  # [query, key]
alone[s:, s:] = np.eye(T - s)
peek = alone.copy()
peek[-1] = 1


def only(mask: np.ndarray):
    def restrict(p):  # attention probabilities: what is left adds up to 1 again
        p = p * p.new_tensor(mask)
        return p / p.sum(-1, keepdim=True)

    return restrict


edits = {f"attn_pattern.{i}": only(peek if i < U else alone) for i in range(L, n)}
edits[f"resid_pre.{L}"] = np.array(mean)
z = lw.patch(net, clean, edits, compare=False).logits.values
log_p = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
shown = log_p[np.arange(len(task)), task.answer_ids.numpy()]

# %% [markdown]
# The library runs only the tokens that differ, and only the blocks that change:

# %%
library = af1.subgraph(net, rows, wait=L, until=U)
mismatch = float(np.abs(shown[library.prompt] - library.log_prob.values).max())
print(f"largest difference of an answer's log-probability: {mismatch:.1e} nats")
library

# %% [markdown]
# ## Results
#
# ### How long can it wait?
#
# What enters a block is replaced, and the model runs on in full. CAMA against simpler things to put
# there: the mean over all prompts, zero, the stream before the first block (skipping the blocks
# below), and a run in which no token ever saw another.

# %%
coarse = list(range(n) if profile == "full" else range(0, n, max(1, n // 6)))
curve = af1.waiting(net, rows, "cama").correct
others = af1.waiting(net, rows, ["mean", "zero", "skip", "alone"], coarse).correct
both = xr.concat([curve, others], "technique", join="outer").mean("prompt")
named = {"cama": "CAMA", "mean": "mean of all", "zero": "zero", "skip": "blocks skipped"}
named["alone"] = "no context"
lines = both.assign_coords(technique=[named[t] for t in both.technique.values])
lines.attrs["long_name"] = "accuracy"
lines.lw.profile(
    x="wait", series="technique", title="Accuracy when knowledge of other tokens begins at a block",
    subtitle=f"{net.name}, {curve.sizes['prompt']} sums; dots alone: every {coarse[1]} blocks",
)  # fmt: skip

# %% [markdown]
# ### How few blocks carry the operands over?
#
# Now the whole subgraph, for every wait and number of transfer blocks:

# %%
waits = range(n) if profile == "full" else sorted({*coarse, *range(n // 2, n)})
sizes = None if profile == "full" else [k for k in (0, 1, 2, 3, 4, 6) if k <= n]
grid = af1.windows(net, rows, waits, sizes)
accuracy = grid.correct.mean("prompt", skipna=False)
accuracy.attrs["long_name"] = "accuracy"
found = af1.find(grid, threshold)
if found is None:
    w, k = (int(accuracy[d][i]) for d, i in accuracy.fillna(-1).argmax(...).items())
    found = af1.Subgraph(w, w + k, float(accuracy.sel(wait=w, transfer=k)))
print(f"wait before block {found.wait}, transfer before {found.until}: {found.accuracy:.2f}")
accuracy.lw.heatmap(
    x="transfer", y="wait", title="Accuracy of the subgraph", domain=(0, 1),
    subtitle="blocks of transfer after the wait; empty: beyond the last block",
)  # fmt: skip

# %% [markdown]
# ### Are these blocks needed?
#
# Sufficient is not necessary. In the otherwise full model, the last token is blinded: it sees only
# itself and the common start, in one block at a time, and in the whole window.

# %%
window = list(range(found.wait, found.until))
cut = af1.knockout(net, rows, [*range(n), window or [0]])
one = cut.correct[:n].mean("prompt").rename(cut="layer").assign_coords(layer=range(n))
one.attrs["long_name"] = "accuracy"
without = cut.correct[n]
print(f"without the window {window}: {float(without.mean()):.2f}")
one.lw.profile(
    x="layer", title="The last token is blind in one block",
    subtitle=f"window: blocks {window}",
)  # fmt: skip

# %% [markdown]
# **Placebo.** Let the last token look in as many blocks as the window has, and in no other: in the
# window, or in blocks drawn at random from outside it (20 draws). Once as it is from the first
# block on, once from half of the depth, where it enters as its average over all prompts.

# %%
rng = np.random.default_rng(seed)
looks = {}
for start in (0, min(n // 2, found.wait)):
    outside = [i for i in range(start, n) if i not in window]
    k = min(len(window), len(outside))
    draws = [rng.choice(outside, k, replace=False).tolist() for _ in range(20)]
    blind = [sorted(set(range(start, n)) - set(d)) for d in [window, *draws]]
    looks[start] = af1.knockout(net, rows, blind, wait=start).correct.mean("prompt").values
    of = looks[start]
    print(
        f"from block {start}: looking in the window only {of[0]:.2f}, in {k} other blocks ", end=""
    )
    print(f"{of[1:].mean():.2f} (best {of[1:].max():.2f})")
given = af1.knockout(net, rows, [range(found.until, n)], wait=found.wait).correct
print(f"averaged up to the window, blind after it: {float(given.mean()):.2f}")

# %% [markdown]
# A last token that was blind from the first block on has not even heard that it stands behind a
# sum: seeing the operands in two blocks does not help it. Its *average* state has: this is what
# "context-aware" is for, and why the run without context above fails so early.
#
# ### How many heads?
#
# Heads of the transfer blocks go one by one, the least needed first (a head that goes leaves its
# last token alone):

# %%
heads = af1.prune(net, rows, found.wait, found.until)
left = heads.correct.mean("prompt").assign_coords(step=range(heads.sizes["step"]))
left.attrs["long_name"] = "accuracy"
can_go = int(np.argmax(left.values < 0.95)) - 1 if (left < 0.95).any() else left.size - 1
print(f"{can_go} of {left.size - 1} heads can go at an accuracy of 0.95 or more; what is left:")
kept = zip(
    heads["layer"].values[can_go + 1 :].tolist(), heads["head"].values[can_go + 1 :].tolist()
)
print(", ".join(f"{i}.{j}" for i, j in sorted(kept)))
left.rename(step="heads gone").lw.profile(
    x="heads gone", title="Accuracy as heads of the transfer blocks go", subtitle=""
)

# %% [markdown]
# ### A second model, of which the truth is known
#
# `toys/arithmetic` is a GPT-2 of six blocks, trained here to add three digits, whose attention is
# zero in blocks 0, 1, 4 and 5. So it must wait for two blocks and cannot transfer after block 3.
# Whether the last token does all the work in between, or others add up parts of the sum for it, was
# left to training. (A free toy of this size does not wait at all: it transfers from block 0 on.)

# %%
toy = lw.load("toys/arithmetic")
toy_rows = af1.prepare(toy, lw.tasks.arithmetic_grid(toy, **digits))
toy_grid = af1.windows(toy, toy_rows, transfers=range(5))
toy_accuracy = toy_grid.correct.mean("prompt", skipna=False)
toy_accuracy.attrs["long_name"] = "accuracy"
toy_found = af1.find(toy_grid, threshold)
print(toy_found)
toy_accuracy.lw.heatmap(
    x="transfer", y="wait", title="toys/arithmetic: accuracy of the subgraph", domain=(0, 1),
    subtitle=f"{toy_grid.sizes['prompt']} sums of three digits",
)  # fmt: skip

# %% [markdown]
# ## Touch
#
# Move the two boundaries: the subgraph runs again on every sum. Pull the wait one block too far;
# leave the last token alone one block too early. What does the model say instead?

# %%
panel = BoundaryPanel(net, rows, found.wait, found.until, prompt=int(grid.prompt[-1]))
panel

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
same = {"n": grid.sizes["prompt"], "seed": seed, "model": net}
gap = float((af1.expected(rows, 0) - rows.base[0]).norm() / rows.base[0].norm())
lw.claim(
    "af1.nothing-to-average-at-the-start", kind="exact", measured=gap, expect="< 1e-5", **same,
    statement="before the first block CAMA changes nothing: a token's embedding depends on it alone",
)  # fmt: skip

# %%
single = af1.prepare(net, task.subset([int(grid.prompt[-1])]))
gap = max(float((af1.expected(single, i) - single.base[i]).abs().max()) for i in range(n + 1))
lw.claim(
    "af1.one-prompt-is-itself", kind="exact", measured=gap, expect="== 0", **{**same, "n": 1},
    statement="with one prompt to average over, CAMA changes nothing at any block",
)  # fmt: skip

# %%
moved = max(float(((rows.mask(i, "peek") != rows.mask(i, "full"))[-1]).sum()) for i in range(n))
lw.claim(
    "af1.peeking-is-for-the-others", kind="exact", measured=moved, expect="== 0", **same,
    statement="in a transfer block the last token's own row of the causal mask is unchanged",
)  # fmt: skip

# %%
lw.claim(
    "af1.shown-is-library", kind="exact", measured=mismatch, expect="< 1e-3", unit="nats", **same,
    statement="the algorithm written out above gives the library's log-probabilities",
)  # fmt: skip

# %%
constant = both.sel(technique="mean").dropna("wait")[1:]
lw.claim(
    "af1.mean-says-one-thing", kind="exact", measured=float(constant.max()), **same,
    expect=f"<= {chance + 1e-6}",
    statement="with the mean of all prompts from any block on, all get one answer: no better than "
    "the best constant",
)  # fmt: skip

# %%
gap = max(float((af1.expected(toy_rows, i) - toy_rows.base[i]).abs().max()) for i in range(3))
lw.claim(
    "af1.toy-waits-by-construction", kind="exact", measured=gap, expect="< 1e-4",
    statement="before block 2 tokens of toys/arithmetic know nothing of each other: CAMA changes "
    "nothing", n=toy_grid.sizes["prompt"], seed=seed, model=toy,
)  # fmt: skip


# %% [markdown]
# ### What the paper says
#
# The abstract: computation "very late" and "only at the last token", other tokens' information
# received "in few specific middle layers"; this subgraph sufficient and necessary; CAMA and ABP
# better than their alternatives. (For Llama-3-8B: 14 of 32 blocks waited for, two of transfer, most
# of their heads prunable at about 95 %; these numbers are taken from summaries of the paper.)
# Intervals are Wilson's, for 20 sums.

# %%
from scipy.stats import binomtest


def paper(id, values, expect, statement, pin, **more):
    """Claim a number, or the mean of right (1) and wrong (0) answers with Wilson's interval."""
    values = np.atleast_1d(np.asarray(values, float))
    if values.size > 1:  # resampling would give 20 of 20 no interval at all
        ends = binomtest(int(values.sum()), values.size).proportion_ci(method="wilson")
        more["interval"] = (ends.low, ends.high)
    more = {"pinned": {"smollm2-135m": pin}, **same, **more}
    lw.claim(
        f"af1.{id}",
        kind="paper",
        measured=values.mean(),
        expect=expect,
        statement=statement,
        **more,
    )


half = curve.sel(technique="cama", wait=n // 2)
paper(
    "waits-for-half", half, ">= 0.8", pin="reproduced", paper="abstract",
    statement=f"accuracy with no knowledge of other tokens before block {n // 2} of {n}",
)  # fmt: skip


# %%
def harmless(technique: str) -> int:
    """The longest wait up to which accuracy stays at the threshold, on the coarse blocks."""
    kept = (both.sel(technique=technique, wait=coarse) >= threshold).values
    good = len(coarse) if kept.all() else int(np.argmin(kept))
    return coarse[good - 1] if good else -1


longest = {t: harmless(t) for t in named}
print(longest)
paper(
    "cama-waits-longest", longest["cama"] - max(v for t, v in longest.items() if t != "cama"),
    "> 0", pin="reproduced", paper="abstract",
    statement="blocks that CAMA can wait for longer than the best simpler replacement",
)  # fmt: skip

# %%
inside = grid.correct.sel(wait=[w for w in grid.wait.values if w >= n // 2])
inside = inside.sel(transfer=slice(0, 4))
best = inside.isel(dict(inside.mean("prompt").fillna(-1).argmax(...)))
paper(
    "subgraph-suffices", best, ">= 0.9", pin="reproduced", paper="abstract",
    statement="accuracy of the best subgraph that waits for half of the blocks or more and "
    "transfers in four or fewer",
)  # fmt: skip

# %%
paper(
    "transfer-in-few-blocks", found.transfer, "<= 4", pin="reproduced", paper="abstract",
    statement="transfer blocks that the longest wait needs (Llama-3-8B: 2)",
)  # fmt: skip

# %%
early = [w for w in grid.wait.values if w <= found.wait - 6]
if early and found.transfer in grid.transfer.values:
    before = grid.correct.sel(wait=early, transfer=found.transfer)
    paper(
        "not-any-window", before.isel(wait=before.mean("prompt").values.argmax()), "<= 0.4",
        statement="accuracy of the best window of the same size six blocks earlier or more",
        pin="reproduced", paper="abstract",
    )  # fmt: skip

# %%
paper(
    "window-is-needed", without, f"<= {chance + 0.1:.4g}", pin="reproduced", paper="abstract",
    statement="accuracy of the full model whose last token is blind in the window; at most chance "
    "and a tenth",
)  # fmt: skip

# %%
paper(
    "largest-drop-inside", float(one.values.argmin() in window), "== 1", pin="reproduced",
    statement="of all single blocks, the one whose loss hurts most lies in the window",
    paper="abstract",
)  # fmt: skip

# %%
paper(
    "heads-can-go", can_go / (left.size - 1), ">= 0.5", pin="reproduced",
    statement="share of the transfer blocks' heads that can go at an accuracy of 0.95 or more",
)  # fmt: skip

# %% [markdown]
# ### What the paper does not ask

# %%
lead = {start: of[0] - of[1:].mean() for start, of in looks.items()}
paper(
    "window-beats-other-blocks", lead[0], ">= 0.3", pin="not reproduced",
    statement="placebo: accuracy when the last token looks in the window only, less that when it "
    "looks in as many other blocks only (mean of 20 draws)",
    note="blind before the window it has not heard the signs either; see the next claim",
)  # fmt: skip

# %%
paper(
    "averaged-window-beats-other-blocks", lead[max(lead)], ">= 0.3", pin="reproduced",
    statement="the same from half of the depth on, where the last token enters as its average",
)  # fmt: skip

# %%
strict = af1.prepare(net, task, "first")
paper(
    "first-token-is-rest-enough", af1.subgraph(net, strict, found.wait, found.until).correct,
    ">= 0.8", pin="reproduced",
    statement="the same subgraph when a restricted token may rest on the first token only",
)  # fmt: skip

# %%
right = toy_found is not None and (toy_found.wait, toy_found.until) == (2, 4)
paper(
    "known-subgraph-is-found", float(right), "== 1", model=toy,
    pinned={"toys/arithmetic": "reproduced"}, pin="",
    statement="in toys/arithmetic the search finds the two blocks in which its attention can write",
    n=toy_grid.sizes["prompt"],
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **Products.** Does the model multiply in the same blocks? Make a grid with `op="*"`, a prefix of
#    solved products and `template="{a} * {b} = "`, and run the subgraph found above on it.
# 2. **One block too far.** Wait one block longer than found. Which sums break first, and what do
#    they have in common?
# 3. **Who adds?** In `toys/arithmetic`, cut the last token off in block 2 only, then in block 3
#    only. What do the two blocks do?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. Accuracy counts only the products that the model can do.
if own is sums:
    products = {"operands": [range(1, 4)] * 2, "op": "*", "template": "{a} * {b} = "}
    products = lw.tasks.arithmetic_grid(net, prefix="2 * 4 = 8, 1 * 3 = 3, 2 * 2 = 4, ", **products)
    times = af1.prepare(net, products)
    same_place = af1.subgraph(net, times, found.wait, found.until)
    print(
        f"{int(times.solved.sum())} of {len(products)} products answered right by the full model,"
    )
    print(f"{float(same_place.correct.mean()):.0%} of them by the subgraph of sums")
    print(f"best constant answer: {af1.chance(times):.0%}")

# %% jupyter={"source_hidden": true}
# 2. Accuracy by each operand, one block of waiting too many, in as wide a window.
further = min(found.wait + 1, n)
late = af1.subgraph(net, rows, further, max(found.until, further))
solved = late.correct.prompt.values
for slot in ("A", "B"):
    at = task.positions[slot].numpy()[solved]
    operand = [net.tokenizer.decode([ids[i, p]]).strip() for i, p in zip(solved, at)]
    by = late.correct.assign_coords(operand=("prompt", operand)).groupby("operand").mean()
    print(slot, {str(k): round(float(v), 2) for k, v in zip(by.operand.values, by.values)})

# %% jupyter={"source_hidden": true}
# 3. Without either block it is lost; each block alone carries a part of the sum.
for block, right in zip((2, 3), af1.knockout(toy, toy_rows, [2, 3]).correct.mean("prompt").values):
    print(f"the last token blind in block {block}: {right:.0%} right (full model: 100 %)")
part = {t: float(toy_accuracy.sel(wait=2, transfer=t)) for t in (0, 1, 2)}
print("accuracy by number of transfer blocks from block 2 on:", part)
