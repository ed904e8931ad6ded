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
#     id: neuron-path
#     family: attribution
#     title: Discovering Influential Neuron Path in Vision Transformers
#     paper: "2503.09046"
#     cost: {seconds: 35, memory_mb: 900}
#     model: toys/vit-digits
# ---

# %% [markdown]
# # Neuron paths: one neuron a layer that carries a digit
#
# **The idea in one sentence:** pick one hidden unit in each MLP of a vision transformer, so that
# the units together move the answer most; pictures of one class share such paths.
#
# Wang et al. 2025, [arXiv:2503.09046](https://arxiv.org/abs/2503.09046) ·
# [their code](https://github.com/foundation-model-research/NeuronPath)
#
# **Cost**: under a minute on two CPU cores, 0.9 GB of memory. The model is a small vision
# transformer that is trained here at the first use, in a quarter of a minute, on scikit-learn's
# digits. Any ViT of ten classes of digits will do, and, with `texts`, any decoder:
# `lwlab run neuron-path -p model=toys/char-llama`. The text tells what the small ViT does.

# %% tags=["parameters"]
from typing import Literal

model: str = "toys/vit-digits"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full takes all held-out digits
texts: list[str] = [
    "the statem", "in the exp", "for the va", "of a class", "an instanc", "is the nam",
]  # for a decoder: of equally many tokens; the answer is what it says itself  # fmt: skip
seed: int = 0

# %%
import numpy as np
import torch
import xarray as xr

import lwlab as lw
from lwlab.attribution import neuron_path
from lwlab.models import toys

lw.charts.enable()
net = lw.load(model)
sees = net.kind == "vision"
n = (100 if profile == "quick" else 450) if sees else len(texts)
if sees:
    data = lw.tasks.digits()
    inputs, answers = data.test_x[:n], data.test_y[:n]
else:
    inputs = texts
    answers = torch.tensor(
        [lw.cache(net, t, "logits").logits.values[0, -1].argmax() for t in texts]
    )
with torch.no_grad():
    known = neuron_path.given(net, inputs, answers)
units = known.clean[0].shape[1]
print(net)
print(
    f"{n} examples; the right answer has a probability of {float(known.base.mean()):.2f} on average"
)

# %% [markdown]
# ## The idea in one picture
#
# For one picture of a digit: the scores of all units, layer by layer, and the unit that was picked
# in each (the brightest of its row).

# %%
found = neuron_path.find(net, inputs, answers)
first = 0
alone = found.candidate.isel(example=first)
scaled = (alone / alone.max("neuron")).isel(neuron=slice(0, 128)).rename("score / the layer's best")
scaled.lw.heatmap(
    x="neuron", y="layer", domain=(-1, 1), width=640, height=110,
    title=f"The path of one picture of a {int(answers[first])}" if sees else "The path of one text",
    subtitle=f"units {found.unit.values[first].tolist()}",
)  # fmt: skip

# %% [markdown]
# ## The method
#
# Neurons are the hidden units of the MLPs at the class token (for a decoder: at the last token);
# $w_l$ are their activations there. Scale a set $S$, one unit $i_l$ of each layer up to some $l$,
# together from nought to what it is:
#
# $$\mathrm{JAS}(S) = \Big(\sum_l w_{l,i_l}\Big)\; \frac1m \sum_{k=0}^{m-1}
#   \sum_l \frac{\partial F(\tfrac km w_S)}{\partial w_{l,i_l}},$$
#
# with $F$ the probability of the answer. The search keeps the picks of earlier layers, scales the
# *whole* vector of the next layer along with them, and picks the unit with the highest score.
#
# In the first layer there are no earlier picks, and what is left is integrated gradients. Written
# out for one example, with plain hooks:

