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
#     id: circuits
#     family: attribution
#     title: "MIB: A Mechanistic Interpretability Benchmark"
#     paper: "2504.13151"
#     cost: {seconds: 60, memory_mb: 1600}
#     model: smollm2-135m
# ---

# %% [markdown]
# # Circuits: which wires carry *Mary*?
#
# **The idea in one sentence:** a heat map says where things happen; a *circuit* claims that a
# handful of wires between components is enough to make them happen, and the claim can be tested by
# cutting all the others.
#
# How to judge circuits: Mueller et al. 2025, MIB, [arXiv:2504.13151](https://arxiv.org/abs/2504.13151).
# How to find them: Hanna, Pezzelle & Belinkov 2024 (EAP-IG),
# [arXiv:2403.17806](https://arxiv.org/abs/2403.17806); Jafari et al. 2025 (RelP),
# [arXiv:2508.21258](https://arxiv.org/abs/2508.21258); Conmy et al. 2023 (ACDC),
# [arXiv:2304.14997](https://arxiv.org/abs/2304.14997). The circuit looked for: Wang et al. 2022,
# [arXiv:2211.00593](https://arxiv.org/abs/2211.00593), in GPT-2 small.
#
# **Cost** with SmolLM2-135M: about a minute on two CPU cores, 1.6 GB of memory. Any decoder will do,
# with grouped keys and values too: `lwlab run circuits -p model=gpt2`. The pinned verdicts are
# SmolLM2-135M's, the only real model tried.

# %% tags=["parameters"]
from typing import Literal

model: str = "smollm2-135m"  # a name from `lwlab models`, a Hugging Face id or a folder
profile: Literal["quick", "full"] = "quick"  # quick is what CI runs; full takes 32 prompts
n: int = 8  # prompts, in pairs that corrupt each other
n_pruned: int = 2  # of these, how many exact pruning measures every edge on
steps: int = 5  # of integrated gradients
start: int = 80  # edges that exact pruning starts from
draws: int = 2  # random circuits of each size
seed: int = 0

# %%
import tempfile
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

import lwlab as lw
from lwlab.attribution import circuits, edges
from lwlab.attribution.circuits import Circuit, Cutter, Graph, prune
from lwlab.attribution.circuits.panel import CircuitPanel
from lwlab.models import handmade

lw.charts.enable()
if profile == "full":
    n, n_pruned, start, draws = max(n, 32), max(n_pruned, 8), max(start, 300), max(draws, 5)
net = lw.load(model)
task = lw.tasks.ioi(net, n=n, seed=seed)
graph = Graph.of(net)
print(f"{len(graph.senders)} senders, {len(graph.receivers)} receivers, {graph.n_edges} edges")
task.to_frame().head(2)

# %% [markdown]
# Heads and MLPs write into the stream, and all that come later read the sum. An **edge** is one
# summand in one reader's input: from a sender (the input, a head, an MLP) to a receiver (a head's
# query, a key or value shared by a group of heads, an MLP, the logits). A **circuit** is a set of
# edges. Cut all others: they carry what their sender says *on the corrupt prompt*, in which the
# other person gives.
#
# ## The idea in one picture
#
# How much of the answer is left when every edge is kept, the best half percent, as many at random,
# and none?

# %%
cutter = Cutter(net, task, memory=1e8)  # what all runs of this notebook share is computed once
names = {"relp": "RelP", "eap": "EAP", "eap-ig-inputs": "EAP-IG"}
scores = edges.scores(net, cutter.pair, list(names), steps=steps, tolerance=None, memory=1.5e8)
few = lw.circuit(scores.sel(technique="eap-ig-inputs"), keep=0.005)
four = {
    "all edges": Circuit.of(graph, graph.exists),
    f"{len(few)} edges by EAP-IG": few,
    f"{len(few)} edges at random": Circuit.random(graph, len(few), seed),
    "no edge": Circuit.of(graph, []),
}
picture = circuits.faithfulness(net, cutter, four)
table = picture[["faithfulness", "low", "high"]].to_dataframe().reset_index()
base = alt.Chart(table).encode(y=alt.Y("circuit:N", sort=list(four), title=None))
bars = base.mark_bar(color="#0072b2").encode(
    x=alt.X("faithfulness:Q", title="share of the effect on the answer")
)
spans = base.mark_rule(color="black").encode(x="low:Q", x2="high:Q")
(bars + spans).properties(width=420, height=120, title="What is left when all other edges are cut")

