"""The autograd graph of one forward pass, as data: nodes, edges, and what reaches what.

Everything here is read from `grad_fn.next_functions`; no module and no model name is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from lwlab.errors import BadInput

#: A `grad_fn`: one operation of the forward pass. Torch gives its class a name and no type.
Node = Any
#: The producer of a tensor: a node and which of its outputs; (None, 0) is a constant.
Edge = tuple[Node, int]


def op(node: Node) -> str:
    """Name of the operation: "MmBackward0", without the namespace that leaves carry."""
    name: str = node.name()
    return name.rpartition("::")[2]


def edge(tensor: Tensor, what: str = "the tensor") -> Edge:
    """The place in the graph that a tensor comes from; BadInput where it has none."""
    if not isinstance(tensor, Tensor):
        raise BadInput(f"{what} is a {type(tensor).__name__}, not a tensor")
    if not tensor.requires_grad:
        raise BadInput(
            f"{what} has no graph behind it (requires_grad is False): run the model outside of "
            "torch.no_grad() and torch.inference_mode(), on inputs or weights that require "
            "gradients"
        )
    found = torch.autograd.graph.get_gradient_edge(tensor)
    return found.node, found.output_nr


class Graph:
    """All operations behind one output, and which of them lie between it and the inputs.

    `nodes`: every node, consumers before producers. `live`: those that some input flows through;
    the others are constants to the relevance (weights, masks, what a rule holds constant).
    `users[node]`: the (consumer, operand) pairs that read it.
    """

    def __init__(
        self, output: Tensor, inputs: Sequence[Tensor] = (), blocked: Collection[str] = ()
    ) -> None:
        """Walk the graph; raise BadInput where an input is not in it."""
        self.root = edge(output, "the output")
        self.inputs = [edge(x, f"input {i}") for i, x in enumerate(inputs)]
        self.nodes = _ordered(self.root[0])
        known = set(self.nodes)
        for i, (node, _) in enumerate(self.inputs):
            if node not in known:
                raise BadInput(
                    f"input {i}, of shape {tuple(inputs[i].shape)}, is not in the graph of the "
                    "output: the output does not depend on it, or it is a copy of what the model "
                    "read"
                )
        self.users: dict[Node, list[tuple[Node, int]]] = {n: [] for n in self.nodes}
        for node in self.nodes:
            for k, (below, _) in enumerate(node.next_functions):
                if below is not None:
                    self.users[below].append((node, k))
        self.live = self._live(blocked)
        for i, (node, _) in enumerate(self.inputs):
            if not (node is self.root[0] or self._flows(node)):
                raise BadInput(
                    f"input {i} reaches the output only through operations that these rules hold "
                    f"constant ({', '.join(sorted(blocked))}), so no relevance can come to it"
                )

    def _live(self, blocked: Collection[str]) -> set[Node]:
        """Nodes with an input at or below them, not counting ways through blocked operations."""
        found: set[Node] = set()
        ends = {n for n, _ in self.inputs}
        for node in reversed(self.nodes):  # producers first
            if node in ends or (
                op(node) not in blocked and any(b in found for b, _ in node.next_functions)
            ):
                found.add(node)
        return found

    def _flows(self, node: Node) -> bool:
        """Whether some way up to the output is all live."""
        seen, stack = {node}, [node]
        while stack:
            here = stack.pop()
            if here is self.root[0]:
                return True
            for user, _ in self.users[here]:
                if user in self.live and user not in seen:
                    seen.add(user)
                    stack.append(user)
        return False

    def counts(self) -> Counter[str]:
        """How many nodes there are of each operation."""
        return Counter(op(n) for n in self.nodes)


def _ordered(root: Node) -> list[Node]:
    """Depth-first, without recursion (a graph may be thousands of nodes deep), consumers first."""
    done: set[Node] = set()
    order: list[Node] = []
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, left = stack.pop()
        if left:
            order.append(node)
            continue
        if node in done:
            continue
        done.add(node)
        stack.append((node, True))
        stack.extend((b, False) for b, _ in node.next_functions if b is not None and b not in done)
    return order[::-1]


def shape_of(node: Node, output: int = 0) -> tuple[int, ...]:
    """Shape of one output of a node."""
    return tuple(int(s) for s in node._input_metadata[output].shape)


def dtype_of(node: Node, output: int = 0) -> torch.dtype:
    """Type of one output of a node."""
    found: torch.dtype = node._input_metadata[output].dtype
    return found
