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
#     id: ln-removal
#     family: normalization
#     title: "Transformers Don't Need LayerNorm at Inference Time: Scaling LayerNorm Removal to GPT-2 XL and the Implications for Mechanistic Interpretability"
#     paper: "2507.02559"
#     cost: {seconds: 50, memory_mb: 1600}
#     model: toys/char-gpt2-ln-free
# ---

# %% [markdown]
# # LayerNorm removal: a model whose logits are sums
#
# **The idea in one sentence:** LayerNorm's division is what makes it impossible to say how much one
# part of a transformer contributed to a logit; replace it by a constant, norm by norm, during a
# short fine-tune, and the answer becomes exact, for a small price in loss.
#
# Baroni, Khara, Schaeffer, Subkhankulov & Heimersheim 2025,
# [arXiv:2507.02559](https://arxiv.org/abs/2507.02559) ·
# [their code](https://github.com/submarat/removing-layer-norm)
#
# **Cost**: 50 s on one CPU core, 1.6 GB of memory. The first use trains three small models (the
# GPT-2 of letters, and two tunings of it, half a minute each) and keeps them. With internet the
# released GPT-2 without LayerNorm is one parameter away, its twin is found by name:
# `lwlab run ln-removal -p model=schaeff/gpt2-small_LNFree300`. The pinned verdicts are those of
# `toys/char-gpt2-ln-free`; the exact claims were also tried on random GPT-2, OPT, Pythia and Phi
# models with frozen norms. SmolLM2, an RMSNorm model, is the second model below.

# %% tags=["parameters"]
from typing import Literal

model: str = "toys/char-gpt2-ln-free"  # a model without LayerNorm: a name, an id or a folder
twin: str = ""  # the same model tuned as long with LayerNorm; "" finds it by the name
rms_model: str = "smollm2-135m"  # a model with RMSNorm and an attention sink; "" leaves it out
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full takes four times the text
n: int = 32  # stretches of held-out text
length: int = 128  # tokens of each
seed: int = 0

# %%
import altair as alt
import numpy as np
import pandas as pd
import torch
import xarray as xr

import lwlab as lw
from lwlab import normalization as nz
from lwlab.models import toys