# %% [markdown]
# ## The method
#
# With $x$ the clean prompt and $x'$ its corrupt twin, receiver $r$ of the cut run reads
#
# $$h_r = h + \sum_{s \to r \text{ cut}} (o'_s - o_s),$$
#
# where $h$ is the stream of this very run, $o_s$ what sender $s$ adds to it *in this run*, and
# $o'_s$ what it adds on $x'$. With $m$ the metric (logit of the right name minus logit of the
# other), averaged over prompts,
#
# $$f(C) = \frac{m(C) - m(\varnothing)}{m(M) - m(\varnothing)}, \qquad
# \text{CPR} = \int_0^1 f(C_k)\,dk, \qquad \text{CMD} = \int_0^1 |1 - f(C_k)|\,dk,$$
#
# $k$ being the share of edges kept: the *circuit performance ratio* asks for circuits that do the
# task, the *circuit-model distance* for circuits that do what the model does. Cutting one edge into
# the logits can be written out in three lines:

# %%
last = graph.n_layers - 1
into_logits = np.abs(scores.sel(technique="relp", receiver="logits").mean("prompt"))
sender = into_logits[into_logits.sender_kind == "mlp"].idxmax("sender").item()
at = {"layers": int(sender[1:]), "positions": -1}
(a, b) = (lw.cache(net, list(t), "mlp_out", **at).mlp_out for t in (task.clean, task.corrupt))
h = lw.cache(net, list(task.clean), "resid_post", layers=last, positions=-1).resid_post
shown = h.values[:, 0, 0] + (b.values - a.values)[:, 0, 0]  # h + (o'_s - o_s)
by_hand = task.metric(net.unembed(torch.tensor(shown)).detach())
library = cutter.metrics(graph.exists & ~graph.mask([(sender, "logits")]))[0]
mismatch = float((by_hand - library).abs().max())
print(f"{sender} -> logits cut: metric {cutter.clean.mean():.3f} -> {by_hand.mean():.3f}; "
      f"by hand and by the library: {mismatch:.1e} apart")  # fmt: skip

# %% [markdown]
# Which edges to keep? A first-order estimate of every edge costs a few runs: the difference of what
# the sender adds, times the slope of the metric at the stream that the receiver reads. **EAP** takes
# the gradient on $x'$, **EAP-IG** averages it on the way from $x'$ to $x$, **RelP** lets relevance
# take its place. Then edges are taken greedily from the logits downwards, and what dangles (reached
# by nothing, or reaching nothing) is left out.
#
# ### Do these find a circuit that is known?
#
# Four models whose integer weights were written down, not trained (`lw.models.handmade`), with
# heads and MLPs beside the circuit whose output nobody reads. Found edges must be exactly the true
# ones.

# %%
rows, wrong = [], 0
for name in handmade.NAMES:
    made = handmade.build(name)
    asked, true = made.task(4, seed), set(made.circuit())
    guesses = edges.scores(made.model, asked, list(names), steps=steps, tolerance=None)
    found = {label: lw.circuit(guesses.sel(technique=t), above=1e-4) for t, label in names.items()}
    found["exact pruning"] = prune(made.model, asked, tau=1e-4)
    errors = {label: len(set(c.names) ^ true) for label, c in found.items()}
    wrong += sum(errors.values())
    wires = ", ".join(f"{s}→{r}" for s, r in made.circuit())
    rows.append({"model": name, "true edges": len(true), **errors, "the circuit": wires})
pd.set_option("display.max_colwidth", 160)
pd.DataFrame(rows).set_index("model")

# %% [markdown]
# (Under each technique: how many edges it has wrong.) So much for models without noise.
#
# ## Results
#
# ### Faithfulness of circuits of growing size
#
# At MIB's ten sizes, with every circuit really run. Grey: random circuits with as many edges, none
# of them dangling.

# %%
curve = circuits.curve(net, cutter, scores, random=draws, seed=seed)
areas = circuits.areas(curve)
long = curve[["faithfulness", "low", "high", "edges"]].to_dataframe().reset_index()
long["scores"] = long.technique.map(names)
chance = curve.random.to_dataframe().reset_index()
x = alt.X("size:Q", scale=alt.Scale(type="log"), title="share of edges kept",
          axis=alt.Axis(format="~p", values=list(circuits.SIZES)))  # fmt: skip