# %%
if sees:
    hidden = net.module.vit.layers[0].mlp.fc2
    w = known.clean[0][first]
    slopes = torch.zeros(units)
    for k in range(20):
        leaf = (k / 20 * w).requires_grad_()

        def scale(module, args, leaf=leaf):
            return (torch.cat([leaf.expand(1, 1, -1), args[0][:, 1:]], 1),)

        hook = hidden.register_forward_pre_hook(scale)
        p = net.module(inputs[first : first + 1]).logits.softmax(-1)[0, answers[first]]
        hook.remove()
        slopes += torch.autograd.grad(p, leaf)[0] / 20
    written = (w * slopes).detach().numpy()
    print("written out, the best unit of layer 0 is", written.argmax())

# %% [markdown]
# ## Does the path carry the answer?
#
# Take the four units away (times 0), or double them (times 2), and compare with simpler paths: the
# most active unit of each layer; each layer's best unit by itself (integrated gradients without the
# earlier picks); and units drawn at random.

# %%
paths = {
    "joint (the paper's)": found.unit.values,
    "each layer alone": neuron_path.find(net, inputs, answers, joint=False).unit.values,
    "most active": neuron_path.largest(net, inputs, answers),
    "random": neuron_path.at_random(n, net.n_layers, units, seed),
}
rows = {}
for name, path in paths.items():
    for factor in (0.0, 2.0):
        run = neuron_path.intervene(net, inputs, answers, path, factor)
        rows[name, factor] = (run.after - run.base).values
table = xr.DataArray(
    [[rows[name, f].mean() for f in (0.0, 2.0)] for name in paths],
    dims=("path", "factor"), coords={"path": list(paths), "factor": ["times 0", "times 2"]},
    name="change of the answer's probability",
)  # fmt: skip
print(table.to_pandas().round(4).to_string())

# %% [markdown]
# A few units of many: most digits stay what they were. So look at each class by itself.

# %%
if sees:
    classes = range(10)
    of = {c: (answers == c).numpy() for c in classes}
    by_class = lw.results.label(
        np.array([[-rows[name, 0.0][of[c]].mean() for c in classes] for name in paths]),
        ("path", "digit"), {"path": list(paths), "digit": list(classes)},
        name="probability lost",
    )  # fmt: skip
    shown = by_class.lw.profile(
        x="digit", series="path", width=460, height=230,
        title="Without the path, by class", subtitle="loss of the right answer's probability",
    )  # fmt: skip
else:
    shown = None
shown

# %% [markdown]
# ## Paths of a class
#
# Which units do the pictures of a class share? Each cell is the share of its pictures whose path
# goes through the unit; only units that some class uses for more than a third are shown.

# %%
if sees:
    share = np.zeros((10, net.n_layers, units))
    for c in classes:
        for path in found.unit.values[of[c]]:
            share[c, np.arange(net.n_layers), path] += 1 / of[c].sum()
    used = [
        (a, b) for a in range(net.n_layers) for b in range(units) if share[:, a, b].max() > 1 / 3
    ]
    shown = lw.results.label(
        np.array([share[:, a, b] for a, b in used]).T, ("digit", "unit"),
        {"digit": list(classes), "unit": [f"{a}.{b}" for a, b in used]}, name="share of pictures",
    ).lw.heatmap(
        x="unit", y="digit", origin="upper", width=560, height=200,
        title="Units (layer.unit) that paths go through",
    )  # fmt: skip
else:
    shown = None
shown

# %%
same = None
if sees:
    same = neuron_path.overlap(found.unit, answers, seed=seed)
    shuffled = np.random.default_rng(seed).permutation(answers.numpy())
    placebo = neuron_path.overlap(found.unit, shuffled, seed=seed)
    print(
        f"shared by two pictures of a class: {float(same.same):.3f}, of two: {float(same.other):.3f}"
    )
    print(f"permutation p {float(same.p):.4f}; with shuffled classes {float(placebo.p):.2f}")

# %% [markdown]
# ## Touch: take a unit away
#
# The scores of one picture, as above. Click a unit: it is set to nought, and you see what the model
# then says.

# %%
names = [str(c) for c in range(10)] if sees else None


