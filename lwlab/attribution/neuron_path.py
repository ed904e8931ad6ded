r"""One neuron a layer: the path through a model's MLPs that carries an answer.

Neurons are hidden units of the MLPs at one position (the class token of a vision transformer, the
last token of a decoder), w_l their activations there. A set S holds one neuron i_l of each layer up
to some l. Scale all of S together from 0 to what they are, everything else left to itself; then

    JAS(S) = (sum_l w_{l,i_l}) * 1/m sum_{k=0}^{m-1} sum_l dF(k/m w_S)/dw_{l,i_l},

the joint attribution score, F the probability of the answer. The search goes layer by layer: with
earlier picks fixed and the candidate layer's *whole* vector scaled along, each unit j of the layer
is scored by JAS of the picks and j, and the highest is picked. Source: arXiv:2503.09046 and its
code (the left sum, m = 20, and the whole candidate vector are the code's).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.results import provenance
from lwlab.tracing import engine
from lwlab.tracing.edits import Edit

PAPER = "2503.09046"
Rule = Literal["left", "midpoint"]
Inputs = Tensor | Sequence[str]


class Given(NamedTuple):
    """Examples, checked: their inputs, answers, where the neurons are read, and what they are."""

    model: Model
    inputs: Inputs
    answers: Tensor
    column: int
    clean: dict[int, Tensor]
    base: Tensor


def given(model: Model, inputs: Inputs, answers: Sequence[int] | Tensor) -> Given:
    """Check examples and read their neurons: `clean` [example, unit] a layer, `base` F [example].

    `inputs` are pictures [n, channels, height, width], or texts of equal length in tokens;
    `answers` the class or token id of each. Raises BadInput for other shapes or ids, MissingSite
    for a model without MLP neurons.
    """
    model.anatomy.require("neurons")
    answers = torch.as_tensor(answers)
    n = len(inputs)
    if n == 0 or answers.shape != (n,):
        raise BadInput(f"{n} inputs need as many answers, not {tuple(answers.shape)}")
    data = engine.batch(model, inputs if isinstance(inputs, Tensor) else list(inputs))
    column = 0
    if data.tokens is not None:
        if data.tokens.padded:
            raise BadInput(
                "texts of unequal length: their last tokens are at different places; give texts "
                "with equally many tokens"
            )
        column = data.tokens.ids.shape[1] - 1
    at = [Address("neurons", i) for i in range(model.n_layers)]
    with torch.no_grad():
        seen = engine.run(model, data, at)
    if seen.logits is None:
        raise BadInput(f"{model.name} gives no logits, so no answer has a probability")
    if not 0 <= int(answers.min()) <= int(answers.max()) < seen.logits.shape[-1]:
        raise BadInput(
            f"answers {sorted(set(answers.tolist()))[:8]} are not all among the "
            f"{seen.logits.shape[-1]} of {model.name}"
        )
    clean = {a.layer: seen.values[a][:, column].detach() for a in at if a.layer is not None}
    return Given(model, inputs, answers, column, clean, chance(seen.logits, answers))


def chance(logits: Tensor, answers: Tensor) -> Tensor:
    """Return the probability of each row's answer: [row]."""
    return logits.float().softmax(-1).gather(-1, answers[:, None]).squeeze(-1)