colour = alt.Color("scores:N", scale=alt.Scale(range=["#d55e00", "#0072b2", "#009e73"]), title=None)
lines = alt.Chart(long).encode(x=x, color=colour)
drawn = lines.mark_line(point=True).encode(
    y=alt.Y("faithfulness:Q", title="faithfulness f"), tooltip=["scores", "edges", "faithfulness"]
)
bands = lines.mark_area(opacity=0.15).encode(y="low:Q", y2="high:Q")
grey = alt.Chart(chance).mark_line(color="#888", strokeDash=[4, 3]).encode(
    x=x, y="random:Q", detail="draw:N"
)  # fmt: skip
(bands + grey + drawn).properties(
    width=480, height=260, title=f"Faithfulness against size, {len(task)} prompts"
)

# %%
worth = areas[["cpr", "cmd"]].to_dataframe().rename(index=names)
worth.loc["random, mean"] = [areas.random_cpr.mean().item(), areas.random_cmd.mean().item()]
for share in (0.001, 0.005, 0.01):
    column = curve.faithfulness.sel(size=share)
    worth[f"f at {share:.1%}"] = [*column.values, curve.random.sel(size=share).mean().item()]
worth.round(3)

# %% [markdown]
# Edges were ranked by size. MIB's code can also rank by *signed* score, which asks only for edges that
# help. Such a circuit does better than the model: f above 1, because the edges that hold the answer
# back are cut. That is why two areas are needed: CPR alone would call it a better circuit.

# %%
helping = circuits.curve(
    net, cutter, scores.sel(technique=["eap-ig-inputs"]), circuits.SIZES[:6], absolute=False
)
helping.faithfulness.isel(technique=0).to_series().rename("f, edges that help").round(
    2
).to_frame().T

# %% [markdown]
# ### Exact pruning
#
# The estimates name candidates; now every edge of a small circuit is really cut, and goes if that
# moves f by less than 0.01, from the logits downwards. Are the circuits good for prompts that took
# no part in finding them?

# %%
first = lw.circuit(scores.sel(technique="eap-ig-inputs"), keep=start)
small = prune(net, task.subset(slice(0, n_pruned)), first, tau=0.01)
unseen = lw.tasks.ioi(net, n=n, seed=seed + 1)
pruned = {"first": first, "pruned": small, "random": Circuit.random(graph, len(small), seed)}
seen = circuits.faithfulness(net, cutter, pruned)
new = circuits.faithfulness(net, unseen, pruned)
print(f"{small!r}: {small.about['runs']} runs of {n_pruned} prompts")
pd.DataFrame(
    {"edges": seen.edges, "f": seen.faithfulness, "f, unseen prompts": new.faithfulness},
    index=list(pruned),
).round(3)

# %% [markdown]
# ### Which heads, and what they read
#
# Heads of the pruned circuit. Of the edges into each: how many queries, keys and values. Then where
# each looks from the last token: at the name to answer (IO), the name that comes twice (S1, S2), the
# first token (the sink), itself.

# %%
layers = sorted({i for i, _ in small.heads})
pattern = lw.cache(net, list(task.clean), "attn_pattern", layers=layers).attn_pattern
spots = {k: task.positions[k].tolist() for k in ("IO", "S1", "S2", "END")}
spots["first token"] = [0] * len(task)


def looks(layer: int, head: int, spot: str) -> float:
    here = pattern.sel(layer=layer, head=head)
    queries = spots["END"]
    return float(np.mean([here[i, queries[i], p].item() for i, p in enumerate(spots[spot])]))


exact = small.to_frame().set_index(["sender", "receiver"]).score
rows = []
for layer, head in small.heads:
    name, g = f"a{layer}.h{head}", head // graph.group
    inputs = {"q": f"{name}<q>", "k": f"a{layer}.kv{g}<k>", "v": f"a{layer}.kv{g}<v>"}
    row = {"head": name} | {k: sum(r == to for _, r in small.names) for k, to in inputs.items()}
    row["to logits"] = round(exact.get((name, "logits"), np.nan), 3)
    rows.append(row | {k: looks(layer, head, k) for k in spots})