def without(pick) -> str:
    """Return the likeliest answers without the unit."""

    def drop(part: torch.Tensor) -> torch.Tensor:
        out = part.clone()
        out[:, known.column, pick.column] = 0
        return out

    one = inputs[first : first + 1] if sees else [inputs[first]]
    run = lw.patch(net, one, {f"neurons.{pick.row}": drop}, logits="last")
    before, after = (
        torch.tensor(run[k].values).reshape(-1).softmax(0) for k in ("base_logits", "logits")
    )
    top = after.topk(3).indices.tolist()
    say = (lambda i: names[i]) if sees else (lambda i: repr(net.tokenizer.decode(i)))
    moved = ", ".join(f"{say(i)}: {before[i]:.3f} -> {after[i]:.3f}" for i in top)
    return f"without unit {pick.column} of layer {pick.row}: {moved}"


browser = lw.widgets.HeatMap(
    scaled, x="neuron", y="layer", title="Joint scores of one example, by unit"
)
browser.on_pick(without)
browser.pick(net.n_layers - 1, int(min(found.unit[first, -1], 127)))
browser

# %% [markdown]
# ## Claims

# %%
paper, yes, no = "2503.09046", "reproduced", "not reproduced"
here = model == "toys/vit-digits" and profile == "quick" and seed == 0
pin = (lambda v: v) if here else (lambda v: None)
about = {"n": n, "seed": seed, "model": net}
if sees:
    gap = np.abs(written - alone[0].values).max() / np.abs(written).max()
    lw.claim(
        "neuron-path.shown-is-library", kind="exact", measured=float(gap), expect="< 1e-3",
        n=units, seed=seed, model=net,
        statement="the first layer's scores written out above are the library's (relative)",
    )  # fmt: skip

# %%
some = slice(0, 20)
fine = neuron_path.find(net, inputs[some], answers[some], steps=200, rule="midpoint")
open_ = fine.candidate.isel(layer=0).sum("neuron") - fine.whole.isel(layer=0)
lw.claim(
    "neuron-path.completeness", kind="exact", expect="< 0.02", n=len(open_), seed=seed, model=net,
    measured=float(np.abs(open_).max() / np.abs(fine.whole.isel(layer=0)).max()),
    statement="the first layer's scores add up to what its whole vector does, F(w) - F(0) "
    "(200 midpoints, relative)",
)  # fmt: skip

# %%
nothing = neuron_path.intervene(net, inputs, answers, paths["random"], 1.0)
lw.claim(
    "neuron-path.times-one", kind="exact", expect="< 1e-5", **about,
    measured=float(np.abs(nothing.after - nothing.base).max()),
    statement="a path multiplied by one changes nothing",
)  # fmt: skip


# %%
def lead(a: str, b: str, factor: float = 0.0) -> dict:
    """How much more of the probability path `a` takes (or, doubled, gives) than `b`, with its interval."""
    sign = -1 if factor == 0 else 1
    e = lw.stats.bootstrap(sign * (rows[a, factor] - rows[b, factor]), seed=seed)
    return {"measured": e.mean, "interval": (e.low, e.high)}


joint, single, active, drawn = paths
lw.claim(
    "neuron-path.beats-most-active", kind="paper", paper=paper, expect="> 0", pinned=pin(yes),
    statement="without the path the answer loses more than without the most active units",
    **lead(joint, active), **about,
)  # fmt: skip

# %%
ratio = rows[joint, 0.0].mean() / min(rows[drawn, 0.0].mean(), -1e-4)
lw.claim(
    "neuron-path.beats-random", kind="paper", paper="control", measured=float(ratio), expect=">= 3",
    pinned=pin(yes), **about,
    statement="and at least three times what it loses without random units (ratio)",
)  # fmt: skip

# %%
lw.claim(
    "neuron-path.joint-beats-alone", kind="paper", paper=paper, expect="> 0.01", pinned=pin(no),
    statement="choosing jointly takes more than choosing each layer's unit by itself (by 0.01)",
    note="in four layers the earlier picks hardly change who is best",
    **lead(joint, single), **about,
)  # fmt: skip

