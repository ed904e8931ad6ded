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
#     id: lac-void
#     family: depth
#     title: Void in Language Models
#     paper: "2505.14467"
#     cost: {seconds: 45, memory_mb: 1500}
#     model: smollm2-135m
# ---

# %% [markdown]
# # Voids: are four fifths of the layers unused?
#
# **The idea in one sentence:** call a layer void for a token when it does not make the norm of its
# stream grow enough; then ask what becomes of the model without its voids, and find that the
# answer hangs on what "without" means.
#
# Shemiranifar 2025, [arXiv:2505.14467](https://arxiv.org/abs/2505.14467) ·
# [its code](https://github.com/manishemirani/void_in_language_models)
#
# The paper reports that Qwen2.5-7B-Instruct does *better* on MMLU (69.2 to 71.3) using 30 % of its
# layers. Its released code computes every layer and reads an earlier stream out at the end. Here
# both readings, reading out and really skipping, are measured side by side.
#
# **Cost** with SmolLM2-135M: under a minute on two CPU cores, 1.5 GB of memory. Any decoder will do
# (`lwlab run lac-void -p model=gpt2`); also tried: `toys/char-gpt2`. The text tells what SmolLM2
# does.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full adds texts and questions
texts: list[str] = []  # your own texts; empty: five short texts written for this notebook
alpha: float = 0.8  # of the threshold; the paper's
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
    activity,
    control_losses,
    phase_test,
    readout,
    void_generate,
    void_losses,
    voided,
)
from lwlab.errors import BadInput

lw.charts.enable()
net = lw.load(model)
L = net.n_layers
quick = profile == "quick"
STORIES = [
    "The ferry left the harbour at seven. Anna stood at the rail with a cup of tea and watched the "
    "town grow small. She had lived there for thirty years, and she did not know yet whether she "
    "would come back.",
    "Water boils at a lower temperature on a mountain than at the sea, because the air above it is "
    "thinner and presses less. That is why cooks in high villages let their beans stay on the fire "
    "for longer.",
    "When the judge asked the old man why he had taken the horse, he said that it was raining, that "
    "the road was long, and that the horse had looked at him as if it wanted to go home as well.",
    "The company sells bread, cakes and coffee in twelve towns. Last year it opened two shops and "
    "closed one, and for the first time the sales of coffee were larger than the sales of bread.",
    "Take the second street on the left, cross the bridge, and go on until you see a red door. Knock "
    "twice. If nobody comes, the key is under the stone next to the apple tree.",
]
most = net.max_tokens or 1024
texts = texts or STORIES
if not quick:
    texts = [*texts, *lw.tasks.corpus("pydoc", n=20, tokens=min(256, most), model=net, seed=seed)]
if max(len(net.tokenizer(t)["input_ids"]) for t in texts) > most:  # a model of few tokens
    texts = lw.tasks.corpus("pydoc", n=3, tokens=most - 20, model=net, seed=seed)
try:
    task = lw.tasks.ioi(net, n=12 if quick else 100, seed=seed)
except BadInput as why:
    task = None
    print(f"no task for {net.name}: {why}")
net

# %% [markdown]
# ## The idea in one picture
#
# Bright: the layer is active for that token. Dark: a void.

# %%
seen = activity(net, texts, alpha)
first = seen.isel(prompt=0).dropna("position", how="all")
first.active.assign_attrs(seen.attrs | {"long_name": "active"}).lw.heatmap(
    title=f"Which layer is active for which token? alpha = {alpha}", domain=(0, 1), width=560,
    height=230,
)  # fmt: skip

# %% [markdown]
# Two layers at the bottom, a few at the top, and next to nothing between. So four fifths of the
# model are void?
#
# ## The method
#
# Let $h_0$ be the stream of one token that enters the first layer, $h_l$ the one that leaves layer
# $l = 1..L$, and
#
# $$n_l = \lVert h_l \rVert, \qquad \delta_l = n_l - n_{l-1}, \qquad
# \lambda_l = \alpha\,\bigl(\max_{j<l} \delta_j - \min_{j<l} \delta_j\bigr), \qquad \lambda_1 = 0.$$
#
# Layer $l$ is a **void** for that token if $\delta_l < \lambda_l$. No absolute value is taken: a
# layer that shrinks the norm is always void. What the model is "without" its voids can mean:
#
# * **readout** (the release): every layer runs as ever, and the final norm reads the stream after
#   the token's *last active* layer, $\operatorname{Unembed}(N(h_{\text{last active}}))$. An early
#   exit for each token. Nothing is skipped, nothing is saved.
# * **true skip**: a void layer hands its token's stream on as it was, $h_l := h_{l-1}$. What comes
#   after, also at other tokens, through keys and values, has to live with it.
#
# The rule, written out:

# %%
streams = lw.cache(net, texts[0], ["resid_pre", "resid_post"])
h = np.concatenate([streams.resid_pre.values[0, :1], streams.resid_post.values[0]])  # [L + 1, T, d]
n = np.linalg.norm(h, axis=-1)
delta = np.diff(n, axis=0)
active = np.zeros_like(delta, bool)
for layer in range(L):
    before = delta[:layer]
    lam = alpha * (before.max(0) - before.min(0)) if layer else 0.0
    active[layer] = delta[layer] >= lam
differ = float((active != first.active.values.astype(bool)).mean())
print(f"cells that differ from the library's: {differ:.1%}")
print(f"used: {active.mean():.1%} of the cells")

# %% [markdown]
# ## Results
#
# ### Two readings
#
# The same threshold at several $\alpha$. Usage is the share of (layer, token) cells that are active.

# %%
alphas = sorted({0.0, 0.1, 0.3, 0.5, 0.8, 1.0, alpha})
found = void_losses(net, texts, alphas)
means = found.mean("prompt")
full = float(found.full.mean())
columns = {
    f"{v}: {k}": means[k].sel(variant=v).to_series()
    for v in found.variant.values for k in ("usage", "nll", "agreement", "exit")
}  # fmt: skip
print(f"the whole model: {full:.2f} nats a token; guessing evenly: {np.log(net.d_vocab):.2f}")
pd.DataFrame(columns).round(2)

# %%
frame = xr.Dataset({k: means[k] for k in ("usage", "nll")}).to_dataframe().reset_index()
frame["variant"] = frame.variant.map({"readout": "readout (the release)", "skip": "true skip"})
lines = alt.Chart(frame.round(3)).encode(
    x=alt.X("usage:Q", title="share of active cells", axis=alt.Axis(format="%"),
            scale=alt.Scale(domain=[0, 1])),
    y=alt.Y("nll:Q", title="loss (nats a token)"),
    color=alt.Color("variant:N", title=None, scale=alt.Scale(range=["#0072b2", "#d55e00"])),
    order="alpha:Q",
)  # fmt: skip
whole = alt.Chart(pd.DataFrame({"nll": [full]})).mark_rule(strokeDash=[4, 3]).encode(y="nll:Q")
(whole + lines.mark_line() + lines.mark_point(filled=True, size=45, opacity=1)
 + lines.mark_text(dy=-10).encode(text="alpha:N")).properties(
    width=420, height=230, title="The same voids: not read out, or really skipped (labels: alpha)"
)  # fmt: skip

# %% [markdown]
# Dashed: the whole model. "A fifth of the layers is used" is a statement about which stream is read.
# All layers before the exit worked for it. Take them away, and the model is worse than a die.
#
# ### Does the readout know where to stop?
#
# Against readouts of the same usage or depth that know less: each token with the cells of another;
# one exit for all tokens at the rule's mean depth; $|\delta|$ in place of $\delta$.

# %%
controls = control_losses(net, texts, alpha, seed=seed)
controls.mean("prompt").to_dataframe().round(3).T

# %% [markdown]
# ### Reading and writing
#
# The paper's other point: prompt processing (PP, one pass over the prompt) and response generation
# (RG, one pass a token) activate different layers. Each pass decides for itself.

# %%
asked = [
    "The capital of France is",
    "My favourite thing to eat on a cold day is",
    "She opened the door and saw that",
    "Last summer we went to the coast, and",
    "In order to make bread you need",
    "He looked at the clock and said that",
    "Water boils when",
    "The best way to learn a language is",
]
steps = 12 if quick else 50
talk = void_generate(net, asked, alpha, max_new_tokens=steps, seed=seed)
talk.rate.assign_attrs(long_name="share of tokens for which it is active", model=net.name).lw.profile(
    x="layer", series="phase", width=480, height=170,
    title=f"Active layers while reading and writing (alpha = {alpha})",
)  # fmt: skip