def find(
    model: Model,
    inputs: Inputs,
    answers: Sequence[int] | Tensor,
    *,
    steps: int = 20,
    rule: Rule = "left",
    joint: bool = True,
    rows: int = 640,
) -> xr.Dataset:
    """Search the path of each example, layer by layer.

    steps: m of the sum. rule: "left" (the paper's code: k/m) or "midpoint" ((k + 1/2)/m, less
    biased). Without `joint`, each layer is scored by itself (integrated gradients), a baseline.
    rows: how many copies are run at once.

    Returns `unit` and `score` (example, layer), the picks; `candidate` (example, layer, neuron),
    every unit's score; `whole` (example, layer), F with the layer's vector and the earlier picks as
    they are less F with them at nought: for the first layer the candidates' scores sum to it as
    `steps` grow (completeness of integrated gradients); `base` (example). Raises BadInput (and see
    `given`).
    """
    if steps < 1 or rows < 1:
        raise BadInput(f"steps={steps}, rows={rows}: both count from 1")
    if rule not in ("left", "midpoint"):
        raise BadInput(f"rule={rule!r}; there are left and midpoint")
    known = given(model, inputs, answers)
    n, L = len(known.answers), model.n_layers
    alphas = (torch.arange(steps) + (0.5 if rule == "midpoint" else 0.0)) / steps
    picks = torch.zeros(n, 0, dtype=torch.long)
    parts: dict[str, list[Tensor]] = {"candidate": [], "unit": [], "score": [], "whole": []}
    at_once = max(1, rows // steps)
    for layer in range(L):
        earlier = picks if joint else picks[:, :0]
        slopes, sums = [], []
        for i in range(0, n, at_once):
            which = torch.arange(i, min(i + at_once, n))
            slope, before = _slopes(known, which, earlier[which], layer, alphas)
            slopes.append(slope)
            sums.append(before)
        own, before = torch.cat(slopes), torch.cat(sums)
        w = known.clean[layer]
        held = sum(
            (known.clean[k].gather(1, earlier[:, k : k + 1]) for k in range(earlier.shape[1])),
            torch.zeros(n, 1),
        )
        score = (held + w) * (before[:, None] + own)
        best = score.argmax(1)
        picks = torch.cat([picks, best[:, None]], 1)
        ends = [_at(known, earlier, layer, torch.tensor([a]))[1] for a in (0.0, 1.0)]
        parts["candidate"].append(score)
        parts["unit"].append(best)
        parts["score"].append(score.gather(1, best[:, None]).squeeze(1))
        parts["whole"].append(ends[1] - ends[0])
    found = {k: torch.stack(v, 1).numpy() for k, v in parts.items()}
    out = xr.Dataset(
        {
            "unit": (("example", "layer"), found["unit"]),
            "score": (("example", "layer"), found["score"]),
            "candidate": (("example", "layer", "neuron"), found["candidate"]),
            "whole": (("example", "layer"), found["whole"]),
            "base": ("example", known.base.numpy()),
        },
        {"layer": range(L), "answer": ("example", known.answers.numpy())},
    )
    out.attrs = provenance(
        model, technique="neuron-path", paper=PAPER, steps=steps, rule=rule, joint=joint, n=n
    )
    return out


def _at(
    known: Given, earlier: Tensor, layer: int, alphas: Tensor, which: Tensor | None = None
) -> tuple[engine.Trace, Tensor]:
    """Run examples with picks and the candidate layer scaled by each alpha: rows example-major."""
    which = torch.arange(len(known.answers)) if which is None else which
    m = len(alphas)
    scale = alphas.repeat(len(which))[:, None]
    column = torch.full((len(which) * m, 1), known.column)
    edits = []
    for k in range(earlier.shape[1]):
        value = known.clean[k][which].gather(1, earlier[:, k : k + 1]).repeat_interleave(m, 0)
        unit = earlier[:, k : k + 1].repeat_interleave(m, 0)

        def put(part: Tensor, value: Tensor = value * scale, unit: Tensor = unit) -> Tensor:
            return part.scatter(-1, unit[:, None].to(part.device), value[:, None].to(part))

        edits.append(Edit(Address("neurons", k), put, column))
    whole = known.clean[layer][which].repeat_interleave(m, 0) * scale
    edits.append(Edit(Address("neurons", layer), lambda part: whole[:, None].to(part), column))
    inputs = known.inputs
    if isinstance(inputs, Tensor):
        repeated: Inputs = inputs[which].repeat_interleave(m, 0)
    else:
        repeated = [inputs[i] for i in which.tolist() for _ in range(m)]
    reads = [Address("neurons", k) for k in range(earlier.shape[1])] + [Address("neurons", layer)]
    trace = engine.run(known.model, repeated, reads, edits, grad=True)
    assert trace.logits is not None
    return trace, chance(trace.logits, known.answers[which].repeat_interleave(m)).detach()


def _slopes(
    known: Given, which: Tensor, earlier: Tensor, layer: int, alphas: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mean slope of F at each unit of the layer [row, unit], and the picks' sum."""
    trace, _ = _at(known, earlier, layer, alphas, which)
    assert trace.logits is not None
    m = len(alphas)
    total = chance(trace.logits, known.answers[which].repeat_interleave(m)).sum()
    reads = [Address("neurons", k) for k in range(earlier.shape[1])] + [Address("neurons", layer)]
    grads = torch.autograd.grad(total, [trace.values[a] for a in reads])
    rows = [g[:, known.column].reshape(len(which), m, -1).mean(1) for g in grads]
    before = torch.zeros(len(which))
    for k, g in enumerate(rows[:-1]):
        before = before + g.gather(1, earlier[:, k : k + 1]).squeeze(1)
    return rows[-1], before


def largest(model: Model, inputs: Inputs, answers: Sequence[int] | Tensor) -> npt.NDArray[np.int64]:
    """Return the most active unit of each layer, the simplest path: [example, layer]."""
    known = given(model, inputs, answers)
    return np.stack([known.clean[k].argmax(1).numpy() for k in range(model.n_layers)], 1)


def at_random(n: int, layers: int, units: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return paths drawn at random: [example, layer]."""
    return np.random.default_rng(seed).integers(units, size=(n, layers))


def intervene(
    model: Model,
    inputs: Inputs,
    answers: Sequence[int] | Tensor,
    paths: npt.ArrayLike,
    factor: float = 0.0,
    *,
    layers: Sequence[int] | int | None = None,
) -> xr.Dataset:
    """Multiply the neurons of each example's path by `factor` (0 removes, 2 amplifies).

    With `layers` only those of some layers.

    `paths` is [example, layer]. Returns over (example): `base` and `after`, the probability of the
    answer, and `right`, whether the answer still wins. Raises BadInput for paths of another shape
    or units that do not exist.
    """
    known = given(model, inputs, answers)
    units = torch.as_tensor(np.asarray(paths, dtype=np.int64))
    n, width = len(known.answers), known.clean[0].shape[1]
    if units.shape != (n, model.n_layers) or not 0 <= int(units.min()) <= int(units.max()) < width:
        raise BadInput(
            f"paths must be [{n}, {model.n_layers}] units of 0 to {width - 1}, not "
            f"{tuple(units.shape)}"
        )
    column = torch.full((n, 1), known.column)
    edits = []
    for k in model.anatomy.layers(layers):
        mask = torch.ones(n, 1, width).scatter(2, units[:, None, k : k + 1], factor)

        def times(part: Tensor, mask: Tensor = mask) -> Tensor:
            return part * mask.to(part)

        edits.append(Edit(Address("neurons", k), times, column))
    run = engine.run(model, inputs if isinstance(inputs, Tensor) else list(inputs), (), edits)
    assert run.logits is not None
    out = xr.Dataset(
        {
            "base": ("example", known.base.numpy()),
            "after": ("example", chance(run.logits, known.answers).detach().numpy()),
            "right": ("example", (run.logits.argmax(-1) == known.answers).numpy()),
        }
    )
    out.attrs = provenance(model, technique="neuron-path", paper=PAPER, factor=factor, n=n)
    return out


def overlap(
    paths: npt.ArrayLike, groups: npt.ArrayLike, *, draws: int = 2000, seed: int = 0
) -> xr.Dataset:
    """Do paths of one class share neurons? Mean Jaccard index of (layer, unit) over pairs.

    Returns `same` (pairs of one group), `other` (pairs of two), and `p`, the share of `draws`
    relabellings in which same - other is at least as large. Raises BadInput where there are no
    pairs of one kind.
    """
    units, labels = np.asarray(paths), np.asarray(groups)
    shared = (units[:, None] == units[None]).sum(-1)
    index = shared / (2 * units.shape[1] - shared)
    a, b = np.triu_indices(len(labels), 1)
    values = index[a, b]
    same = labels[a] == labels[b]
    if not same.any() or same.all():
        raise BadInput("overlap needs pairs of one class and pairs of two")

    def lead(order: npt.NDArray[np.int64]) -> float:
        one = labels[order][a] == labels[order][b]
        return float(values[one].mean() - values[~one].mean())

    seen = lead(np.arange(len(labels)))
    rng = np.random.default_rng(seed)
    by_chance = [lead(rng.permutation(len(labels))) for _ in range(draws)]
    return xr.Dataset(
        {
            "same": ((), float(values[same].mean())),
            "other": ((), float(values[~same].mean())),
            "p": ((), (1 + sum(c >= seen for c in by_chance)) / (1 + draws)),
        }
    )