heads = pd.DataFrame(rows).set_index("head")
attention = lw.results.label(
    heads[list(spots)].values, ("circuit_head", "looked_at"),
    {"circuit_head": list(heads.index), "looked_at": list(spots)}, name="attention from END",
)  # fmt: skip
display(
    attention.lw.heatmap(x="looked_at", y="circuit_head", title="Attention from the last token")
)
heads.iloc[:, :4]

# %%
for kind, pick in (("values", "<v>"), ("queries", "<q>"), ("keys", "<k>")):
    told = [f"{s}→{r}" for s, r in small.names if r.endswith(pick)]
    print(f"{kind} ({len(told)}): {', '.join(told)}")

# %% [markdown]
# The plan of the circuit in GPT-2 small (Wang et al.) has name movers at the end: heads that look
# from the last token at IO and write its name to the logits; what makes them look there comes
# through their *queries*, from heads that look at S2, the name that comes twice. SmolLM2's plan is
# that one, in layers 19 to 24: a19.h2 and a20.h0 look at S2 and write into the queries of layer 23;
# most heads of layer 23 that write to the logits look at IO; a24.h4 looks there too and writes
# *against* it. And one head is not in that plan: a23.h3 looks at S2 itself, speaks against the name
# it sees there, and matters most.
#
# One thing this circuit cannot show. Clean and corrupt prompts differ in S2 alone, so an edge that
# says the same in both (who IO is, where S1 stands) can be cut without any effect, and is not in it.
#
# ### As a file
#
# A circuit is written as JSON: sizes, nodes, edges with their scores, and where they come from.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "ioi.json"
    text = small.to_json(path)
    again = Circuit.from_json(path)
round_trip = bool((again.edges == small.edges).all() and again.graph == small.graph)
print(text[:420], "...")

# %% [markdown]
# ## Touch
#
# Fewer and fewer edges: the model runs again at each setting, with all other edges cut. When does
# the answer break? Which components are left at the end? Click one to see its edges.

# %%
panel = CircuitPanel(net, cutter, scores.assign_coords(technique=list(names.values())))
panel.set("EAP-IG")

# %% [markdown]
# ## Claims
#
# ### What mathematics says

# %%
same = {"n": len(task), "seed": seed, "model": net}
ends = cutter.metrics(np.stack([graph.exists, np.zeros_like(graph.exists)]))
with torch.no_grad():
    plain = [
        task.metric(net.module(input_ids=task.tokens(net, w).ids).logits[:, -1])
        for w in ("clean", "corrupt")
    ]
lw.claim(
    "circuits.nothing-cut-is-the-model", kind="exact", expect="< 1e-3", **same,
    measured=float((ends[0] - plain[0]).abs().max()),
    statement="with no edge cut the metric is the plain model's on the clean prompts (difference)",
)  # fmt: skip

# %%
lw.claim(
    "circuits.all-cut-is-the-corrupt-run", kind="exact", expect="< 1e-3", **same,
    measured=float((ends[1] - plain[1]).abs().max()),
    statement="with every edge cut the metric is the plain model's on the corrupt prompts",
)  # fmt: skip

# %%
lw.claim(
    "circuits.shown-is-library", kind="exact", measured=mismatch, expect="< 1e-3", **same,
    statement="one edge into the logits, cut by hand and by the library: difference of the metric",
)  # fmt: skip

# %%
rng = np.random.default_rng(seed)
loose = few.edges | (graph.exists & (rng.random(graph.exists.shape) < 0.001))
tight = circuits.trim(graph, loose)
two = Cutter(net, task.subset(slice(0, 2))).metrics(np.stack([loose, tight]))
lw.claim(
    "circuits.dangling-edges-do-nothing", kind="exact", expect="< 1e-3",
    measured=float((two[0] - two[1]).abs().max()), **{**same, "n": 2},
    statement=f"leaving out {int(loose.sum() - tight.sum())} dangling edges moves no metric",
)  # fmt: skip

# %%
lw.claim(
    "circuits.known-circuits-are-found", kind="exact", measured=wrong, expect="== 0", seed=seed, n=4,
    statement="edges that EAP, EAP-IG, RelP and exact pruning have wrong in four handmade models",
)  # fmt: skip

# %%
lw.claim(
    "circuits.json-there-and-back", kind="exact", measured=round_trip, expect="true",
    statement="a circuit read back from its JSON is the same circuit",
)  # fmt: skip

