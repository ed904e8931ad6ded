"""Small tables of words and numbers, as the front ends show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lwlab.charts.labels import Axis, show_token

if TYPE_CHECKING:
    import torch

    from lwlab.models.model import Model


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> dict[str, str | list[Any]]:
    """Return a table as a trait: {"caption", "columns", "rows"}, all texts."""
    return {"caption": caption, "columns": list(columns), "rows": [list(r) for r in rows]}


def place_of(axis: Axis, index: int) -> str:
    """Return a place on an axis in words: "layer 3", "position 4: Paris"."""
    return f"{axis.name} {axis.labels[index]}".lower() if axis.tokens is None else (
        f"{axis.name.lower()} {axis.labels[index]}"
    )  # fmt: skip


def words(model: Model, ids: torch.Tensor) -> list[str]:
    """Return token ids [n] as they can be printed."""
    from lwlab.models.tokens import token_strings

    strings = token_strings(model.tokenizer, [int(i) for i in ids])
    return [show_token(s, longest=24) for s in strings]
