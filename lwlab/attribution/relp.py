"""RelP: attribution patching with relevance coefficients in place of gradients.

Jafari, Eberle, Khakzar & Nanda 2025, "RelP: Faithful and Efficient Circuit Discovery via Relevance
Patching" (arXiv:2508.21258). The rules themselves are in `lwlab.tracing.rules`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
import xarray as xr

from lwlab.attribution import atp, exact, ig
from lwlab.attribution.pairs import COMPONENTS, Pair
from lwlab.attribution.prefix import inputs
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.tasks.base import Task
from lwlab.tracing import engine
from lwlab.tracing import rules as ruled
from lwlab.tracing.rules import plan

#: All rules there are, and those of the paper's study of indirect object identification.
EVERY = ("ln", "identity", "half", "attention")
RULES = ("ln", "identity", "half")
PAPER = "2508.21258"


def scores(
    model: Model,
    task: Task | Pair,
    components: str | Iterable[str] = COMPONENTS,
    layers: Iterable[int] | int | None = None,
    *,
    rules: str | Iterable[str] = RULES,
    normalise: bool = True,
    batch_size: int = 16,
) -> xr.DataArray:
    """Estimate the effect of patching by relevance propagated back through the corrupt run.

    RelP(c, l, p) = <a - a', r>, where r is what backpropagation leaves at a' on the corrupt run
    when it follows `rules` ("ln", "identity", "half", "attention"; with none of them it is AtP).
    Values are not changed by the rules, only slopes. Two forward passes and one backward pass, as
    AtP. Returns (component, prompt, layer, position), normalised as in `exact.scores`.

    Raises as `exact.scores` does, UnknownName for a rule that does not exist, BadInput for an
    architecture without rules (see `lw.rules`).
    """
    on = switches(rules)
    pair = Pair.of(model, task)
    with ruled(model, **on) as view:
        return pair.estimate(
            lambda rows, at: pair.slopes(view, rows, at), components, layers,
            normalise=normalise, batch_size=batch_size, technique="RelP", paper=PAPER,
            rules="+".join(view.rules),
        )  # fmt: skip


def study(
    model: Model,
    task: Task | Pair,
    techniques: Sequence[str] = ("exact", "atp", "relp"),
    components: str | Iterable[str] = COMPONENTS,
    layers: Iterable[int] | int | None = None,
    *,
    steps: int = 5,
    normalise: bool = True,
    batch_size: int = 16,
) -> xr.Dataset:
    """Score every component by several techniques, side by side.

    `techniques`: "exact", "atp", "ig" (integrated gradients with `steps`), "relp", and any set of
    rules joined by "+": "ln", "ln+identity", "relp+attention". Activations of both runs are shared.

    Returns a Dataset with `score` (technique, component, prompt, layer, position); its mean over
    prompts is the maps, `agreement` compares them. Raises as the techniques' own `scores` do, and
    UnknownName for a technique that does not exist.
    """
    pair = Pair.of(model, task)
    given = {"components": components, "layers": layers, "normalise": normalise}
    runs = [_technique(name, steps, batch_size) for name in techniques]
    if not runs or len(set(techniques)) < len(runs):
        raise BadInput(f"techniques={list(techniques)}: name each once, and at least one")
    parts = [run(model, pair, **given) for run in runs]
    score = xr.concat(
        parts, "technique", coords="minimal", compat="override", join="exact",
        combine_attrs="drop_conflicts",
    ).assign_coords(technique=list(techniques))  # fmt: skip
    about = {k: v for k, v in score.attrs.items() if k not in ("units", "long_name")}
    return xr.Dataset({"score": score.drop_attrs(deep=False).assign_attrs(
        {k: score.attrs[k] for k in ("units", "long_name")})},
        attrs={**about, "technique": "RelP", "paper": PAPER})  # fmt: skip


def _technique(name: str, steps: int, batch_size: int) -> Callable[..., xr.DataArray]:
    if name == "exact":
        return exact.scores
    if name == "atp":
        return partial(atp.scores, batch_size=batch_size)
    if name == "ig":
        return partial(ig.scores, steps=steps, batch_size=batch_size)
    chosen: set[str] = set()
    for part in name.split("+"):
        if part != "relp" and part not in EVERY:
            raise UnknownName(
                f"no technique {name!r}{suggest(part, ['exact', 'atp', 'ig', 'relp', *EVERY])}"
            )
        chosen |= set(RULES) if part == "relp" else {part}
    return partial(scores, rules=chosen, batch_size=batch_size)


def conservation(
    model: Model,
    task: Task | Pair,
    *,
    rules: str | Iterable[str] = EVERY,
    batch_size: int = 8,
) -> xr.Dataset:
    """Add up the relevance in the stream entering each block, on the corrupt prompts.

    With all four rules the model above block l is, to the backward pass, a homogeneous function of
    its input, so that by Euler's theorem at every l

        sum_positions <resid_pre_l, r_l> + sum_{biases b at or above l} <b, r_b> = m(x').

    Returns `relevance` (prompt, layer), `biases` (prompt, layer), `metric` (prompt), and `error`
    (prompt, layer) = |relevance + biases - metric| / mean |metric|. Attribute `obstacle` says what
    in this architecture stands against the theorem, "" if nothing does. Raises as `scores` does.
    """
    pair = Pair.of(model, task)
    at = [Address("resid_pre", i) for i in range(model.n_layers)]
    biases = _biases(model)
    relevance, absorbed, metric = [], [], []
    with ruled(model, **switches(rules)) as view, _tracked([b for _, b in biases]):
        # Gradients of shared biases add up over a batch: one prompt at a time where there are any.
        for rows in pair.chunks(1 if biases else batch_size):
            trace = engine.run(view, inputs(model, pair.corrupt, rows, 0, None), at, grad=True)
            m = pair.metric(rows, trace.logits)
            stream = [trace.values[a] for a in at]
            slopes = torch.autograd.grad(
                m.sum(), [*stream, *(b for _, b in biases)], allow_unused=True
            )
            dots = [(h * r).flatten(1).sum(1) for h, r in zip(stream, slopes)]
            relevance.append(torch.stack(dots, 1).detach())
            taken = torch.zeros(len(rows), model.n_layers)
            for (layer, b), r in zip(biases, slopes[len(at) :]):
                if r is not None:
                    taken[:, : layer + 1] += float((b.detach() * r).sum())
            absorbed.append(taken)
            metric.append(m.detach())
    total, bias, m = torch.cat(relevance).cpu(), torch.cat(absorbed), torch.cat(metric).cpu()
    error = (total + bias - m[:, None]).abs() / m.abs().mean()
    coords = {"layer": list(range(model.n_layers))}
    arrays = {
        k: label(v, ("prompt", "layer"), coords).drop_attrs()
        for k, v in (("relevance", total), ("biases", bias), ("error", error))
    }
    arrays["metric"] = label(m, ("prompt",)).drop_attrs()
    return xr.Dataset(arrays, attrs=provenance(
        model, pair.task, technique="RelP", paper=PAPER, rules="+".join(view.rules),
        obstacle=obstacle(model) or "",
    ))  # fmt: skip


def obstacle(model: Model) -> str | None:
    """Say why relevance cannot be conserved in this architecture, or None where it must be."""
    if getattr(getattr(model.module, "config", None), "clip_qkv", None) is not None:
        return "its values are clipped, which is not homogeneous"
    return None


def acting_rules(model: Model) -> tuple[str, ...]:
    """Rules that have something to act on in this model (GPT-2 has no gate for "half")."""
    if model.anatomy.refuses_rules:
        return ()
    found = {rule for rule, _, _ in plan(model, dict.fromkeys(EVERY, True))}
    return tuple(r for r in EVERY if r in found)


def switches(rules: str | Iterable[str]) -> dict[str, bool]:
    """Return which rules are on, by name; raise UnknownName for one that does not exist."""
    chosen = {rules} if isinstance(rules, str) else set(rules)
    for name in sorted(chosen - set(EVERY)):
        raise UnknownName(f"no rule {name!r}{suggest(name, EVERY)}")
    return {k: k in chosen for k in EVERY}


@contextlib.contextmanager
def _tracked(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Let gradients reach frozen parameters while inside."""
    frozen = [p for p in parameters if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _biases(model: Model) -> list[tuple[int, torch.nn.Parameter]]:
    """Additive parameters in or above the blocks, each with the last layer that it lies above."""
    a = model.anatomy
    found: list[tuple[int, torch.nn.Parameter]] = []
    for name, p in model.module.named_parameters():
        if name.rpartition(".")[2] != "bias":
            continue
        if name.startswith(a.blocks + "."):
            found.append((int(name[len(a.blocks) + 1 :].split(".")[0]), p))
        elif any(path and name.startswith(path + ".") for path in (a.final_norm, a.unembed)):
            found.append((a.n_layers - 1, p))
    return found