# %%
print("used, by phase:", talk.usage.mean("prompt").round(3).to_series().to_dict())
question = asked[0]
for name, options in {
    "whole model": {"alpha": None},
    "readout": {"alpha": alpha},
    "true skip": {"alpha": alpha, "variant": "skip"},
}.items():
    said = void_generate(net, question, max_new_tokens=steps, seed=seed, **options)
    print(f"{name:12} {str(said.text.values[0])!r}")

# %% [markdown]
# ### What a norm cannot see
#
# A layer can rewrite the direction of a stream and leave its length alone. Next to how often each
# layer is active, how far it turns the stream ($1 - \cos$, tokens for which it is *void* only).
# Position 0 apart: SmolLM2 makes it an attention sink, whose norm jumps so far in layer 11 that its
# threshold is out of reach for every layer after.

# %%
later = seen.isel(position=slice(1, None))
turned = later.turn.where(later.active == 0).mean(("prompt", "position"))
rates = later.active.mean(("prompt", "position"))
lw.charts.beside(
    rates.assign_attrs(long_name="active", model=net.name).lw.profile(
        x="layer", title="How often active", width=230, height=140),
    turned.assign_attrs(long_name="1 - cos", model=net.name).lw.profile(
        x="layer", title="How far voids turn the stream", width=230, height=140),
)  # fmt: skip

# %%
sink = seen.isel(position=0).active.mean("prompt")
print("active for position 0, layers:", sink.layer.values[sink.values > 0].tolist())
print("largest jump of its norm:", f"{float(seen.delta.isel(position=0).max()):.0f}", end=", ")
print("of any other token's:", f"{float(later.delta.max()):.0f}")

# %% [markdown]
# ### A task
#
# `voided` makes any forward pass obey the rule, so any measure of the library can be taken under it.

# %%
if task is not None:
    scores = {"whole model": lw.tasks.evaluate(net, task)}
    for variant in ("readout", "skip"):
        with voided(net, alpha, variant) as ran:
            scores[variant] = lw.tasks.evaluate(net, task)
        if variant == "readout":  # the first pass reads the clean prompts
            ends = ran[0].exit[range(len(ran[0].exit)), (task.lengths - 1)[: len(ran[0].exit)]]
            complete = float((ends == L - 1).float().mean())
    right = {k: v.correct.values for k, v in scores.items()}
    table = {k: {"beats the foil": v.correct.mean().item(), "likeliest": v.top1.mean().item(),
                 "logit difference": v.clean.mean().item()} for k, v in scores.items()}  # fmt: skip
    display(pd.DataFrame(table).round(2))

# %%
if task is not None:
    print(f"share of the answering tokens for which the last layer is active: {complete:.0%}")

# %% [markdown]
# Where the last layer is active for the token that answers, the readout *is* the whole model. An
# accuracy taken at one token can stay what it was and say nothing about the layers below.
#
# ### Placebo: a model that never learned
#
# The same rule on a randomly initialised transformer of as many layers.

# %%
from lwlab.models import toys

module, _ = toys.tiny(
    "llama", seed=seed, num_hidden_layers=L, hidden_size=192, intermediate_size=512,
    num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=512,
)  # fmt: skip
blank = lw.wrap(module, tokenizer=toys.tokenizer(), name=f"random llama of {L} layers")
words = [" ".join(np.random.default_rng(seed + i).permutation(toys.WORDS)[:40]) for i in range(3)]
blank_seen = activity(blank, words, alpha)
trained, untrained = float(seen.active.mean()), float(blank_seen.active.mean())
print(f"cells used: trained {trained:.0%}, untrained {untrained:.0%}")

# %% [markdown]
# ## Touch
#
# Move alpha, switch between the readings. The map is the prompt, a gap, and what the model writes
# on; below it the loss. Where does the loss begin to rise in each reading? Click a cell to see what
# a void did.

