"""Which rule every kind of operation gets: a set of choices, and the sets that have names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from lwlab.attribution.oplrp.graph import Node
from lwlab.attribution.oplrp.ops import SCALES
from lwlab.errors import BadInput, UnknownName, suggest

if TYPE_CHECKING:
    from lwlab.attribution.oplrp.promises import Values

#: A rule of your own: node, relevance of each output, the values; returns one for each operand.
Custom = Callable[[Node, Sequence[Tensor | None], "Values"], Sequence[Tensor | None]]
Add = Literal["magnitude", "ratio"]
Mul = Literal["magnitude", "half", "full"]
Bilinear = Literal["half", "full"]
Softmax = Literal["identity", "taylor", "constant"]
Norm = Literal["identity", "constant", "gradient"]
Curve = Literal["identity", "gradient"]
_CHOICES = {
    "add": Add, "mul": Mul, "bilinear": Bilinear, "softmax": Softmax, "norm": Norm, "curve": Curve,
}  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """How each kind of operation hands relevance on. The defaults are the paper's, without gamma.

    add: sums split by "magnitude", |a| / (|a| + |b|), or by the signed "ratio", a / (a + b).
    mul: products of two live factors split by "magnitude", "half" each, or "full" to both (what a
    gradient does). bilinear: matrix products of two activations, "half" or "full".
    softmax: "identity", "taylor" (x_i (R_i - s_i sum R), as AttnLRP) or "constant".
    norm: "identity" for norms in one piece, and the scale of the others takes its share;
    "constant" holds every scale fixed (RelP's LN rule); "gradient".
    curve: activations pass relevance by "identity" or by their slope, x f'(x) / f(x).
    gamma_linear, gamma_conv: contributions to a product that have its sign count 1 + gamma times.
    epsilon: keeps divisions finite.
    custom: rules for operations that have none here, by name ("MyFunctionBackward").
    """

    add: Add = "magnitude"
    mul: Mul = "magnitude"
    bilinear: Bilinear = "half"
    softmax: Softmax = "identity"
    norm: Norm = "identity"
    curve: Curve = "identity"
    gamma_linear: float = 0.0
    gamma_conv: float = 0.0
    epsilon: float = 1e-11
    custom: Mapping[str, Custom] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in get_args(choices):
                raise UnknownName(f"{name}={value!r}{suggest(str(value), get_args(choices))}")
        for name in ("gamma_linear", "gamma_conv"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise BadInput(f"{name}={value}: gamma is a number from 0 (off) upwards")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise BadInput(f"epsilon={self.epsilon}: it must be above 0, such as 1e-11")

    @property
    def blocked(self) -> frozenset[str]:
        """Operations whose output these rules hold constant."""
        scales = SCALES if self.norm == "constant" else ()
        soft = ("SoftmaxBackward0", "SafeSoftmaxBackward0") if self.softmax == "constant" else ()
        return frozenset((*scales, *soft))

    def __str__(self) -> str:
        """Name what differs from the defaults."""
        plain = Rules()
        parts = [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if f.name != "custom" and getattr(self, f.name) != getattr(plain, f.name)
        ]
        return ", ".join([*parts, *self.custom]) or "epsilon"


#: Sets with a name. "relp" and "relp+attention" are what `relp` does with modules; "gradient" is
#: input times gradient.
SETS: dict[str, Rules] = {
    "paper": Rules(gamma_linear=0.001, gamma_conv=100.0),
    "epsilon": Rules(),
    "vision": Rules(norm="constant", gamma_linear=0.001, gamma_conv=100.0),
    "attnlrp": Rules(softmax="taylor", gamma_linear=0.001, gamma_conv=100.0),
    "relp": Rules("ratio", "half", "full", "taylor", "constant"),
    "relp+attention": Rules("ratio", "half", "full", "constant", "constant"),
    "gradient": Rules("ratio", "full", "full", "taylor", "gradient", "gradient"),
}


def rules_of(rules: str | Rules) -> Rules:
    """Return a set of rules, by name or as given; UnknownName for a name that is none."""
    if isinstance(rules, Rules):
        return rules
    if rules not in SETS:
        raise UnknownName(f"no set of rules {rules!r}{suggest(str(rules), SETS)}")
    return SETS[rules]
