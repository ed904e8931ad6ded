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
#     id: li2-grokking
#     family: dynamics
#     title: "Lazy, alone, together: how features appear in grokking"
#     paper: "2509.21519"
#     cost: {seconds: 45, memory_mb: 700}
#     model: square
# ---

# %% [markdown]
# # Lazy, alone, together: how features appear in grokking
#
# **The idea in one sentence:** a two-layer network that learns to add first learns the examples by
# heart; then weight decay lets each hidden node climb an energy of its own, to a single frequency;
# and only then do the nodes act on each other.
#
# Tian 2025, [arXiv:2509.21519](https://arxiv.org/abs/2509.21519) (Li₂)
#
# **Cost**: under a minute on two CPU cores, 0.7 GB of memory; the networks are trained here, in
# about two seconds each. Nothing is downloaded. Any modulus of 3 or more, any share of the sums and
# either activation will do: `lwlab run li2-grokking -p modulus=31 -p model=relu`. The text
# tells what modulus 23 and squares do.

# %% tags=["parameters"]
from typing import Literal

modulus: int = 23  # what the sums are taken by; odd or prime makes clean spectra
fraction: float = 0.75  # the share of all sums that is trained on
model: Literal["square", "relu"] = (
    "square"  # the two-layer network's activation; the theory is of squares
)
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full has more seeds and moduli
seed: int = 0

# %%
import numpy as np
import torch
import xarray as xr

import lwlab as lw
from lwlab.dynamics import (
    Run,
    addition,
    ascent,
    energy_gradient,
    purity,
    spectrum,
    stages,
    stream,
    train,
)

lw.charts.enable()
torch.set_num_threads(1)  # matrices this small are slower on several
quick = profile == "quick"
seeds = [seed + i for i in range(2 if quick else 5)]
problem = addition(modulus, fraction, seed=seed)
print(
    f"{modulus**2} sums modulo {modulus}; {len(problem.train)} are shown, {len(problem.test)} held "
    f"out. Below a share of {problem.critical:.3f} nothing should generalise."
)

# %% [markdown]
# ## The idea in one picture
#
# Train twice from the same start: with weight decay, and without.

# %%
usual = train(problem, activation=model, seed=seed)
without = train(problem, activation=model, decay=0.0, seed=seed)
curves = xr.Dataset(
    {
        "shown": usual.train_accuracy, "held out": usual.test_accuracy,
        "held out, no decay": without.test_accuracy,
    }
)  # fmt: skip
curves.lw.profile(
    x="step", width=460, height=230, title="Learnt by heart at once, understood much later",
    subtitle=f"share of the sums that are right, modulo {modulus}",
)  # fmt: skip

# %% [markdown]
# Both networks know their examples after thirty steps. Only the one whose weights decay goes on to
# the sums that it never saw. Why should *forgetting* teach it to add?
#
# ## The method
#
# With one-hot inputs $X$ ($n \times 2M$) and labels $\tilde Y$ (one-hot less $1/M$), the network is
#
# $$\hat Y = F V, \qquad F = \sigma(XW), \qquad \sigma(z) = z^2,$$
#
# and what reaches the hidden layer is $G_F = P(\tilde Y - FV)V^\top$, where $P$ takes off the mean
# over the samples. Write $\tilde F = PF$ and $\eta$ for the weight decay as a ridge.
#
# **I, lazy.** $V$ runs to its ridge solution while $F$ is still about what it was. There,
#
# $$G_F = \eta\,(\tilde F\tilde F^\top + \eta I)^{-1}\; \tilde Y\tilde Y^\top \tilde F\;
#        (\tilde F^\top\tilde F + \eta I)^{-1} .$$
#
# Without decay, $\eta = 0$ and nothing is left to learn from. With it, and many random nodes, $G_F$
# points along $\tilde Y\tilde Y^\top\tilde F$.
#
# **II, alone.** Column $j$ of $\tilde Y\tilde Y^\top\tilde F$ holds node $j$ only. So each node
# climbs $E(w) = \tfrac12 \lVert \tilde Y^\top \sigma(Xw)\rVert^2$, by itself.
#
# **III, together.** As the features explain the label, the two inverses stop being multiples of the
# identity, and nodes act on each other.
#
# Here is the energy, and its gradient by autograd, next to the library's closed form:

# %%
x, y = problem.x.double(), problem.targets.double()
w = torch.randn(2 * modulus, 8, generator=torch.Generator().manual_seed(seed)).double()
w.requires_grad_()
E = 0.5 * (y.T @ (x @ w) ** 2).square().sum(0)
E.sum().backward()
by_autograd, closed = w.grad, energy_gradient(w.detach(), problem)
print("energies of eight random nodes:", E.detach().numpy().round(1))

# %% [markdown]
# ## What a node finds when it climbs alone
#
# Start 64 random nodes on the unit sphere and let them go up, with all $M^2$ sums at hand. Each ends
# as one wave, the same in both summands. The placebo climbs towards labels that were shuffled.

# %%
peaks = ascent(problem, starts=64, seed=seed)
shuffled = addition(modulus, fraction, seed=seed, shuffled=True)
placebo = ascent(shuffled, starts=64, seed=seed)
found = sorted(set(peaks.frequency.values.ravel().tolist()))
print(f"frequencies found: {found}")
print(
    f"energy {float(peaks.energy.min()):.4f} to {float(peaks.energy.max()):.4f}; M/4 = {modulus / 4}"
)
print(
    f"purity {float(peaks.purity.min()):.4f}; shuffled labels: {float(placebo.purity.median()):.2f}"
)


def waves(result: xr.Dataset, which: list[int]) -> xr.DataArray:
    """Return the first half of some nodes as curves over the summand."""
    half = result.weights.values[:modulus, which]
    return lw.results.label(
        half, ("summand a", "node"), {"summand a": range(modulus), "node": [f"start {i}" for i in which]},
        name="weight",
    )  # fmt: skip


waves(peaks, [0, 1, 2]).lw.profile(
    x="summand a", series="node", width=460, height=200, title="Three nodes at the top of their energy",
)  # fmt: skip

# %% [markdown]
# ## The three stages in a training
#
# What the theory speaks of can be measured while the network of the first picture trains: how far
# $F$ has moved, how far $V$ is from its ridge solution, how well $G_F$ points where nodes learn
# alone, and how pure the nodes are.

# %%
ends = stages(usual)
print(
    f"I ends at step {ends['lazy']:.0f} (examples known), II at step {ends['alone']:.0f} (sums known)"
)
signs = xr.Dataset(
    {
        "alignment of G_F": usual.alignment, "no decay: alignment": without.alignment,
        "purity (median)": usual.purity, "V from its ridge": usual.ridge_gap.clip(max=1),
    }
)  # fmt: skip
signs.lw.profile(
    x="step", width=460, height=230, title="What happens below the surface",
    subtitle="cosine with the signal of nodes that learn alone; share of power in one frequency",
)  # fmt: skip

