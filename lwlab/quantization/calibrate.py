"""What the linear maps of a model read: second moments of their inputs, by plain hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.quantization.matrices import Matrix, matrices
from lwlab.tracing import lock

Moments = dict[tuple[int, str], torch.Tensor]


def hessians(
    model: Model,
    texts: str | Sequence[str],
    *,
    layers: Iterable[int] | int | None = None,
    modules: str | Iterable[str] | None = None,
    max_tokens: int = 256,
    skip: int = 1,
) -> Moments:
    """H = X^T X / n, [inputs, inputs] float32 by (layer, module), over the tokens of `texts`.

    The inputs are those of the model as it is now, each text cut after `max_tokens`. The first
    `skip` tokens of a text run but are not counted: position 0 is an attention sink whose
    activation, a thousand times the others', would be all that H shows. `gptq` takes H as it is.
    A layer's matrices take 4 inputs^2 bytes each: name layers.

    Raises BadInput for texts without tokens to count or a model that is no decoder.
    """

    def outer(x: torch.Tensor) -> torch.Tensor:
        return x.T @ x

    return _moments(model, texts, matrices(model, layers, modules), max_tokens, skip, outer)


def input_squares(
    model: Model,
    texts: str | Sequence[str],
    *,
    layers: Iterable[int] | int | None = None,
    modules: str | Iterable[str] | None = None,
    max_tokens: int = 256,
    skip: int = 1,
) -> Moments:
    """Mean square of each input, [inputs] by (layer, module): the diagonal of `hessians`."""

    def squares(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vecdot(x, x, dim=0)

    return _moments(model, texts, matrices(model, layers, modules), max_tokens, skip, squares)


class _Enough(Exception):
    """All inputs of a text have been read."""


def _moments(
    model: Model,
    texts: str | Sequence[str],
    chosen: list[Matrix],
    max_tokens: int,
    skip: int,
    moment: Callable[[torch.Tensor], torch.Tensor],
) -> Moments:
    if model.kind != "decoder":
        raise BadInput(f"{model.name} is of kind {model.kind!r}; this reads text with a decoder")
    if skip < 0 or max_tokens <= skip:
        raise BadInput(f"max_tokens={max_tokens}, skip={skip}: no token would be counted")
    rows = [
        model.tokens(t).ids[:, :max_tokens] for t in ([texts] if isinstance(texts, str) else texts)
    ]
    n = sum(max(0, row.shape[1] - skip) for row in rows)
    if not n:
        raise BadInput(f"no text is longer than the {skip} token(s) that are skipped")
    total: Moments = {}
    seen: set[tuple[int, str]] = set()
    # Blocks after the last one asked for need not run, unless one of them is an earlier one again.
    blocks = list(model.module.get_submodule(model.anatomy.blocks).children())
    early = len({id(p) for b in blocks for p in b.parameters()}) == sum(
        len(list(b.parameters())) for b in blocks
    )

    def hook(m: Matrix) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(_: Any, args: tuple[Any, ...]) -> None:
            x = args[0].detach().flatten(0, -2)[skip:]
            part = moment(x.float())
            key = (m.layer, m.name)
            total[key] = total[key] + part if key in total else part
            seen.add(key)
            if early and len(seen) == len(chosen):
                raise _Enough

        return add

    with contextlib.ExitStack() as stack, lock(model), torch.no_grad():
        for m in chosen:
            handle = m.module.register_forward_pre_hook(hook(m))
            stack.callback(handle.remove)
        for row in rows:
            seen.clear()
            with contextlib.suppress(_Enough):
                model.module(input_ids=row)
    return {key: value / n for key, value in total.items()}