# %% [markdown]
# ### What the papers say
#
# Intervals are 95 %, over pairs of prompts.

# %%
cmd, cpr = areas.cmd, areas.cpr


def at_size(technique: str, size: float) -> tuple[float, tuple[float, float]]:
    here = curve.sel(technique=technique, size=size)
    return here.faithfulness.item(), (here.low.item(), here.high.item())


lw.claim(
    "circuits.ig-beats-eap", kind="paper", expect="> 0", pinned={"smollm2-135m": "reproduced"},
    measured=float(cmd.sel(technique="eap") - cmd.sel(technique="eap-ig-inputs")), **same,
    paper="2403.17806", statement="CMD of EAP less CMD of EAP-IG: circuits by EAP-IG are more faithful",
)  # fmt: skip

# %%
lw.claim(
    "circuits.relp-beats-eap", kind="paper", expect="> 0", pinned={"smollm2-135m": "not reproduced"},
    measured=float(cmd.sel(technique="eap") - cmd.sel(technique="relp")), paper="2508.21258", **same,
    statement="CMD of EAP less CMD of RelP: circuits by RelP are more faithful",
    note="RelP leads at the two smallest sizes, EAP at most of the larger ones; the paper compares "
    "nodes and sparse features",
)  # fmt: skip

# %%
value, interval = at_size("relp", 0.001)
lw.claim(
    "circuits.relp-beats-eap-when-tiny", kind="paper", expect="> 0", **same, paper="2508.21258",
    pinned={"smollm2-135m": "reproduced"}, measured=value - at_size("eap", 0.001)[0],
    statement="f of RelP less f of EAP at a thousandth of all edges",
)  # fmt: skip

# %%
lw.claim(
    "circuits.relp-is-as-good-as-ig", kind="paper", expect="< 0.01", paper="2508.21258", **same,
    pinned={"smollm2-135m": "not reproduced"},
    measured=float(cmd.sel(technique="relp") - cmd.sel(technique="eap-ig-inputs")),
    statement=f"CMD of RelP less CMD of EAP-IG with {steps} steps, which costs {steps} times as much",
)  # fmt: skip

# %%
lw.claim(
    "circuits.far-from-random", kind="paper", expect="> 0.3", paper="2504.13151", **same,
    pinned={"smollm2-135m": "reproduced"},
    measured=float(areas.random_cmd.min() - cmd.max()),
    statement="CMD of the best random circuits less CMD of the worst technique",
)  # fmt: skip

# %%
value, interval = at_size("eap-ig-inputs", 0.01)
lw.claim(
    "circuits.one-percent-of-edges", kind="paper", measured=value, interval=interval, expect=">= 0.87",
    paper="2211.00593: 87 %, by 1.5 % of pairs of head and position", **same,
    pinned={"smollm2-135m": "not reproduced"},
    statement="share of the effect carried by one percent of the edges (EAP-IG)",
    note="edges by size, negative ones too; two percent suffice. The paper ablates nodes to a mean",
)  # fmt: skip

# %%
lw.claim(
    "circuits.helping-edges-beat-the-model", kind="paper", expect="> 1", paper="2504.13151", **same,
    pinned={"smollm2-135m": "reproduced"}, measured=float(helping.faithfulness.max()),
    statement="the largest f of circuits of edges that help: more than the whole model's",
)  # fmt: skip

# %%
direct = heads["to logits"].dropna().sort_values()
strongest = direct.abs().idxmax() if len(direct) else ""
ahead = heads.IO - heads[["S1", "S2"]].max(axis=1)
lw.claim(
    "circuits.strongest-head-looks-at-io", kind="paper", expect="> 0.1", **same,
    paper="2211.00593, section 3.1", pinned={"smollm2-135m": "not reproduced"},
    measured=float(ahead[strongest]) if strongest else 0.0,
    statement="attention to IO less that to S1 or S2, of the head whose edge to the logits matters "
    f"most ({strongest})",
    note="it looks at S2, the only word that differs here, and speaks against the name there",
)  # fmt: skip

# %%
for_it, against = direct[direct > 0], direct[direct < 0]
lw.claim(
    "circuits.name-movers", kind="paper", expect="> 0.5", paper="2211.00593, section 3.1", **same,
    pinned={"smollm2-135m": "reproduced"}, measured=float((ahead[for_it.index] > 0).mean()),
    statement=f"of the {len(for_it)} heads whose edge to the logits helps: the share that looks at "
    "IO more than at S1 or S2",
)  # fmt: skip

