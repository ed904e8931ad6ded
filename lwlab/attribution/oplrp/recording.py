"""What the operations of a forward pass gave, written down while they run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lwlab.attribution.oplrp.graph import Edge


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.values: dict[Edge, Tensor] = {}
        self._versions: dict[Edge, int] = {}

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor) and x.grad_fn is not None:
                edge = x.grad_fn, x.output_nr
                if edge not in self.values:
                    self.values[edge], self._versions[edge] = x.detach(), x._version
        return out

    def drop_overwritten(self) -> None:
        """Forget what a later operation wrote into: it is no longer what the node gave."""
        for edge, version in self._versions.items():
            if self.values[edge]._version != version:
                del self.values[edge]


@contextlib.contextmanager
def recording() -> Iterator[dict[Edge, Tensor]]:
    """Keep the output of every call of the forward pass: the slow way that needs no promise.

        with recording() as values:
            y = module(x)
        propagate(y[0, 7], [x], known=values)

    It keeps all of them alive, which is what promises avoid. Operations inside a fused call (the
    product inside `linear`) are not seen; their operands are saved by autograd. Outputs that a
    later operation overwrote in place are not kept.
    """
    with _Recorder() as recorder, torch.enable_grad():
        yield recorder.values
        recorder.drop_overwritten()
