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
#     id: massive-dynamics
#     family: activations
#     title: Hidden Dynamics of Massive Activations in Transformer Training
#     paper: "2508.03616"
#     cost: {seconds: 45, memory_mb: 1500}
#     model: smollm2-135m
# ---

# %% [markdown]
# # Massive activations: where they are, what they do, how they come
#
# **The idea in one sentence:** a handful of numbers in the stream are thousands of times larger than
# all others, the model fails without them, and their growth in training follows a curve of five
# parameters.
#
# Gallego-Feliciano et al. 2025, [arXiv:2508.03616](https://arxiv.org/abs/2508.03616); the
# phenomenon: Sun et al. 2024, [arXiv:2402.17762](https://arxiv.org/abs/2402.17762)
#
# **Cost** with SmolLM2-135M: under a minute on two CPU cores, 1.5 GB of memory; the checkpoints are
# those of a small Llama that is trained here at the first use, in about a minute. Any decoder will
# do: `lwlab run massive-dynamics -p model=gpt2`; with internet the paper's own course is
# `-p checkpoints=EleutherAI/pythia-14m@step{step}`. The text tells what SmolLM2 does.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
checkpoints: str = "toys/char-llama@{step}"  # where the model of a training step is
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full is the paper's scale
seed: int = 0

# %%
import numpy as np
import xarray as xr

import lwlab as lw
from lwlab.activations import change, controls, curve, emergence, fit, massive, peak, places
from lwlab.activations.massive_dynamics import summary
from lwlab.models import toys

lw.charts.enable()
net = lw.load(model)
quick = profile == "quick"
n, length = (6, 48) if quick else (10, 128)
texts = lw.tasks.corpus("pydoc", tokens=length, model=net, n=n, seed=seed)
print(net)
print(f"{len(texts)} texts of up to {length} tokens, such as {texts[0][:60]!r}")

# %% [markdown]
# ## The idea in one picture
#
# For every text and layer: the largest $|h|$ in the stream, and the median of all $|h|$.

# %%
found = massive(net, texts)
sizes = xr.Dataset({"largest": found.largest, "median": found["median"]}).mean("prompt")
sizes.lw.profile(
    x="layer", log=True, width=460, height=230, title="A few numbers, thousands of times the rest",
    subtitle=f"|h| in the stream after each layer, mean of {len(texts)} texts",
)  # fmt: skip

# %% [markdown]
# The jump is one layer's work, and one layer undoes it. What falls in between is the *ratio*, because
# the median grows under a constant giant.
#
# ## The method
#
# $$r_l = \frac{\max |h_l|}{\operatorname{median} |h_l|}, \qquad
# \text{massive: } |a| > 100 \text{ and } |a| \ge 1000 \operatorname{median}|h_l| .$$
#
# Written out for one text and one layer, next to the library's number:

# %%
layer = int(found.ratio.mean("prompt").argmax("layer"))
stream = lw.cache(net, texts[0], "resid_post", layers=layer).resid_post.values
shown = np.abs(stream).max() / np.median(np.abs(stream))
print(f"after layer {layer}: {shown:.0f}")

where = places(found)
for p in where:
    print(
        f"massive after layers {p.layer} to {p.until}: position {p.position}, dimension "
        f"{p.dimension}, {p.value:,.0f}"
    )
firsts = sorted({str(t) for t in found.token.values[:, layer]})
print(f"whatever stands there: {firsts}")

# %% [markdown]
# ## What it does
#
# Set it once, where it has just appeared, and let the model run on. *zero* takes it away; *mean*
# gives every text the same giant; *bound* holds it within ten medians; the *controls* set other
# dimensions of the same position to nought.

# %%
outcome = None
if where:
    base = change(net, texts, where, "nothing")
    changes = {to: change(net, texts, where, to) for to in ("zero", "mean", "bound")}
    for i, drawn in enumerate(controls(net, where, 2, seed)):
        changes[f"control {i + 1}"] = change(net, texts, where, "zero", dimensions=drawn)
    outcome = summary(base, changes)
    print(f"as it is: {float(base.nll.mean()):.2f} nats a token")
    print(f"attention to the first token, as it is: {float(base.sink.mean()):.2f}")
    print(outcome.to_dataframe().round(3).to_string())
