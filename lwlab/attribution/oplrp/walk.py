"""Relevance from one output down the autograd graph to any tensors it was computed from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lwlab.attribution.oplrp.graph import Edge, Graph, Node, op, shape_of
from lwlab.attribution.oplrp.ops import OPS
from lwlab.attribution.oplrp.promises import Promise, Values
from lwlab.attribution.oplrp.relevance import KINDS
from lwlab.attribution.oplrp.rules import Rules, rules_of
from lwlab.attribution.oplrp.step import Parts, Step
from lwlab.errors import BadInput, UnknownName, suggest

Unknown = Literal["error", "pass", "stop"]


@dataclass(frozen=True)
class Relevance:
    """What a walk found.

    `inputs`: relevance of each input, in its shape. `start`: what the walk began with, `ended`:
    what came to inputs that have no other input below them. `constants`: what operands took that
    no input reaches, by operation (biases: "AccumulateGrad"). `lost`: what the rule of an
    operation gave to nobody, by operation (0 where it conserves). `error`: the largest
    |R_in - R_out| of a node, relative to the absolute relevance it handed on, by operation.
    `parallel`: what the weights would get if they got theirs beside the inputs. `nodes`: total
    relevance that arrived at each node. `promises`: every operand that was rebuilt. `graph`: what
    was walked.
    """

    inputs: list[Tensor]
    start: float
    ended: float
    constants: dict[str, float]
    lost: dict[str, float]
    error: dict[str, float]
    parallel: float
    nodes: dict[Node, float]
    promises: list[Promise]
    graph: Graph

    @property
    def gap(self) -> float:
        """|ended + constants - start|, relative to start; 0 if relevance is conserved."""
        return abs(self.ended + sum(self.constants.values()) - self.start) / (abs(self.start) or 1)


def propagate(
    output: Tensor,
    inputs: Sequence[Tensor],
    *,
    start: Tensor | None = None,
    rules: str | Rules = "paper",
    unknown: Unknown = "error",
    known: Mapping[Edge, Tensor] | None = None,
) -> Relevance:
    """Walk from `output` to `inputs`, handing relevance from every operation to its operands.

    R starts as `start`, in the shape of `output` (default: 1, for an output that is one number).
    A node is processed once all its live consumers have delivered; its rule follows `rules` (the
    name of a set or a `Rules`). An input may lie between others: relevance is read off there and
    flows on. Weights are constants: all relevance of a product with weights goes to its input. A
    constant that the graph does not hold (a mask, a frozen bias: let it require gradients) takes
    nothing of a sum.

    `unknown` says what happens at operations without a rule: "error" raises before the walk,
    naming them; "pass" hands their relevance on to the operand of the same shape; "stop" lets it
    end there (both are counted in `lost`). `known` are outputs recorded during the forward pass
    (`recording`): with them no operand need be rebuilt.

    Raises BadInput for an output that is not one number when there is no `start`, for one without
    a graph, for inputs it does not depend on, for saved tensors that are gone, and UnknownName for
    a name that is none.
    """
    chosen = rules_of(rules)
    if unknown not in ("error", "pass", "stop"):
        raise UnknownName(f"unknown={unknown!r}{suggest(str(unknown), ['error', 'pass', 'stop'])}")
    if not inputs:
        raise BadInput("no inputs: name at least one tensor that relevance shall come to")
    given = _start(output, start)
    graph = Graph(output, inputs, chosen.blocked)
    if unknown == "error":
        refuse_unknown(graph, chosen)
    with torch.no_grad():
        return _walk(graph, given, inputs, chosen, unknown, known)


def uncovered(graph: Graph, rules: Rules | None = None, *, live: bool = False) -> Counter[str]:
    """Operations without a rule, and how often they occur (among `live` nodes alone)."""
    own = () if rules is None else rules.custom
    nodes = graph.live if live else graph.nodes
    return Counter(op(n) for n in nodes if op(n) not in OPS and op(n) not in own)


def refuse_unknown(graph: Graph, rules: Rules) -> None:
    """Raise BadInput where relevance would meet an operation without a rule."""
    blind = uncovered(graph, rules, live=True)
    if blind:
        named = ", ".join(f"{k} ({v} times)" for k, v in sorted(blind.items()))
        raise BadInput(
            f"no rule for {named}. Give one: Rules(custom={{'{min(blind)}': rule}}); or choose "
            "unknown='pass' (relevance goes to the operand of the same shape) or unknown='stop' "
            "(it ends there, and is counted)"
        )


def _start(output: Tensor, start: Tensor | None) -> Tensor:
    if not isinstance(output, Tensor):
        raise BadInput(f"the output is a {type(output).__name__}, not a tensor")
    if start is None:
        if output.numel() != 1:
            raise BadInput(
                f"the output has shape {tuple(output.shape)}: relevance is of one number. Pick "
                "one (output[0, 7]), or say with start= how much each entry has to begin with"
            )
        start = torch.ones_like(output)
    if tuple(start.shape) != tuple(output.shape):
        raise BadInput(f"start has shape {tuple(start.shape)}, the output {tuple(output.shape)}")
    start = start.detach()
    start = start.to(output.device, torch.promote_types(start.dtype, torch.float32))
    if not bool(torch.isfinite(start).all()):
        raise BadInput("start holds NaN or infinity")
    if not bool(start.any()):
        raise BadInput("start is zero everywhere: there is nothing to propagate")
    return start


def _reached(graph: Graph) -> dict[Node, int]:
    """Live nodes below the root by live ways, and how many live operands each serves."""
    waiting: dict[Node, int] = {graph.root[0]: 0}
    for node in graph.nodes:
        if node not in waiting or node not in graph.live:
            continue
        for below, _ in node.next_functions:
            if below is not None and below in graph.live:
                waiting[below] = waiting.get(below, 0) + 1
    return waiting


def _walk(
    graph: Graph,
    start: Tensor,
    inputs: Sequence[Tensor],
    rules: Rules,
    unknown: Unknown,
    known: Mapping[Edge, Tensor] | None,
) -> Relevance:
    values = Values(graph, known)
    arrived: dict[Node, dict[int, Tensor]] = defaultdict(dict)
    arrived[graph.root[0]][graph.root[1]] = start
    ends = set(graph.inputs)
    found: dict[Edge, Tensor] = {}
    constants: dict[str, float] = defaultdict(float)
    lost: dict[str, float] = defaultdict(float)
    error: dict[str, float] = defaultdict(float)
    nodes: dict[Node, float] = {}
    parallel, ended = 0.0, 0.0
    waiting = _reached(graph)
    for node in graph.nodes:  # consumers come before producers
        if node not in waiting:
            continue
        here = arrived.pop(node, {})
        for i in [i for i in here if (node, i) in ends]:
            found[node, i] = here[i]
        if not here or node not in graph.live or not _below(graph, node):
            nodes[node] = sum((float(r.double().sum()) for r in here.values()), 0.0)
            ended += nodes[node]
            continue
        outs = [here.get(i) for i in range(len(node._input_metadata))]
        live = [b is not None and b in graph.live for b, _ in node.next_functions]
        step = Step(node, outs, live, values, rules)
        parts = _parts(step, rules, unknown)
        parallel += step.parallel
        before = sum((float(r.double().sum()) for r in here.values()), 0.0)
        after, size = 0.0, 0.0
        for (below, i), part in zip(node.next_functions, parts):
            if part is None:
                continue
            amount = float(part.double().sum())
            after += amount
            size += float(part.abs().double().sum())
            if below is None or below not in graph.live:
                constants["constant" if below is None else op(below)] += amount
            elif i in arrived[below]:
                arrived[below][i] = arrived[below][i] + part
            else:
                arrived[below][i] = part
        nodes[node] = before
        lost[op(node)] += before - after
        size = max(size, sum(float(r.abs().double().sum()) for r in here.values()))
        error[op(node)] = max(error[op(node)], abs(before - after) / size if size else 0.0)
        values.forget(node)
    given = [
        found[e] if e in found else torch.zeros(x.shape, dtype=start.dtype, device=x.device)
        for e, x in zip(graph.inputs, inputs)
    ]
    total = float(start.double().sum())
    return Relevance(
        given, total, ended, dict(constants), dict(lost), dict(error), parallel, nodes,
        values.promises, graph,
    )  # fmt: skip


def _below(graph: Graph, node: Node) -> bool:
    return any(b is not None and b in graph.live for b, _ in node.next_functions)


def _parts(step: Step, rules: Rules, unknown: Unknown) -> Parts:
    node, name = step.node, op(step.node)
    if name in rules.custom:
        parts = list(rules.custom[name](node, step.given, step.values))
        if len(parts) != len(node.next_functions):
            raise BadInput(
                f"the rule for {name} returned {len(parts)} relevances for "
                f"{len(node.next_functions)} operands"
            )
        return parts
    row = OPS.get(name)
    if row is not None:
        return KINDS[row.kind](step)
    parts = [None] * len(node.next_functions)
    if unknown == "pass":
        for i, given in enumerate(step.given):
            fits = [
                k
                for k, (below, j) in enumerate(node.next_functions)
                if given is not None and step.live[k] and shape_of(below, j) == tuple(given.shape)
            ]
            if given is not None and fits and i == 0:
                parts[fits[0]] = given
    return parts
