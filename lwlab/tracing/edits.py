"""Edits as data: which site, which part of it, what to put there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lwlab.errors import BadInput
from lwlab.models.anatomy import Anatomy
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Tokens

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
    error: Exception | None = field(default=None, repr=False)
    sizes: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, repr=False)

    def __call__(self, site: torch.Tensor) -> torch.Tensor:
        """Return the site's tensor [prompts, positions, ...] with the part replaced."""
        head_axis = _head_axis(self.at)
        part = site if self.at.head is None else site.select(head_axis, self.at.head)
        old, index = self._select(part)
        try:
            new = self.replacement(old)
        except Exception as error:
            self.error = error
            raise
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

    def replacement(self, old: torch.Tensor) -> torch.Tensor:
        """Return what to put in the place of `old`, in its shape, type and device."""
        # A function may work in place: it gets a copy, so that `old` stays what it was.
        value = self.value(old.clone()) if callable(self.value) else self.value
        if value is None:
            raise BadInput(f"edit of {self.at}: the function returned None, not the new values")
        value = as_tensor(self.at, value).to(device=old.device, dtype=old.dtype)
        try:
            return value.expand_as(old).clone()  # a model may write into it: Falcon adds in place
        except RuntimeError:
            raise _misfit(self.at, value.shape, old.shape) from None

    def _measure(self, old: torch.Tensor, new: torch.Tensor) -> None:
        self.fired += 1
        with torch.no_grad():
            self.sizes = ((new - old).float().norm(), old.float().norm())

    def finish(self) -> None:
        """Turn the recorded sizes into `change` (after the run: no sync is forced in it)."""
        if self.sizes is not None:
            moved, size = (float(x) for x in self.sizes)
            self.change = moved / size if size else float(moved > 0)


def _head_axis(at: Address) -> int:
    """Axis of the head in the batch tensor: attn_pattern is [prompts, heads, q, k]."""
    return 1 if at.site == "attn_pattern" else 2


def _misfit(at: Address, given: Sequence[int], part: Sequence[int | None]) -> BadInput:
    shape = ", ".join("?" if n is None else str(n) for n in part)
    axes = "[prompts, heads, ...]" if at.site == "attn_pattern" else "[prompts, positions, ...]"
    return BadInput(
        f"edit of {at}: a value of shape {tuple(given)} does not fit the selected part, "
        f"({shape}) = {axes}"
    )


def as_tensor(at: Address, value: Any) -> torch.Tensor:
    """Return a value that is not a function as a tensor; raise BadInput for what is no number."""
    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError):
        raise BadInput(
            f"edit of {at}: {type(value).__name__} is not a value; give a number, an array or a "
            "function of the selected part"
        ) from None


def parse_edits(
    anatomy: Anatomy,
    edits: Mapping[str | Address, Value],
    columns: torch.Tensor | None,
    tokens: Tokens | None = None,
) -> list[Edit]:
    """Check addresses and values before any run; raise BadInput, UnknownName or MissingSite.

    With `tokens`, arrays must broadcast to the part that is selected, and their positions are the
    prompts' own: in a padded batch they are moved to the right columns, and padding is left alone.
    """
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
        if not callable(value):
            value = _checked(anatomy, at, as_tensor(at, value), columns, tokens)
        out.append(Edit(at, value, columns))
    return out


def _checked(
    anatomy: Anatomy,
    at: Address,
    value: torch.Tensor,
    columns: torch.Tensor | None,
    tokens: Tokens | None,
) -> Value:
    if tokens is not None:
        width = int(tokens.lengths.max()) if columns is None else columns.shape[1]
        part = part_shape(anatomy, at, len(tokens), width)
        pairs = list(zip(reversed(value.shape), reversed(part)))
        if value.ndim > len(part) or any(n not in (1, want) and want for n, want in pairs):
            raise _misfit(at, value.shape, part)
        if columns is None and tokens.padded:
            return _own(at, value, len(part), tokens)
    if not bool(torch.isfinite(value).all()):
        raise BadInput(f"the value for {at} holds NaN or infinity")
    return value


def part_shape(anatomy: Anatomy, at: Address, prompts: int, positions: int) -> list[int | None]:
    """Return the shape of an edit's part, [prompts, positions, ...]; None where it is not known."""
    sizes: dict[str, int | None] = {
        "position": positions, "query": positions, "head": anatomy.n_heads,
        "kv_head": anatomy.n_kv_heads, "d_head": anatomy.d_head, "neuron": anatomy.d_mlp,
        "d_model": anatomy.d_model,
    }  # fmt: skip
    dims = SITES[at.site].dims
    return [prompts, *(sizes[d] for d in dims if at.head is None or d not in ("head", "kv_head"))]


def _own(at: Address, value: torch.Tensor, ndim: int, tokens: Tokens) -> Value:
    """Move a value's own positions to the columns of a padded batch; padding keeps what it had."""
    if at.site == "attn_pattern":
        if value.ndim >= 1 and max(value.shape[-2:]) > 1:
            raise BadInput(
                f"edit of {at}: an array over positions needs prompts of equal length; "
                "give a function of [prompts, heads, queries, keys] columns"
            )
        return value
    if value.ndim < ndim - 1 or value.shape[1 - ndim] == 1:
        return value
    n, width = tokens.ids.shape
    value = value.expand(n, *value.shape[1 - ndim :])
    p = (torch.arange(width, device=tokens.ids.device) - tokens.offsets[:, None]).clamp(min=0)
    rows = torch.arange(n)[:, None]
    placed = value[rows.to(value.device), p.clamp(max=value.shape[1] - 1).to(value.device)]
    mask = tokens.mask.bool().view(n, width, *[1] * (ndim - 2))
    if not bool(placed[tokens.mask.bool().to(value.device)].isfinite().all()):
        raise BadInput(f"the value for {at} holds NaN or infinity at a prompt's own positions")

    def place(old: torch.Tensor) -> torch.Tensor:
        return torch.where(mask.to(old.device), placed.to(old.device, old.dtype), old)

    return place