else:
    print("no activation of this model is massive, so there is nothing to change")

# %%
chart = None
if where:
    sinks = np.stack([base.sink.mean("prompt"), changes["zero"].sink.mean("prompt")])
    chart = lw.results.label(
        sinks, ("run", "layer"), {"run": ["as it is", "without"], "layer": base.layer.values},
        name="attention to the first token",
    ).lw.profile(
        x="layer", series="run", width=400, height=200, title="The giant and the attention sink",
        subtitle="mean over heads and queries, later layers",
    )  # fmt: skip
chart

# %% [markdown]
# ## How it comes: five parameters
#
# Over training steps $t$ the paper fits each layer's ratio by
#
# $$f(t) = A\,e^{-\lambda x}\log x + K, \qquad x = \gamma t + t_0 .$$
#
# It peaks at $t_\text{peak} = (e^{W(1/\lambda)} - t_0)/\gamma$ ($W$ is Lambert's function). If that
# lies in the training, the layer peaks early and decays; if beyond, the ratio rises like a logarithm.

# %%
if checkpoints.startswith("toys/"):
    recipe = toys.find(checkpoints.removeprefix("toys/").partition("@")[0])
    steps = [*recipe.keep, recipe.steps]
    small = lw.load(checkpoints.format(step=steps[-1]))
    reading = lw.tasks.corpus("pydoc", tokens=100, model=small, n=10, seed=seed)
else:
    steps = [0, *(2**i for i in range(10)), *range(1000, 143_000, 9000), 143_000]
    reading = lw.tasks.corpus("pydoc", tokens=100, model=net, n=10, seed=seed)
course = emergence(checkpoints, steps, reading)
fits = {
    int(i): fit(course.step.values, course.sel(layer=i).mean("prompt").values)
    for i in course.layer.values
}
table = xr.concat(
    [f.r2 for f in fits.values()], xr.DataArray(list(fits), dims="layer", name="layer")
)
print(table.to_pandas().round(3).to_string())

# %%
shown_layers = [course.layer.values[0], course.layer.values[-1]]
lines = {}
for i in map(int, shown_layers):
    lines[f"layer {i}"] = course.sel(layer=i).mean("prompt").values
    lines[f"layer {i}, fitted"] = fits[i].fitted.sel(rival="emergence").values
lw.results.label(
    np.stack(list(lines.values())), ("line", "log10(1 + step)"),
    {"line": list(lines), "log10(1 + step)": np.log10(1 + course.step.values)},
    name="largest / median",
).lw.profile(
    x="log10(1 + step)", series="line", width=460, height=240,
    title="From the first step to the last",
    subtitle=f"{checkpoints}: first and last layer, mean of {course.sizes['prompt']} texts",
)  # fmt: skip

# %%
for i, f in fits.items():
    A, lam, gamma, t0, K = f.parameters.values
    print(
        f"layer {i}: A={A:.3g} lambda={lam:.3g} gamma={gamma:.3g} t0={t0:.3g} K={K:.3g}; peak at "
        f"step {float(f.peak):.0f} of {steps[-1]}; lowest AIC: {f.aic.idxmin().values!s}"
    )

# %% [markdown]
# This small model has no giant, and its course is a dip and then a slow rise: $A$ is negative, and
# what the formula calls the peak is the bottom of the dip.
#
# ## Touch: a map of the giants
#
# The ratio (as a power of ten) for each text and layer. Click a cell: the token, the dimension and
# the value of the largest activation there.

# %%
power = np.log10(found.ratio).assign_coords(prompt=range(found.sizes["prompt"]))


def say(pick) -> str:
    """Return what the largest activation of a cell is."""
    cell = found.isel(layer=pick.row, prompt=pick.column)
    return (
        f"text {pick.column}, layer {pick.row}: {float(cell.value):,.1f} in dimension "
        f"{int(cell.dimension)} at position {int(cell.position)} ({str(cell.token.values)!r}), "
        f"{float(cell.ratio):,.0f} times the median"
    )