# %%
ladder = np.argsort(-purity(torch.tensor(usual.weights.values), modulus).numpy())[:60]
power = spectrum(torch.tensor(usual.weights.values[:, ladder]), modulus).sum(1)
share = power / power.sum(-1, keepdim=True)
lw.results.label(
    share, ("node", "frequency"), {"node": range(len(ladder)), "frequency": range(1, modulus // 2 + 1)},
    name="share of power",
).lw.heatmap(
    x="frequency", y="node", origin="upper", width=300, height=300,
    title="The sixty purest nodes after training",
)  # fmt: skip

# %% [markdown]
# ## Data, decay, start, width
#
# The same network, with one thing changed at a time.

# %%
variants = {
    "usual": {}, "no decay": {"decay": 0.0}, "V starts at nought": {"start": "zero"},
}  # fmt: skip
runs = {
    name: [train(problem, every=25, activation=model, seed=s, **kw) for s in seeds]
    for name, kw in variants.items()
}
scarce = addition(modulus, 0.8 * problem.critical, seed=seed)
runs["too few sums"] = [train(scarce, every=25, activation=model, seed=s) for s in seeds]
for name, several in runs.items():
    last = [float(r.test_accuracy[-1]) for r in several]
    known = [stages(r)["alone"] for r in several]
    print(f"{name:>20}: held-out accuracy {np.round(last, 2)}, sums known at step {known}")

# %%
shares = {0.75: [], 1.25: []}
for m in (17, 23) if quick else (17, 23, 31, 47):
    for times in shares:
        near = addition(m, times * addition(m).critical, seed=seed)
        end = train(near, steps=1200, every=1200, activation=model, seed=seed)
        shares[times].append(float(end.test_accuracy[-1]))
        print(f"M={m}, {times} of the critical share {near.critical:.2f}: {shares[times][-1]:.2f}")

# %%
widths = [12, 16, 20, 24]
ahead = [
    [
        float(train(problem, every=600, width=k, optimizer=o, activation=model, seed=s).test_accuracy[-1])
        for o in ("adam", "muon")
    ]
    for k in widths for s in seeds
]  # fmt: skip
lead = lw.stats.bootstrap(np.array([muon - adam for adam, muon in ahead]), seed=seed)
print(f"held-out accuracy of narrow networks, Muon less Adam: {lead}")

# %% [markdown]
# ## Touch: train it yourself
#
# Choose, press **Start anew**, watch; **Pause** keeps everything and **Go on** goes on. What does a
# share of 0.4 do, just above the critical one? And nodes that learn by Muon?

# %%
monitor = lw.widgets.training(
    lambda share, weight_decay, optimizer, width: stream(
        Run(addition(modulus, share, seed=seed), decay=weight_decay, optimizer=optimizer,
            width=width, activation=model, seed=seed), 600,
    ),
    {
        "Accuracy": ["train_accuracy", "test_accuracy"],
        "Inside": ["alignment", "purity", "overlap"],
        "What reaches the hidden layer": ["gradient"],
    },
    600,
    knobs={
        "share": [0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9], "weight_decay": [0.0, 1e-4, 2e-4, 1e-3],
        "optimizer": ["adam", "adamw", "muon"], "width": [16, 32, 64, 256],
    },
    values={"share": 0.75, "weight_decay": 2e-4, "optimizer": "adam", "width": 256},
    title="Grokking, live", subtitle=f"addition modulo {modulus}",
)  # fmt: skip
monitor.order("start")
monitor.wait()
monitor

# %% [markdown]
# ## Claims

# %%
paper, yes, no = "Li2 (2509.21519)", "reproduced", "not reproduced"
pin = (lambda verdict: verdict) if (modulus, fraction, model, quick, seed) == (
    23, 0.75, "square", True, 0
) else (lambda verdict: None)  # fmt: skip
worst = float((by_autograd - closed).abs().max() / closed.abs().max())
lw.claim(
    "li2-grokking.field-is-gradient", kind="exact", measured=worst, expect="< 1e-10", n=8, seed=seed,
    statement="the field of stage II is the gradient of the energy (autograd, relative)",
)  # fmt: skip

# %%
ridged = Run(problem, decay=2e-3, seed=seed)
with torch.no_grad():
    ridged.v.copy_(ridged.ridge())
    signal, _ = ridged.backprop()
    f = ridged.hidden(problem.x[problem.train]).double()
    f -= f.mean(0)
    label = problem.targets[problem.train].double()
    label -= label.mean(0)
    eta, eye = ridged.eta, torch.eye
    over_samples = torch.linalg.inv(f @ f.T + eta * eye(len(f)))
    over_nodes = torch.linalg.inv(f.T @ f + eta * eye(f.shape[1]))
    theory = eta * over_samples @ label @ (label.T @ f) @ over_nodes
lw.claim(
    "li2-grokking.signal-at-ridge", kind="exact", expect="< 1e-3", n=len(f), seed=seed,
    measured=float((signal.double() - theory).norm() / theory.norm()),
    statement="with V at its ridge solution, G_F is the closed form above (relative)",
)  # fmt: skip

# %%
same = float((peaks.frequency.sel(half="a") == peaks.frequency.sel(half="b")).mean())
lw.claim(
    "li2-grokking.one-frequency", kind="exact", measured=float(peaks.purity.min()) * same,
    expect="> 0.999", n=64, seed=seed,
    statement="every maximum holds one frequency, the same in both halves (least purity)",
)  # fmt: skip

# %%
if modulus % 2:
    lw.claim(
        "li2-grokking.peak-energy", kind="exact", measured=float(peaks.energy.max() - peaks.energy.min())
        + abs(float(peaks.energy.mean()) - modulus / 4), expect="< 1e-4", n=64, seed=seed,
        statement="and has the energy M/4 at |w| = 1 (the paper's M/16 at |w|^2 = 1/2)",
    )  # fmt: skip

# %%
lw.claim(
    "li2-grokking.placebo-labels", kind="paper", paper="control", measured=float(placebo.purity.median()),
    expect="< 0.5", n=64, seed=seed, pinned=pin(yes),
    statement="with shuffled labels the maxima hold no single frequency (median purity)",
)  # fmt: skip

# %%
early = [float(r.alignment.sel(step=slice(100, 200)).mean()) for r in runs["usual"]]
bare = [float(r.alignment.sel(step=slice(100, 200)).mean()) for r in runs["no decay"]]
lw.claim(
    "li2-grokking.decay-leaves-the-label", kind="paper", paper=paper, measured=min(early),
    expect="> 0.3", n=len(seeds), seed=seed, pinned=pin(yes),
    statement="between knowing the examples and knowing the sums, G_F points where nodes learn alone "
    "(cosine, least of the seeds)",
)  # fmt: skip

# %%
lw.claim(
    "li2-grokking.no-decay-no-label", kind="paper", paper=paper, measured=max(bare), expect="< 0.1",
    n=len(seeds), seed=seed, pinned=pin(yes),
    statement="and does not without weight decay (cosine, largest of the seeds)",
)  # fmt: skip

# %%
last = {k: [float(r.test_accuracy[-1]) for r in v] for k, v in runs.items()}
lw.claim(
    "li2-grokking.groks", kind="paper", paper=paper, measured=min(last["usual"]), expect="> 0.95",
    n=len(seeds), seed=seed, pinned=pin(yes),
    statement="with enough sums and weight decay it generalises (held-out accuracy, least)",
)  # fmt: skip

# %%
lw.claim(
    "li2-grokking.needs-decay", kind="paper", paper=paper, measured=max(last["no decay"]),
    expect="< 0.3", n=len(seeds), seed=seed, pinned=pin(yes),
    statement="without weight decay it does not (held-out accuracy, largest)",
)  # fmt: skip

# %%
lw.claim(
    "li2-grokking.needs-data", kind="paper", paper=paper,
    measured=max(*last["too few sums"], *shares[0.75]), expect="< 0.2", n=len(seeds) + len(shares[0.75]),
    seed=seed, pinned=pin(yes),
    statement="below the critical share 2.7482 log(M)/M it does not (held-out accuracy, largest)",
)  # fmt: skip

# %%
lw.claim(
    "li2-grokking.critical-share", kind="paper", paper=paper, measured=min(shares[1.25]),
    expect="> 0.95", n=len(shares[1.25]), seed=seed, pinned=pin(yes),
    statement="and a quarter above it, in 1,200 steps, it does (held-out accuracy, least)",)  # fmt: skip

# %%
first = [stages(r)["alone"] for r in runs["usual"]]
nought = [stages(r)["alone"] for r in runs["V starts at nought"]]
lw.claim(
    "li2-grokking.start-at-nought", kind="paper", paper=paper, expect="> 1.25",
    measured=float(np.mean(first) / np.mean(nought)), n=len(seeds), seed=seed, pinned=pin(yes),
    statement="V that starts at nought makes it faster: steps until the sums are known, ratio",
    note="the paper has up to 10",
)  # fmt: skip

# %%
lazy = float(usual.moved.sel(step=ends["lazy"]))
lw.claim(
    "li2-grokking.hidden-layer-waits", kind="paper", paper=paper, measured=lazy, expect="< 0.5",
    n=1, seed=seed, pinned=pin(no),
    statement="when the examples are known, the hidden layer has hardly moved: |F - F_0| / |F_0|",
    note="the stage is lazy for small rates and wide layers; Adam at 5e-3 moves F at once",
)  # fmt: skip

# %%
lw.claim(
    "li2-grokking.features-are-waves", kind="paper", paper=paper, expect="> 2", n=1, seed=seed,
    measured=float(usual.purity[-1] / usual.purity[0]), pinned=pin(yes),
    statement="training makes nodes purer: median purity, last / first",
)  # fmt: skip

# %%
later = [
    float(
        r.alignment.sel(step=slice(500, 600)).mean() - r.alignment.sel(step=slice(150, 250)).mean()
    )
    for r in runs["usual"]
]
lw.claim(
    "li2-grokking.then-together", kind="paper", paper=paper, measured=max(later), expect="< 0", n=1,
    seed=seed, pinned=pin(yes),
    statement="once the sums are known, G_F leaves the direction of nodes that learn alone (change "
    "of the cosine, least of the seeds)",
)  # fmt: skip

# %%
lw.claim(
    "li2-grokking.muon-needs-fewer", kind="paper", paper=paper, measured=lead.mean,
    interval=(lead.low, lead.high), expect="> 0.1", n=len(ahead), seed=seed, pinned=pin(no),
    statement=f"narrow networks ({widths} nodes) do better by Muon: held-out accuracy less Adam's",
    note="a tenth of the accuracy was asked for",
)  # fmt: skip

# %% [markdown]
# Not measured here: non-abelian groups, the repulsion of like nodes in stage III, and the paper's
# scaling over many moduli (`profile="full"` has four).
#
# ## Try it
#
# 1. **Even moduli.** Let nodes climb for modulus 24. Which energies are there now, and which
#    frequency has the other one?
# 2. **Learning rate.** With a smaller rate the hidden layer should wait longer. Does it?
# 3. **ReLU.** The theory is about squares. Does a network of ReLUs find waves?
#
# The solutions are in the folded cells below.

# %% jupyter={"source_hidden": true}
# 1. The frequency M/2 is real: all its power is in one component, and its energy is twice as high.
even = ascent(addition(24), starts=200, seed=seed)
for f in sorted(set(even.frequency.sel(half="a").values.tolist())):
    at = even.energy.where(even.frequency.sel(half="a") == f).dropna("start")
    print(f"frequency {f}: energy {float(at.min()):.3f} to {float(at.max()):.3f}")

# %% jupyter={"source_hidden": true}
# 2. Yes, if not by much: at a tenth of the rate F has moved less when the examples are known.
for rate in (5e-3, 5e-4):
    slow = train(problem, steps=300, every=10, rate=rate, seed=seed)
    when = stages(slow)["lazy"]
    moved = float(slow.moved.sel(step=when)) if np.isfinite(when) else float("nan")
    print(f"rate {rate}: examples known at step {when:.0f}, hidden layer moved by {moved:.2f}")

# %% jupyter={"source_hidden": true}
# 3. Much more slowly, and less pure in the time given.
relu = train(problem, activation="relu", every=100, seed=seed)
print(f"held-out accuracy {float(relu.test_accuracy[-1]):.2f}, purity {float(relu.purity[-1]):.2f}")