# %%
lw.claim(
    "neuron-path.amplifies", kind="paper", paper=paper, expect="> 0", pinned=pin(yes), **about,
    statement="doubled, the path raises the answer more than doubled random units do",
    **lead(joint, drawn, 2.0),
)  # fmt: skip

# %%
if sees:
    lw.claim(
        "neuron-path.class-shares-path", kind="paper", paper=paper, measured=float(same.p),
        expect="< 0.05", pinned=pin(yes), **about,
        statement="paths of a class share more units than paths of two classes (permutation p)",
        note=f"Jaccard {float(same.same):.2f} against {float(same.other):.2f}",
    )  # fmt: skip

# %%
if sees:
    lw.claim(
        "neuron-path.placebo-classes", kind="paper", paper="control", pinned=pin(yes), **about,
        measured=float(placebo.same - placebo.other), expect="< 0.05",
        statement="with shuffled classes they do not (Jaccard, same less other)",
    )  # fmt: skip

# %%
if sees and here:
    raw = toys.trained("vit-digits", step=0)
    early = neuron_path.find(raw, inputs, answers)
    drop = neuron_path.intervene(raw, inputs, answers, early.unit)
    lw.claim(
        "neuron-path.placebo-untrained", kind="paper", paper="control", expect="< 0.02", **about,
        measured=float((drop.base - drop.after).mean()), pinned=pin(no),
        statement="before training no path carries an answer (probability lost)",
        note="a search for what moves an output finds it in a random network too (0.04 of 0.10)",
    )  # fmt: skip

# %%
if sees and here:
    shared = neuron_path.overlap(early.unit, answers, draws=200, seed=seed)
    lw.claim(
        "neuron-path.sharing-is-learned", kind="paper", paper="control", expect="> 0.1", **about,
        measured=float((same.same - same.other) - (shared.same - shared.other)), pinned=pin(no),
        statement="pictures of a class share more than in the untrained network (Jaccard, same less "
        "other, trained less untrained)",
        note="there the class alone decides the path: the answer's output weights are all that "
        "differs between classes, and pictures hardly matter",
    )  # fmt: skip

# %% [markdown]
# Not measured here: influence patterns (the paper's strongest baseline), and its ViTs on ImageNet
# (their pictures are not at hand offline).
#
# ## Try it
#
# 1. **A better sum.** The paper's sum takes the left ends. Do midpoints pick other units?
# 2. **Two digits.** Amplify the path of a *wrong* class. Does the model see that digit?
# 3. **Which layer?** Take away the pick of one layer at a time.
#
# The solutions are in the folded cells below.

# %% jupyter={"source_hidden": true}
# 1. In the first layers now and then.
mid = neuron_path.find(net, inputs, answers, rule="midpoint")
agree = (mid.unit == found.unit).mean("example").rename("share of the same picks")
print(agree.to_series().round(2).to_string())

# %% jupyter={"source_hidden": true}
# 2. Doubled hardly; at twenty times what they were, four units make it see the other digit often.
if sees:
    other = (answers + 1) % 10
    wrong = neuron_path.find(net, inputs[:40], other[:40])
    for factor in (1.0, 5.0, 20.0):
        run = neuron_path.intervene(net, inputs[:40], other[:40], wrong.unit, factor)
        print(
            f"times {factor:.0f}: probability of the next digit {float(run.after.mean()):.3f}, "
            f"it wins in {float(run.right.mean()):.0%}"
        )

# %% jupyter={"source_hidden": true}
# 3. None of them matters much by itself: what the path does, it does together.
for k in range(net.n_layers):
    run = neuron_path.intervene(net, inputs, answers, found.unit, layers=k)
    lost = lw.stats.bootstrap((run.base - run.after).values, seed=seed)
    print(f"layer {k}: {lost.mean:.4f} [{lost.low:.4f}, {lost.high:.4f}]")