browser = lw.widgets.HeatMap(
    power.rename("log10 ratio"), x="prompt", y="layer", title="Largest |h| / median |h|"
)
browser.on_pick(say)
browser.pick(layer, 0)
browser

# %% [markdown]
# ## Claims

# %%
paper, sun = "2508.03616", "2402.17762"
yes, no = "reproduced", "not reproduced"
here = model == "smollm2-135m" and quick and seed == 0
pin = (lambda v: v) if here else (lambda v: None)
pin2 = (lambda v: v) if checkpoints == "toys/char-llama@{step}" and quick and seed == 0 else (
    lambda v: None
)  # fmt: skip
about = {"n": len(texts), "seed": seed, "model": net}
lw.claim(
    "massive-dynamics.shown-is-library", kind="exact", expect="< 1e-5",
    measured=abs(shown / float(found.ratio[0, layer]) - 1), **about,
    statement="the ratio written out above is the library's (relative)",
)  # fmt: skip

# %%
grid = np.linspace(0, 30, 30_001)
top = grid[curve(grid, 1, 0.08, 0.5, 1, 0).argmax()]
lw.claim(
    "massive-dynamics.peak-is-lambert", kind="exact", measured=abs(top - peak(0.08, 0.5, 1)),
    expect="<= 1e-3", n=len(grid),
    statement="the highest point of f on a grid is where Lambert's formula puts it (grid step 1e-3)",
)  # fmt: skip

# %%
known = np.unique(np.geomspace(1, 1000, 37).round())
truth = curve(known, 5, 0.5, 0.05, 1, 3)
back = fit(known, truth).fitted.sel(rival="emergence").values
lw.claim(
    "massive-dynamics.fit-finds-the-curve", kind="exact", expect="< 1e-4", n=len(known),
    measured=float(np.sqrt(((back - truth) ** 2).mean()) / truth.std()),
    statement="a course made by f without noise is found again (relative RMS)",
)  # fmt: skip

# %%
if where:
    lw.claim(
        "massive-dynamics.there-are-some", kind="paper", paper=sun, measured=where[0].position,
        expect="== 0", pinned=pin(yes), **about,
        statement="an activation of the first token is massive in most texts (its position)",
    )  # fmt: skip