lw.charts.enable()
free = lw.load(model)
with_ln = lw.load(twin or nz.twin(model))
count = n if profile == "quick" else 4 * n
length = min(length, with_ln.max_tokens or length)
text = "\n\n".join(lw.tasks.corpus("pydoc", seed=0))
held_out = text[len(text) * 9 // 10 :]  # the small models never saw it
every = torch.as_tensor(with_ln.tokenizer(held_out, verbose=False)["input_ids"])
starts = torch.randint(len(every) - length, (count,), generator=torch.Generator().manual_seed(seed))
ids = every[starts[:, None] + torch.arange(length)]
few = ids[:8]
pd.DataFrame({m.name: {k.name: k.kind for k in nz.norms(m)} for m in (with_ln, free)}).rename_axis(
    "norm"
).T

# %% [markdown]
# The model without LayerNorm loads like any other: it is kept as the released ones are, as a GPT-2
# whose LayerNorms have $\epsilon = 10^{12}$. Dividing by $\sqrt{\mathrm{var}\,x + 10^{12}}$ is
# dividing by a constant, and the gain makes up for it. The kind above is not read from a label but
# measured: a norm is *frozen* if twice the input gives twice the output.
#
# ## The idea in one picture
#
# How much of a logit came from the MLP of layer 0? **Direct logit attribution** (DLA) multiplies
# what that MLP wrote with the unembedding, *as if* the norm in between were linear. **Leaving it
# out** of the last stream says what it really did. Each point is a token of a text:

# %%
effects = {m: nz.direct_effects(m, few) for m in (with_ln, free)}
shown = []
for m, e in effects.items():
    one = e.sel(component="mlp.0").isel(prompt=slice(0, 4))
    shown.append(one[["dla", "ablation"]].to_dataframe().reset_index().assign(model=m.name))
points = pd.concat(shown).round(3)[["dla", "ablation", "model"]]
alt.Chart(points).mark_point(filled=True, size=14, opacity=0.5).encode(
    x=alt.X("ablation:Q", title="logit lost without it"),
    y=alt.Y("dla:Q", title="direct logit attribution"),
    color=alt.Color("model:N", legend=None, scale=alt.Scale(range=["#0072b2", "#d55e00"])),
).properties(width=210, height=210).facet(
    alt.Facet("model:N", title=None), title="The MLP of layer 0 and the logit of the next token"
)

# %% [markdown]
# ## The method
#
# $$y = g \odot \frac{x - \bar x}{\sigma(x)} + b \quad\longrightarrow\quad
# y = g \odot \frac{x - \bar x}{S} + b, \qquad S \text{ a constant}$$
#
# $S$ follows the average of $\sigma(x)$ while the norm is still real, and stands still from the
# moment of its removal on. One norm at a time, so that the others can make up for it: first those
# before the MLPs, layer by layer, then those before attention, then the last.
#
# (The paper also removes the norm before attention in two steps, for queries and keys and for
# values, gives the first position a constant of its own for a while, and in larger models adds a
# loss that makes all tokens equally long. This small model needs neither: from layer 1 on its first
# position is no longer than the rest.)
#
# What a constant does to the model *without* any tuning is seen at once. `scales` measures
# $\sigma$, `freeze` puts constants in place of it:

# %%
scales = nz.scales(with_ln, ids)
alone = nz.costs(with_ln, ids[: count // 2], scales)
rise = (alone - alone.sel(frozen="none")).drop_sel(frozen="none")
table = scales.to_dataframe().round(3)
table["loss, if frozen alone"] = rise.drop_sel(frozen="all").to_series().round(4)
table

# %%
frozen_all = nz.freeze(with_ln, scales)
wrong = nz.scales(with_ln, ids).copy(deep=True)
wrong["scale"] = wrong.scale.copy(data=wrong.scale.values[::-1])  # each norm another norm's S
frozen_wrong = nz.freeze(with_ln, wrong)
models = {
    "tuned with LayerNorm": with_ln,
    "tuned without": free,
    "all frozen, not tuned": frozen_all,
    "all frozen, S of other norms": frozen_wrong,
}
nll = {k: nz.losses(m, ids).mean("position") for k, m in models.items()}
pd.DataFrame(
    {k: {"mean": float(v.mean()), "median": float(v.median()), "worst": float(v.max())}
     for k, v in nll.items()}
).T.round(4).rename_axis("loss of a text, nats a token")  # fmt: skip

# %% [markdown]
# ## Results
#
# ### The removal
#
# Held-out loss while the small model is tuned, with the moments at which a norm is removed, and its
# twin that keeps its norms. Both start from the same model and see the same text.

# %%
if model.startswith("toys/"):
    name = model.removeprefix("toys/")
    log = {k: toys.history(n_)["steps"] for k, n_ in
           {"without": name, "with": with_ln.name.removeprefix("toys/")}.items()}  # fmt: skip
    curve = pd.DataFrame(
        [{"step": s["step"], "loss": round(s["held_out"], 4), "LayerNorm": k}
         for k, steps in log.items() for s in steps if "held_out" in s]
    )  # fmt: skip
    removed = toys.find(name)().schedule()
    events = pd.DataFrame([{"step": v, "norm": k} for k, v in removed.items()])
    span = alt.Scale(zero=False, domainMax=round(curve.loss.max() + 0.02, 2))
    line = (
        alt.Chart(curve)
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", title="step of tuning"),
            y=alt.Y("loss:Q", scale=span, title="held-out loss (nats a letter)"),
            color=alt.Color("LayerNorm:N", scale=alt.Scale(range=["#0072b2", "#d55e00"])),
            strokeDash="LayerNorm:N",
        )
    )
    rules = alt.Chart(events).mark_rule(color="#999", strokeDash=[2, 2]).encode(x="step:Q")
    labels = (
        alt.Chart(events)
        .mark_text(angle=270, align="right", dx=-4, dy=-6, fontSize=9)
        .encode(x="step:Q", y=alt.value(0), text="norm:N")
    )
    timeline = (rules + labels + line).properties(
        width=460, height=240, title="Nine norms leave, one by one"
    )
else:
    timeline = f"the training of {model} was not recorded here"
timeline

# %% [markdown]
# What the norms would have divided by while the model is tuned without them: nothing keeps a
# stream at its length any more, except that the loss wants it so.

# %%
if model.startswith("toys/"):
    drift = pd.DataFrame(
        [{"step": s["step"], "norm": k[3:], "sd": round(v, 3)} for s in log["without"][::4]
         for k, v in s.items() if k in ("sd 1.ln_2", "sd 3.ln_2", "sd ln_f")]
    )  # fmt: skip
    kept = toys.history(name)["kept"][-1]
    constants = pd.DataFrame(
        [
            {"norm": k, "sd": round(kept[f"S {k}"], 3), "step": removed[k]}
            for k in drift.norm.unique()
        ]
    )
    hues = alt.Color("norm:N", scale=alt.Scale(range=["#0072b2", "#d55e00", "#009e73"]))
    lines = (
        alt.Chart(drift)
        .mark_line()
        .encode(
            x=alt.X("step:Q", title="step of tuning"),
            color=hues,
            y=alt.Y("sd:Q", title="standard deviation of its input", scale=alt.Scale(zero=False)),
        )
    )
    dots = (
        alt.Chart(constants)
        .mark_point(filled=True, size=110, opacity=1)
        .encode(x="step:Q", y="sd:Q", color=hues)
    )
    chart = (lines + dots).properties(
        width=460, height=190, title="Points: the constant, and when it was frozen"
    )
else:
    chart = "not recorded here"
chart

# %% [markdown]
# ### Direct logit attribution
#
# In every model the DLA of all components adds up to the logit, if the run's own $\sigma$ is used.
# It is a split of the logit, not a prediction of what happens without a component, because without
# it $\sigma$ would be another. Without LayerNorm both are the same number. The relative distance,
# $\sum |\mathrm{DLA} - \mathrm{left\ out}| / \sum |\mathrm{left\ out}|$, for each component; beside
# the two models the twin with **only its last norm** frozen (at its cost in the table above):

# %%
last = nz.norms(with_ln)[-1].name
only_last = nz.freeze(with_ln, scales, last)
effects[only_last] = nz.direct_effects(only_last, few)
gaps = {
    "with": nz.disagreement(effects[with_ln]),
    "without": nz.disagreement(effects[free]),
    f"only {last} frozen": nz.disagreement(effects[only_last]),
}
pd.DataFrame({k: v.to_series() for k, v in gaps.items()}).map("{:.1e}".format).T

# %%
sums = {k: nz.additivity(effects[m]) for k, m in {"with": with_ln, "without": free}.items()}
for k, s in sums.items():
    print(
        f"{k:8} largest |sum of components - logit|: DLA {float(s.dla):.1e}, "
        f"left out one by one {float(s.ablation):.1e}"
    )

# %% [markdown]
# ### Attribution patching
#
# Does a gradient tell more when there are no norms to bend it? Prompts in which one token was
# swapped, so that the prediction changes; exact patching of every layer's stream, attention and
# MLP from there on, against attribution patching (AtP), in each model for itself.

# %%
from lwlab.attribution import agreement, relp

task = nz.swaps(with_ln, [held_out], count, length=min(48, length), seed=seed)
both = {}
for k, m in {"with": with_ln, "without": free}.items():
    maps = relp.study(m, task, ["exact", "atp"], normalise=False)
    both[k] = maps.score
rs = [agreement(v, n=500, seed=seed).r for v in both.values()]
r = xr.concat(rs, "LayerNorm").assign_coords(LayerNorm=list(both))
r = r.sel(kind="pooled", technique="atp")
r.to_series().unstack("component").round(3)

# %%
pairs = xr.concat(both.values(), "LayerNorm", combine_attrs="override")
pairs = pairs.assign_coords(LayerNorm=list(both))
cells = pairs.sel(component="resid_pre").isel(position=slice(-4, None)).drop_vars("component")
exact, guess = cells.sel(technique="exact"), cells.sel(technique="atp")
exact.attrs, guess.attrs = {"long_name": "exact"}, {"long_name": "AtP"}
lw.charts.scatter(
    exact.drop_vars("technique"), guess.drop_vars("technique"), facet="LayerNorm", size=190,
    title="Effect of patching the stream, in logits", subtitle="",
)  # fmt: skip

# %% [markdown]
# ### Text it never saw
#
# A norm is also a safety belt: whatever comes, the stream has one length. Without it, strange input
# stays strange.

# %%
generator = torch.Generator().manual_seed(seed)
high = min(int(with_ln.d_vocab), 50_000)
odd = {
    "held-out text": ids,
    "its tokens shuffled": few[:, torch.randperm(length, generator=generator)],
    "random tokens": torch.randint(3, high, (8, length), generator=generator),
    "one token again and again": torch.randint(3, high, (8, 1), generator=generator).expand(8, length),
}  # fmt: skip
strange = {
    k: {m.name: float(nz.losses(m, x).mean()) for m in (with_ln, free)} for k, x in odd.items()
}
pd.DataFrame(strange).T.round(3)

# %% [markdown]
# ### An RMSNorm model
#
# SmolLM2 divides by the root mean square instead, which can be frozen as well. Its first position
# is an attention sink, a hundred times longer than the rest from layer 11 on, so it needs a constant
# of its own. With that, and without any tuning, the norms of the upper layers hardly matter. (The
# lower ones do: frozen together they let the stream run away, because a gated MLP grows with the
# square of what it is given. They would have to leave one by one, in training. NaN: the stream grew
# beyond every number.)

# %%
if rms_model:
    other = lw.load(rms_model)
    tokens = torch.as_tensor(other.tokenizer(held_out[:3000], verbose=False)["input_ids"])
    tokens = tokens[:128].reshape(2, 64)
    sizes = nz.scales(other, tokens)
    parts = {"before attention, upper half": (2, 0), "before MLPs, upper third": (3, 1)}
    kinds = {"the last norm": [nz.norms(other)[-1].name]}
    for kind, (share, which) in parts.items():
        low_ = other.n_layers - other.n_layers // share
        read = ("resid_pre", "resid_mid")[which]
        chosen = [x for x in nz.norms(other) if x.reads.site == read and (x.layer or 0) >= low_]
        kinds[kind] = [x.name for x in chosen]
    bare = float(nz.losses(other, tokens).mean())
    rows = {"as it is": [bare, bare]}
    for kind, names in kinds.items():
        views = [nz.freeze(other, sizes, names, first=f, check=False) for f in (False, True)]
        rows[kind] = [float(nz.losses(v, tokens).mean()) for v in views]
    columns = ["one constant", "first position apart"]
    frame = pd.DataFrame(rows, index=columns).T.round(3).rename_axis("loss, nats a token")
else:
    frame = "no RMSNorm model was asked for"
frame

# %% [markdown]
# ## Touch
#
# Press the norms that you can do without, in the twin that still has them. The rows are the losses
# of the tokens of a text: as the model is, with your norms frozen, and of the model that was tuned
# to live without.

# %%
from lwlab.normalization.panel import TogglePanel

start = with_ln.tokenizer.decode(ids[1, :40])
if len(nz.norms(with_ln)) <= 40:
    panel = TogglePanel(with_ln, start, scales, reference=free)
    panel.set(**{last: True})
else:
    panel = "too many norms for switches: see freeze()"
panel

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
same = {"n": len(few), "seed": seed, "model": free}
kinds_now = {x.kind for x in nz.norms(free)}
lw.claim(
    "ln-removal.loads-by-name", kind="exact", measured=kinds_now == {"frozen"}, expect="true",
    statement="no norm of the model normalises: each is linear, as measured", **same,
)  # fmt: skip

# %%
lw.claim(
    "ln-removal.logits-are-sums", kind="exact", measured=float(sums["without"].ablation),
    expect="< 1e-3", statement="without LayerNorm: largest difference, in logits, between the "
    "logit and the sum of what each component alone takes with it", **same,
)  # fmt: skip

# %%
lw.claim(
    "ln-removal.dla-is-what-it-does", kind="exact",
    measured=float(gaps["without"].sel(component="all")), expect="< 1e-4",
    statement="without LayerNorm DLA is the effect of leaving a component out (relative)",
    paper="abstract: direct logit attribution is exact", **same,
)  # fmt: skip

# %%
lw.claim(
    "ln-removal.last-norm-suffices", kind="exact", expect="< 1e-4", **{**same, "model": with_ln},
    measured=float(gaps[f"only {last} frozen"].sel(component="all")),
    statement="for DLA it is enough to freeze the last norm (relative)",
)  # fmt: skip

# %%
folded = nz.fold(free)
fold_gap = nz.compare(free, {"folded": folded}, few).relative.item()
lw.claim(
    "ln-removal.norms-fold-away", kind="exact", measured=fold_gap, expect="< 1e-4",
    statement="the norms multiplied into the next matrices, identities in their place: largest "
    "change of a logit over the largest logit", **same,
)  # fmt: skip

# %% [markdown]
# ### What the paper says

# %%
gap = nll["tuned without"] - nll["tuned with LayerNorm"]
mean, low, high_ = lw.stats.bootstrap(gap.values, seed=seed)
pin = {"toys/char-gpt2-ln-free": "reproduced"}
whole = {"n": count, "seed": seed, "model": free}
lw.claim(
    "ln-removal.costs-little", kind="paper", measured=mean, interval=(low, high_), unit="nats",
    expect="< 0.08", pinned=pin, paper="abstract; GPT-2 small: +0.067, XL: +0.025", **whole,
    statement="loss without LayerNorm less that of the twin tuned as long with it",
)  # fmt: skip

# %%
untuned = float((nll["all frozen, not tuned"] - nll["tuned with LayerNorm"]).mean())
lw.claim(
    "ln-removal.tuning-needed", kind="paper", measured=mean / untuned, expect="< 0.5", pinned=pin,
    statement="that cost, as a share of what freezing all norms costs without tuning "
    f"({untuned:.3f} nats)", **whole,
)  # fmt: skip

# %%
lw.claim(
    "ln-removal.dla-with-layernorm-is-not", kind="paper", expect="> 1e-2", pinned=pin,
    measured=float(gaps["with"].sel(component="all")),
    statement="with LayerNorm DLA differs from leaving a component out (relative)", **same,
)  # fmt: skip


# %%
def r_of(score: xr.DataArray, prompts: np.ndarray) -> np.ndarray:
    s = score.isel(prompt=prompts, position=slice(task.positions["swapped"].min().item(), None))
    return np.array(
        [lw.stats.pearson(*(c.sel(technique=t).values for t in ("exact", "atp")))
         for c in (s.sel(component=k) for k in ("attn_out", "mlp_out"))]
    )  # fmt: skip


def least_lead(prompts: np.ndarray) -> float:
    return float((r_of(both["without"], prompts) - r_of(both["with"], prompts)).min())


drawn = np.random.default_rng(seed).integers(len(task), size=(300, len(task)))
lead = [least_lead(p) for p in drawn]
lw.claim(
    "ln-removal.atp-no-better", kind="paper", expect="<= 0", paper="abstract",
    measured=least_lead(np.arange(len(task))), interval=np.quantile(lead, [0.025, 0.975]),
    pinned={"toys/char-gpt2-ln-free": "not reproduced"}, n=len(task), seed=seed, model=free,
    statement="Pearson r of attribution patching with exact patching, without LayerNorm less with: "
    "the smaller lead of attention and MLP outputs",
    note="a little higher without, in five samples of prompts and two trainings (0.03 to 0.15); in "
    "the stream the sign of the lead changed from sample to sample. Four layers bend less by "
    "attention and GELUs than GPT-2 does, so that the norms' part is larger",
)  # fmt: skip

# %%
belt = strange["random tokens"]
lw.claim(
    "ln-removal.strange-text-is-dearer", kind="paper", pinned=pin, expect="> 2",
    measured=(belt[free.name] - belt[with_ln.name]) / mean, n=8, seed=seed, model=free,
    statement="what the missing norms cost on random tokens, over what they cost on text",
    paper="code: rare sequences on which the models blow up",
)  # fmt: skip

# %% [markdown]
# ### Placebos, and what the paper does not ask

# %%
mixed = float((nll["all frozen, S of other norms"] - nll["all frozen, not tuned"]).mean())
lw.claim(
    "ln-removal.it-takes-the-right-constants", kind="paper", measured=mixed, expect="> 0.5",
    pinned=pin, statement="placebo: constants handed out in reverse order; loss above the right "
    "ones", unit="nats", **whole,
)  # fmt: skip

# %%
if rms_model:
    apart, pins = next(iter(parts)), {"smollm2-135m": "reproduced"}
    here = {"n": len(tokens), "seed": seed, "model": other, "unit": "nats", "pinned": pins}
    lw.claim(
        "ln-removal.sinks-need-their-own-constant", kind="paper", expect="> 1", **here,
        measured=rows[apart][0] - rows[apart][1],
        statement="norms before attention in the upper half frozen, untuned: loss with one constant "
        "less that with the first position's own",
        paper="code: the first position has a constant of its own",
    )  # fmt: skip

# %%
if rms_model:
    lw.claim(
        "ln-removal.upper-norms-hardly-matter", kind="paper", measured=rows[apart][1] - bare,
        expect="< 0.2", statement="with that constant: loss above the model's own", **here,
    )  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **Free norms.** Which norms can be frozen *together*, without tuning, for less than 0.05 nats?
#    Add them greedily, the cheapest first.
# 2. **All at once.** Take the recipe of the small model and remove all norms at the same step. How
#    high does the loss rise, and does it come back?
# 3. **Read a prediction.** Take the model without LayerNorm and split one logit into its parts. Which
#    component speaks for the token, and which against it?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. Costs alone are a good order, but they need not add up.
order = rise.drop_sel(frozen="all").to_series().sort_values().index.tolist()
for k in range(2, len(order) + 1, 2) if len(order) < 20 else ():
    view = nz.freeze(with_ln, scales, order[:k], check=False)
    price = float(nz.losses(view, few).mean() - nz.losses(with_ln, few).mean())
    print(f"{k} norms frozen ({', '.join(order[k - 2 : k])} last): {price:+.4f} nats")

# %% jupyter={"source_hidden": true}
# 2. The recipe's schedule is two numbers; forty steps are enough to see it.
if model.startswith("toys/"):

    class AtOnce(toys.find(name)):
        first, gap = 20, 0

    made = AtOnce(seed)
    for i in range(41):
        numbers = made.step(i)
        if "held_out" in numbers:
            slow = next(s["held_out"] for s in log["without"] if s["step"] == i)
            print(
                f"step {i:2}: at once {numbers['held_out']:.3f} ({numbers['removed']:.0f} removed), "
                f"one by one {slow:.3f}"
            )

# %% jupyter={"source_hidden": true}
# 3. In this model the parts really are what happens without them.
one = effects[free].isel(prompt=1, position=60)
before = with_ln.tokenizer.decode(ids[1, 40:61])
target = with_ln.tokenizer.decode(ids[1, 61:62])
print(f"after {before!r} comes {target!r}, logit {float(one.logit):.2f}:")
print(one.dla.to_series().sort_values(ascending=False).round(2).to_string())