# %%
lw.claim(
    "circuits.negative-name-mover", kind="paper", expect="> 0.5", paper="2211.00593, section 3.1",
    pinned={"smollm2-135m": "reproduced"}, **same,
    measured=float(heads.IO[against.index[0]]) if len(against) else 0.0,
    statement="attention to IO of the head whose edge to the logits hurts most "
    f"({', '.join(against.index[:1])})",
)  # fmt: skip

# %%
queries = [(s, r) for s, r in small.names if r.split("<")[0] in for_it.index and r.endswith("<q>")]
steering = sorted({s for s, _ in queries if s.startswith("a")})
lw.claim(
    "circuits.movers-are-steered-by-heads", kind="paper", expect="> 0.5", **same,
    paper="2211.00593, section 3.2", pinned={"smollm2-135m": "reproduced"},
    measured=sum(s in steering for s, _ in queries) / max(1, len(queries)),
    statement=f"share of heads among the {len(queries)} kept edges into the queries of those that "
    "help",
)  # fmt: skip

# %%
lw.claim(
    "circuits.steering-heads-look-at-s2", kind="paper", expect="> 0.4", **same,
    paper="2211.00593, section 3.2: S-inhibition heads", pinned={"smollm2-135m": "reproduced"},
    measured=float(heads.S2[steering].mean()) if steering else 0.0,
    statement=f"attention to S2 of the heads that steer them ({', '.join(steering)})",
)  # fmt: skip

# %%
kept = float(seen.faithfulness.sel(circuit="pruned") - seen.faithfulness.sel(circuit="first"))
lw.claim(
    "circuits.pruning-keeps-faith", kind="paper", expect="> -0.05", paper="2304.14997", **same,
    pinned={"smollm2-135m": "reproduced"}, measured=kept,
    statement=f"f of the pruned circuit ({len(small)} edges) less f of what it was pruned from "
    f"({len(first)}), on all prompts",
)  # fmt: skip

# %%
drop = float(seen.faithfulness.sel(circuit="pruned") - new.faithfulness.sel(circuit="pruned"))
lw.claim(
    "circuits.holds-on-unseen-prompts", kind="paper", expect="< 0.1", paper="2504.13151", **same,
    pinned={"smollm2-135m": "reproduced"}, measured=drop,
    statement="f of the pruned circuit on its own prompts less that on prompts of other names",
)  # fmt: skip

# %% [markdown]
# ## Try it
#
# 1. **What a cut edge says.** Here it says what it says on the corrupt prompt. Let it say its mean
#    over prompts, or nothing (`Cutter(net, task, "zero")`). Is the same circuit still faithful?
# 2. **Is it complete?** Cut the circuit and keep everything else
#    (`circuits.completeness`). What does the model do without its circuit?
# 3. **A circuit of your own.** In `handmade.induction()` the two heads of a layer share one key and
#    value. Which edges does the circuit have? Which do you find when cut edges carry zero, and why
#    are there more?

# %% [markdown]
# Solutions are in the next cells, folded: open one when you have tried.

# %% jupyter={"source_hidden": true}
# 1. Off the distribution of real prompts much more breaks: positions, norms, the sink.
pair = task.subset([0, 1])
for value in circuits.cut.VALUES:
    c = circuits.faithfulness(net, Cutter(net, pair, value), few)
    print(f"cut edges carry {value}: f = {c.faithfulness.item():.3f}, "
          f"clean metric {c.attrs['clean_metric']:.2f}, all cut {c.attrs['empty_metric']:.2f}")  # fmt: skip

# %% jupyter={"source_hidden": true}
# 2. What is left without the circuit, and the share that other paths could carry.
rest = circuits.completeness(net, Cutter(net, pair), few)
print(f"f of all edges but the circuit's {len(few)}: {rest.complement.item():.3f}")

# %% jupyter={"source_hidden": true}
# 3. Positions are the same in both prompts: their edges matter only to the zero.
made = handmade.induction()
for value in ("patch", "zero"):
    found = prune(made.model, made.task(4), tau=1e-4, value=value)
    print(value, [f"{s}→{r}" for s, r in found.names], set(found.names) == set(made.circuit(value)))