# %%
ratio = found.ratio.mean("prompt")
middle = ratio.isel(layer=slice(net.n_layers // 2 - 2, net.n_layers // 2 + 3))
lw.claim(
    "massive-dynamics.in-the-middle", kind="paper", paper=sun, measured=float(middle.min()),
    expect=">= 1000", pinned=pin(yes), **about,
    statement="the five layers in the middle all have a ratio of 1,000 or more (least)",
)  # fmt: skip

# %%
step_up = found.largest.mean("prompt").values
lw.claim(
    "massive-dynamics.one-layer-makes-it", kind="paper", paper=sun, expect="> 10", pinned=pin(yes),
    measured=float((step_up[1:] / step_up[:-1]).max()), **about,
    statement="it comes in one layer: the largest |h| after a layer over that before, highest",
)  # fmt: skip

# %%
if outcome is not None:
    lw.claim(
        "massive-dynamics.needed", kind="paper", paper=sun, expect="> 1", pinned=pin(yes), **about,
        measured=float(outcome.loss.sel(change="zero")), unit="nats a token",
        statement="without it the model fails: loss with the activation at nought, less as it is",
    )  # fmt: skip

# %%
if outcome is not None:
    lw.claim(
        "massive-dynamics.constant-will-do", kind="paper", paper=sun, expect="< 0.05",
        pinned=pin(yes), measured=abs(float(outcome.loss.sel(change="mean"))), **about,
        statement="it need not know the text: loss with its mean over texts, less as it is (size)",
        unit="nats a token",
    )  # fmt: skip

# %%
if outcome is not None:
    others = [str(c) for c in outcome.change.values if str(c).startswith("control")]
    lw.claim(
        "massive-dynamics.placebo-dimensions", kind="paper", paper="control", expect="< 0.05",
        measured=float(np.abs(outcome.loss.sel(change=others)).max()), pinned=pin(yes), **about,
        statement="other dimensions of the same position are not needed (loss, largest size)",
        unit="nats a token",
    )  # fmt: skip

# %%
if outcome is not None:
    lw.claim(
        "massive-dynamics.makes-the-sink", kind="paper", paper=sun, expect="< 0.5", **about,
        measured=float(outcome.sink.sel(change="zero") / base.sink.mean()), pinned=pin(no),
        statement="without it the attention to the first token is less than half of what it was",
        note="later layers find the first token by other means as well",
    )  # fmt: skip

# %%
r2 = table.sel(rival="emergence")
lw.claim(
    "massive-dynamics.five-parameters-fit", kind="paper", paper=paper, measured=float(r2.mean()),
    expect="> 0.97", n=len(steps), seed=seed, model=checkpoints, pinned=pin2(no),
    statement="the curve fits the course of the layers: R^2, mean (the paper: 0.984)",
    note="with other seeds of this small model 0.84 and 0.90: a course of 10 texts in 800 steps is "
    "not smooth",
)  # fmt: skip

# %%
beats = np.mean(
    [float(f.aic.sel(rival="emergence") < f.aic.sel(rival="first order")) for f in fits.values()]
)
lw.claim(
    "massive-dynamics.better-than-a-step", kind="paper", paper=paper, measured=float(beats),
    expect=">= 0.5", n=len(fits), seed=seed, model=checkpoints, pinned=pin2(yes),
    statement="it beats a first-order step response by AIC in at least half of the layers (share)",
)  # fmt: skip

# %%
lw.claim(
    "massive-dynamics.none-at-first", kind="paper", paper=paper, expect="< 20", n=len(steps),
    measured=float(course.isel(step=0).mean("prompt").max()), model=checkpoints, seed=seed,
    pinned=pin2(yes), statement="nothing is massive before training (largest ratio of a layer)",
)  # fmt: skip

# %%
lw.claim(
    "massive-dynamics.small-model-has-some", kind="paper", paper=paper, expect="> 83",
    measured=float(course.isel(step=-1).mean("prompt").max()), model=checkpoints, seed=seed,
    n=len(steps), pinned=pin2(no),
    statement="trained, it has what Pythia-14M has (83): largest ratio of a layer",
    note="half a million weights and 800 steps make no giant",
)  # fmt: skip

# %% [markdown]
# Not measured here: the paper's prediction of the parameters from the architecture (it needs nine
# models), and its Pythia courses (with internet: `checkpoints`).
#
# ## Try it
#
# 1. **Later.** Take the giant away only after layer 20. Is it still needed?
# 2. **The second token.** Put a word in front of a text. Does the giant follow the word or the place?
# 3. **Whose work?** Which sublayer writes it: attention or MLP?
#
# The solutions are in the folded cells below.

# %% jupyter={"source_hidden": true}
# 1. Less and less: what needs it are the layers in between.
if where:
    for at in (where[0].layer, (where[0].layer + where[0].until) // 2, where[0].until):
        late = change(net, texts[:2], where, "zero", layer=at)
        extra = float((late.nll - base.nll[:2]).mean())
        print(f"at nought after layer {at}: {extra:+.2f} nats a token")

# %% jupyter={"source_hidden": true}
# 2. The place: whatever stands first has it.
for text in (texts[0], "So " + texts[0]):
    first = massive(net, text)
    print(repr(str(first.token.values[0, layer])), f"{float(first.ratio[0, layer]):,.0f}")

# %% jupyter={"source_hidden": true}
# 3. The MLP of the layer where it appears.
if where:
    p = where[0]
    parts = lw.cache(net, texts[0], ["attn_out", "mlp_out"], layers=p.layer)
    for part in ("attn_out", "mlp_out"):
        value = float(parts[part].values.squeeze()[p.position, p.dimension])
        print(f"{part} of layer {p.layer} writes {value:,.0f} into dimension {p.dimension}")