# %%
from lwlab.depth.lac_void_board import VoidExplorer

explorer = VoidExplorer(net, asked[1], alpha=min(alpha, 1.0), new=8)
explorer.map.pick(L // 2, 3)
explorer

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
about = {"seed": seed, "model": net}
lw.claim(
    "lac-void.shown-is-library", kind="exact", measured=differ, expect="< 0.01", n=1, **about,
    statement="the rule written out gives the library's cells: share that differs",
)  # fmt: skip

# %%
ids = net.tokens(texts[0]).ids
with voided(net, alpha) as passes:
    under = net.module(ids, use_cache=True)
with torch.no_grad():
    plain = net.module(ids, use_cache=True)
stack = torch.from_numpy(h).to(net.device)
gathered = readout(net, stack, torch.from_numpy(active).to(net.device))
gap = float((under.logits[0].float() - gathered).abs().max() / gathered.abs().max())
lw.claim(
    "lac-void.readout-is-early-exit", kind="exact", measured=gap, expect="< 1e-4", n=1, **about,
    statement="the release's reading is the stream after the last active layer, read out: largest "
    "difference of logits, relative",
)  # fmt: skip

# %%
same = 0.0
for variant in ("readout", "skip"):
    with voided(net, None, variant):
        same = max(same, float((net.module(ids).logits - plain.logits).abs().max()))
lw.claim(
    "lac-void.no-threshold-is-the-model", kind="exact", measured=same, expect="< 1e-5", n=1, **about,
    statement="with a threshold of minus infinity both readings are the whole model",
)  # fmt: skip

# %%
if getattr(plain, "past_key_values", None) is not None:
    keys = [
        (a.keys, b.keys) for a, b in zip(under.past_key_values.layers, plain.past_key_values.layers)
    ]
    untouched = max(float((a - b).abs().max()) for a, b in keys)
    lw.claim(
        "lac-void.readout-skips-nothing", kind="exact", measured=untouched, expect="== 0", n=1,
        statement="under the readout every layer writes the keys that it always writes", **about,
    )  # fmt: skip

# %%
rise = found.usage.sel(variant="readout").diff("alpha").max()
lw.claim(
    "lac-void.usage-falls-with-alpha", kind="exact", measured=float(rise), expect="<= 0",
    n=len(texts), **about,
    statement="for the readout, usage never rises with alpha: largest step upwards",
)  # fmt: skip

# %% [markdown]
# ### What the paper says
#
# Intervals are 95 % bootstraps over texts or questions.


# %%
def paper(id: str, values, expect: str, statement: str, pin: str, **more):
    e = lw.stats.bootstrap(np.asarray(values, float), seed=seed, groups=more.pop("groups", None))
    return lw.claim(
        f"lac-void.{id}", kind="paper", measured=e.mean, expect=expect, statement=statement,
        pinned={"smollm2-135m": pin}, n=len(values), **about,
        **({"interval": e[1:]} if np.isfinite(e.low) else {}), **more,
    )  # fmt: skip


by_alpha = means.usage.sel(variant="readout")
near = float(by_alpha.alpha[int(np.abs(by_alpha.values - 0.3).argmin())])
paper(
    "thirty-percent-is-enough", found.nll.sel(variant="readout", alpha=near) - found.full, "<= 0",
    f"loss read out at the alpha ({near}) that uses about 30 % of the cells, less the whole model's",
    "not reproduced", paper="abstract: MMLU 69.24 to 71.29 with 30 % of the layers", unit="nats",
    note=f"usage {float(by_alpha.sel(alpha=near)):.0%}; a small model has less to spare, and the loss "
    "of all tokens is stricter than a choice of four",
)  # fmt: skip

# %%
if task is not None:
    paper(
        "the-task-survives-the-readout", right["readout"] - right["whole model"], ">= -0.05",
        f"accuracy read out at alpha {alpha} less the whole model's: {task.name}", "reproduced",
        paper="abstract, of MMLU and GPQA", groups=task.groups.numpy(),
        note=f"for {complete:.0%} of the questions the last layer is active for the token that answers, "
        "so that the readout is the whole model there",
    )  # fmt: skip

# %%
alike = lw.stats.pearson(talk.rate.sel(phase="PP").values, talk.rate.sel(phase="RG").values)
distance, p = phase_test(talk, seed=seed)
lw.claim(
    "lac-void.phases-differ", kind="paper", measured=alike, expect="< 0.9", n=len(asked), **about,
    paper="abstract", pinned={"smollm2-135m": "not reproduced"},
    statement="reading and writing use different layers: correlation of the layers' rates in PP and RG",
    note=f"the rate of a layer differs by {distance:.3f} on average; exchanging the phases within "
    f"prompts gives as much with p = {p:.2f}",
)  # fmt: skip

# %% [markdown]
# ### What the paper does not ask

# %%
low = by_alpha.where(by_alpha <= 0.25, drop=True)
at = float(low.alpha[0]) if low.size else max(alphas)
cost = found.nll.sel(variant="skip", alpha=at) - found.nll.sel(variant="readout", alpha=at)
paper(
    "skipping-is-not-reading-out", cost, "> 2",
    f"loss with voids skipped less loss with them not read out, alpha {at}, where the readout uses "
    "a quarter of the cells or less", "reproduced", unit="nats",
)  # fmt: skip

# %%
if task is not None:
    paper(
        "skipping-loses-the-task", right["readout"] - right["skip"], "> 0.2",
        f"accuracy read out less accuracy with voids skipped, alpha {alpha}: {task.name}",
        "reproduced", groups=task.groups.numpy(),
    )  # fmt: skip

# %%
loss = controls.nll
paper(
    "knows-which-token-to-stop-at", loss.sel(control="shuffled") - loss.sel(control="rule"), "> 0.5",
    "loss where each token has the exit of another of its text (mean of 4 draws), less the rule's",
    "not reproduced", unit="nats",
    note="in SmolLM2 how deep tokens are read matters (next claim), which token is read how deep "
    "hardly: zero lies within the interval",
)  # fmt: skip

# %%
paper(
    "beats-a-fixed-exit", loss.sel(control="fixed exit") - loss.sel(control="rule"), "> 0",
    "loss read out at one layer for all tokens, the rule's mean depth, less the rule's",
    "reproduced", unit="nats",
)  # fmt: skip

# %%
lw.claim(
    "lac-void.untrained-models-have-voids", kind="paper", measured=untrained, expect="< 0.5",
    n=len(words), **about, pinned={"smollm2-135m": "reproduced"},
    statement="placebo: share of active cells in an untrained model of as many layers",
    note=f"the trained model: {trained:.2f}. Deep enough, most layers are void in a model that never "
    "learned: early writes are large beside the first streams, and later ones miss the threshold",
)  # fmt: skip

# %% [markdown]
# Not measured here: the paper's own numbers (Qwen2.5-7B on MMLU takes a GPU); there, too, both
# readings should be run, and the extraction of answers controlled, because a changed readout
# changes the form of an answer.
#
# ## Try it
#
# 1. **What can really be skipped?** Skip only the layers that are void for every token of the first
#    text (`force`). What does that cost?
# 2. **Without the absolute value.** How many of the voids are layers that *shrink* the norm?
# 3. **Other numbers.** Let the model write with `alpha=0.3`, read out. Is it still sensible?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. Even these cannot go: that nobody's norm grows does not mean that nothing is written.
nobody = ~active.any(1)
mask = torch.from_numpy(np.repeat(~nobody[:, None], active.shape[1], 1))[:, None]
with voided(net, alpha, "skip", force=mask), torch.no_grad():
    z = net.module(ids).logits[0, :-1].float()
with_gaps = torch.nn.functional.cross_entropy(z, ids[0, 1:]).item()
print(f"{nobody.sum()} layers skipped: loss {with_gaps:.2f}, whole {float(found.full[0]):.2f}")

# %% jupyter={"source_hidden": true}
# 2. A good part: they erase, which is work too.
void = later.active == 0
share = float((later.delta.where(void) < 0).sum() / void.sum())
print(f"{share:.0%} of the voids shrink the norm")

# %% jupyter={"source_hidden": true}
# 3. The last layers choose words; what is read out before them is close, and now and then off.
print(void_generate(net, question, 0.3, max_new_tokens=steps).text.values[0])
