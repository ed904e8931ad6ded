"""Promises: operands that autograd did not save, rebuilt from the nearest tensors that it did.

An addition saves nothing, so its rule cannot run when relevance arrives: it gets a *promise*. A
branch of the promise walks down the graph, noting what it passes, until it meets operations whose
output can be had from their saved tensors (*arg* nodes); the noted operations are then run forward
again, and the promise is kept. Branches meet other nodes that lack operands (sums of sums): those
are kept first. What was rebuilt once serves every later promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lwlab.attribution.oplrp.graph import Edge, Graph, Node, dtype_of, op
from lwlab.attribution.oplrp.ops import INVERSES, OPS
from lwlab.errors import BadInput


@dataclass(frozen=True)
class Promise:
    """An operand that was missing, and how it came.

    `path`: the operations run again for it, nearest first; `args`: where the branches ended.
    """

    node: Node
    operand: int
    path: tuple[Node, ...]
    args: tuple[Node, ...]
    value: Tensor

    def __str__(self) -> str:
        ends = ", ".join(map(op, self.args))
        way = " < ".join([*map(op, self.path), *([ends] if ends else [])])
        return f"{op(self.node)}[{self.operand}]: {way or 'rebuilt before'}"


class Values:
    """Operands and outputs of the nodes of a graph, saved or rebuilt.

    `known` may hold outputs recorded during the forward pass: with them nothing is rebuilt.
    `promises` lists what was. The walk forgets what it no longer needs (`forget`).
    """

    def __init__(self, graph: Graph, known: Mapping[Edge, Tensor] | None = None) -> None:
        self.graph = graph
        self.known = dict(known or {})
        self.promises: list[Promise] = []
        self._memo: dict[Edge, Tensor] = {}
        self._lost: set[Edge] = set()

    def operand(self, node: Node, k: int) -> Tensor | None:
        """The k-th operand of a node; None for a constant that the graph does not hold.

        Raises BadInput where it cannot be had: a frozen constant lies on the way.
        """
        found = self.saved(node, k)
        if found is not None:
            return found
        below, output = node.next_functions[k]
        if below is None:
            return None
        if (below, output) in self.known:
            return self.known[below, output]
        before = set(self._memo)
        value = self.output(below, output)
        again = [n for n, _ in self._memo if (n, _) not in before]
        path = tuple(n for n in again if not self._is_arg(n))
        args = tuple(n for n in again if self._is_arg(n))
        if op(below) != "AccumulateGrad":
            self.promises.append(Promise(node, k, path[::-1], args, value))
        return value

    def saved(self, node: Node, k: int) -> Tensor | None:
        """The k-th operand as autograd saved it, or None."""
        row = OPS.get(op(node))
        name = row.saved[k] if row is not None and k < len(row.saved) else ""
        value = _read(node, name) if name else None
        if value is None:
            below = node.next_functions[k][0] if k < len(node.next_functions) else None
            if below is not None and op(below) == "AccumulateGrad":
                value = below.variable
        return value

    def output(self, node: Node, i: int = 0) -> Tensor:
        """The i-th output of a node, rebuilt where it must be."""
        found = self._find(node, i)
        if found is not None:
            return found
        stack: list[Edge] = [(node, i)]
        while stack:
            here = stack[-1]
            if self._find(*here) is not None:
                stack.pop()
                continue
            if here in self._lost:
                stack.pop()
                continue
            wanted = self._wanted(here[0]) if self._rebuildable(here[0]) else []
            missing = [e for e in wanted if e not in self._lost and self._find(*e) is None]
            if missing:
                stack.extend(missing)
                continue
            self._run(*here)
            stack.pop()
        value = self._find(node, i)
        if value is None:
            raise BadInput(
                f"the output of {op(node)} cannot be rebuilt: it, or what it reads, needs a "
                "constant that the graph does not hold, or is an operation that cannot be run "
                "again. Let weights and constants require gradients, or run the forward pass "
                "inside `recording()` and hand its values over"
            )
        return value

    def maybe(self, node: Node, i: int = 0) -> Tensor | None:
        """The i-th output, or None where it cannot be had."""
        try:
            return self.output(node, i)
        except BadInput:
            return None

    def forget(self, node: Node) -> None:
        """Let go of what was rebuilt for a node that the walk has left."""
        for i in range(len(node._input_metadata)):
            self._memo.pop((node, i), None)

    def _find(self, node: Node, i: int) -> Tensor | None:
        for table in (self._memo, self.known):
            if (node, i) in table:
                return table[node, i]
        if op(node) == "AccumulateGrad":
            variable: Tensor = node.variable.detach()
            return variable
        row = OPS.get(op(node))
        if i == 0 and row is not None and row.result:
            value = _read(node, row.result)
            if value is not None:
                self._memo[node, i] = value
            return value
        return None

    def _wanted(self, node: Node) -> list[Edge]:
        row = OPS.get(op(node))
        if row is None or row.forward is None:
            return []
        count = row.needs or len(node.next_functions)
        return [
            node.next_functions[k]
            for k in range(count)
            if node.next_functions[k][0] is not None and self.saved(node, k) is None
        ]

    def _rebuildable(self, node: Node) -> bool:
        """Whether every operand of a node is saved or has a producer."""
        row = OPS.get(op(node))
        if row is None or row.forward is None:
            return False
        return all(
            self.saved(node, k) is not None or below is not None
            for k, (below, _) in enumerate(node.next_functions[: row.needs or None])
            if not _optional(node, k)
        )

    def _run(self, node: Node, i: int) -> None:
        """Run a node again, or find its output with a consumer, or give it up for lost."""
        row = OPS.get(op(node))
        wanted = self._wanted(node)
        if (
            row is None or row.forward is None or not self._rebuildable(node)
            or any(e in self._lost for e in wanted)
        ):  # fmt: skip
            aside = self._beside(node, i)
            if aside is None:
                self._lost.add((node, i))
            else:
                self._memo[node, i] = aside
            return
        operands = []
        for k, (below, output) in enumerate(node.next_functions[: row.needs or None]):
            value = self.saved(node, k)
            if value is None and below is not None:
                value = self._find(below, output)
            if value is not None:
                operands.append(value.detach())
        with torch.no_grad():
            made = row.forward(node, operands)
        if op(node) == "ToCopyBackward0":
            made = made.to(dtype_of(node))
        for j, value in enumerate(made if isinstance(made, tuple | list) else (made,)):
            self._memo[node, j] = value

    def _beside(self, node: Node, i: int) -> Tensor | None:
        """An output as some consumer saved it."""
        for user, k in self.graph.users[node]:
            if user.next_functions[k][1] != i:
                continue
            row = OPS.get(op(user))
            if row is None:
                continue
            if k < len(row.saved) and row.saved[k]:
                value = _read(user, row.saved[k])
                if value is not None:
                    return value
            if op(user) in INVERSES:
                value = _read(user, row.result)
                if value is not None:
                    return INVERSES[op(user)](value)
        return None

    def _is_arg(self, node: Node) -> bool:
        row = OPS.get(op(node))
        return row is not None and bool(row.result or all(
            self.saved(node, k) is not None or node.next_functions[k][0] is None
            for k in range(row.needs or len(node.next_functions))
        ))  # fmt: skip


def _optional(node: Node, k: int) -> bool:
    """Operands that may be absent: the bias of a convolution or of a norm."""
    if op(node) == "ConvolutionBackward0":
        return k == 2 and not any(node._saved_bias_sym_sizes_opt or ())
    return op(node) == "NativeBatchNormBackward0" and k > 0 and node._saved_weight is None


def _read(node: Node, name: str) -> Tensor | None:
    """A saved tensor, detached; BadInput where autograd no longer has it."""
    try:
        value = getattr(node, name)
    except RuntimeError as error:
        gone = "backward" in str(error)
        raise BadInput(
            f"{op(node)}: "
            + (
                "its saved tensors were freed by a backward pass: run the model again, or use "
                "retain_graph=True"
                if gone
                else "an operand was overwritten in place after it was read, so its value is "
                "lost: use modules without inplace=True"
            )
        ) from None
    if not isinstance(value, Tensor) or value.numel() == 0:
        return None
    return value.detach()
