"""What a rule is given: one node, the relevance that arrived, and ways to its operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lwlab.attribution.oplrp.graph import Node, dtype_of, op
from lwlab.attribution.oplrp.promises import Values
from lwlab.attribution.oplrp.rules import Rules
from lwlab.errors import BadInput

Parts = list[Tensor | None]


@dataclass
class Step:
    """One node about to hand its relevance on."""

    node: Node
    given: Sequence[Tensor | None]
    live: Sequence[bool]
    values: Values
    rules: Rules
    parallel: float = 0.0  # what the weights would get, if they got theirs beside the inputs

    @property
    def out(self) -> Tensor:
        """Relevance of the (only) output."""
        first = self.given[0]
        assert first is not None
        return first

    def operand(self, k: int) -> Tensor | None:
        """Operand k in the precision of the relevance, or None for an unknown constant."""
        value = self.values.operand(self.node, k)
        return None if value is None else value.detach().to(self.out.dtype)

    def need(self, k: int) -> Tensor:
        """Operand k, which must be had."""
        value = self.operand(k)
        if value is None:
            raise BadInput(f"{op(self.node)}: operand {k} is a constant the graph does not hold")
        return value

    def stab(self, z: Tensor) -> Tensor:
        """z, moved away from zero."""
        return z + torch.where(z < 0, -self.rules.epsilon, self.rules.epsilon)

    def split(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Weights by which a sum hands its relevance to its parts."""
        if self.rules.add == "ratio":
            z = self.stab(sum(parts[1:], parts[0]))
            return [p / z for p in parts]
        size = sum((p.abs() for p in parts[1:]), parts[0].abs()) + self.rules.epsilon
        return [p.abs() / size for p in parts]

    def back(self, given: Tensor) -> Parts:
        """What the operation's own backward makes of a tensor, one for each operand."""
        kind = dtype_of(self.node)
        found = self.node(given.to(kind))
        found = found if isinstance(found, tuple) else (found,)
        return [None if f is None else f.to(given.dtype) for f in found]


def to(x: Tensor, like: Tensor) -> Tensor:
    """Undo a broadcast: sum over what `like` does not have."""
    return x if x.shape == like.shape else x.sum_to_size(like.shape)


def slopes(s: Step, parts: Sequence[Tensor]) -> list[Tensor]:
    """As `split`, but the first weight is divided by the first part: R w is R_part / part."""
    first = parts[0]
    if s.rules.add == "ratio" or len(parts) == 1:
        z = s.stab(sum(parts[1:], first))
        return [1 / z, *(p / z for p in parts[1:])]
    size = sum((p.abs() for p in parts[1:]), first.abs()) + s.rules.epsilon
    return [torch.where(first < 0, -1.0, 1.0) / size, *(p.abs() / size for p in parts[1:])]
