"""Edits as data: which site, which part of it, what to put there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lwlab.errors import BadInput
from lwlab.models.anatomy import Anatomy
from lwlab.models.sites import SITES, Address

Value = float | int | torch.Tensor | np.ndarray | Callable[[torch.Tensor], torch.Tensor] | Any


@dataclass
class Edit:
    """Replace part of one site.

    `value` is what to put there: a number, an array that broadcasts to the selected part, or a
    function of it. The part is [prompts, positions, ...] with the site's own dimensions after it
    (the head dimension is gone when `at` names a head). `columns`: [prompts, k] batch columns, or
    None for all. `rows`: prompts (batch rows) to edit, None for all. `fired` counts how often the
    edit ran, `change` is the relative size of what it did, |new - old| / |old|.
    """

    at: Address
    value: Value
    columns: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    fired: int = 0
    change: float = 0.0
    _sizes: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, repr=False)

    def __call__(self, site: torch.Tensor) -> torch.Tensor:
        """Return the site's tensor [prompts, positions, ...] with the part replaced."""
        head_axis = _head_axis(self.at)
        part = site if self.at.head is None else site.select(head_axis, self.at.head)
        old, index = self._select(part)
        new = self._new(old)
        self._measure(old, new)
        part = new if index is None else part.index_put(index, new)
        if self.at.head is None:
            return part
        i = torch.tensor([self.at.head], device=site.device)
        return site.index_copy(head_axis, i, part.unsqueeze(head_axis))

    def _select(self, part: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        if self.columns is None and self.rows is None:
            return part, None
        rows = torch.arange(part.shape[0]) if self.rows is None else self.rows
        columns = self.columns
        if columns is None:
            columns = torch.arange(part.shape[1]).expand(len(rows), -1)
        index = (rows[:, None].to(part.device), columns.to(part.device))
        return part[index], index

    def _new(self, old: torch.Tensor) -> torch.Tensor:
        value = self.value(old) if callable(self.value) else self.value
        if not isinstance(value, torch.Tensor):
            value = torch.as_tensor(np.asarray(value))
        value = value.to(device=old.device, dtype=old.dtype)
        try:
            return value.expand_as(old) if value.shape != old.shape else value
        except RuntimeError:
            raise BadInput(
                f"edit of {self.at}: a value of shape {tuple(value.shape)} does not fit the selected "
                f"part, {tuple(old.shape)} = [prompts, positions, ...]"
            ) from None

    def _measure(self, old: torch.Tensor, new: torch.Tensor) -> None:
        self.fired += 1
        with torch.no_grad():
            self._sizes = ((new - old).float().norm(), old.float().norm())

    def finish(self) -> None:
        """Turn the recorded sizes into `change` (after the run, so that no sync is forced in it)."""
        if self._sizes is not None:
            moved, size = (float(x) for x in self._sizes)
            self.change = moved / size if size else float(moved > 0)


def _head_axis(at: Address) -> int:
    """Axis of the head in the batch tensor: attn_pattern is [prompts, heads, q, k]."""
    return 1 if at.site == "attn_pattern" else 2


def parse_edits(
    anatomy: Anatomy, edits: Mapping[str | Address, Value], columns: torch.Tensor | None
) -> list[Edit]:
    """Check addresses and values before any run; raise BadInput, UnknownName or MissingSite."""
    if not edits:
        raise BadInput("no edits given; for example {'resid_pre.7': 0.0}")
    out = []
    for key, value in edits.items():
        at = anatomy.address(key)
        if at.site == "logits":
            raise BadInput("logits are the output: edit 'final_norm' or a stream instead")
        spec = SITES[at.site]
        if columns is not None and spec.dims[0] != "position":
            raise BadInput(
                f"positions= does not apply to {at.site!r}, whose dimensions are {spec.dims}"
            )
        if isinstance(value, torch.Tensor | np.ndarray | float) and not bool(
            torch.isfinite(torch.as_tensor(value)).all()
        ):
            raise BadInput(f"the value for {at} holds NaN or infinity")
        out.append(Edit(at, value, columns))
    return out
