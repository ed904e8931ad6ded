"""Prompts as token batches: which column of the batch is which position of which prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lwlab.errors import BadInput

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Tokens:
    """A padded batch of token ids.

    ids, mask: [prompts, columns] (mask 1 on own tokens, 0 on padding); lengths, offsets:
    [prompts] (own tokens; padding on the left); strings: the own tokens of each prompt.
    Positions are counted within a prompt's own tokens and may be negative; columns are counted in
    the batch.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    strings: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def lengths(self) -> torch.Tensor:
        """Own tokens of each prompt, [prompts]."""
        return self.mask.sum(1)

    @property
    def offsets(self) -> torch.Tensor:
        """Padding columns before each prompt, [prompts]."""
        return self.mask.argmax(1)

    @property
    def equal_length(self) -> bool:
        """Whether every prompt has the same number of tokens."""
        return bool((self.lengths == self.lengths[0]).all())

    @property
    def padded(self) -> bool:
        """Whether any column is padding."""
        return not bool(self.mask.all())

    @property
    def position_ids(self) -> torch.Tensor:
        """Positions by column, [prompts, columns]; 0 on padding."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)

    def columns(self, position: int | Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Return the column of `position` (one for all prompts, or one for each) as [prompts].

        Raises BadInput when a prompt is too short.
        """
        n = self.lengths
        p = torch.as_tensor(position, dtype=torch.long, device=self.ids.device)
        if p.ndim == 0:
            p = p.expand(len(self))
        if p.shape != n.shape:
            raise BadInput(
                f"{p.numel()} positions for {len(self)} prompts; give one, or one a prompt"
            )
        bad = (p >= n) | (p < -n)
        if bool(bad.any()):
            i = int(bad.nonzero()[0])
            raise BadInput(
                f"position {int(p[i])} is out of range: prompt {i} has {int(n[i])} tokens "
                f"(0..{int(n[i]) - 1}): {self.texts[i][:80]!r}"
            )
        return self.offsets + torch.where(p < 0, p + n, p)

    def require_equal_length(self, why: str) -> int:
        """Return the common length, or raise BadInput naming two prompts that differ."""
        n = self.lengths
        if not self.equal_length:
            i = int((n != n[0]).nonzero()[0])
            raise BadInput(
                f"{why} needs prompts of equal length, but prompt 0 has {int(n[0])} tokens "
                f"({self.texts[0][:60]!r}) and prompt {i} has {int(n[i])} ({self.texts[i][:60]!r})"
            )
        return int(n[0])

    def to(self, device: torch.device | str) -> Tokens:
        """Return the batch on `device`."""
        return Tokens(self.ids.to(device), self.mask.to(device), self.strings, self.texts)

    def pad(self, side: Side) -> Tokens:
        """Return the same prompts with their padding on `side`."""
        if not self.padded:
            return self
        # A stable sort by "is padding" moves each row's own tokens to one end, in their order.
        mask = self.mask if side == "left" else 1 - self.mask
        order = mask.argsort(dim=1, stable=True)
        return Tokens(
            self.ids.gather(1, order), self.mask.gather(1, order), self.strings, self.texts
        )


def tokenize(
    tokenizer: Any,
    prompts: str | Sequence[str] | Tokens | torch.Tensor,
    padding_side: Side | None = None,
    *,
    max_tokens: int | None = None,
    vocabulary: int | None = None,
) -> Tokens:
    """Turn text (or an id tensor [prompts, columns] without padding) into Tokens.

    The tokenizer's own special tokens are added, and nothing else. Padding is on the right unless
    `padding_side` says otherwise; Tokens stay as they are without it. Raises BadInput for an empty
    prompt, one longer than `max_tokens`, or ids outside 0..vocabulary-1.
    """
    if padding_side not in (None, "left", "right"):
        raise BadInput(f"padding_side={padding_side!r}; use 'left' or 'right'")
    if isinstance(prompts, Tokens):
        return prompts.pad(padding_side) if padding_side else prompts
    if isinstance(prompts, torch.Tensor):
        rows = _ids(prompts, vocabulary)
        texts = [tokenizer.decode(r) if tokenizer is not None else "" for r in rows]
    else:
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts or not all(isinstance(t, str) for t in texts):
            raise BadInput("prompts must be a string or a non-empty list of strings")
        rows = [tokenizer(t)["input_ids"] for t in texts]
    for i, row in enumerate(rows):
        if not row:
            raise BadInput(f"prompt {i} is empty ({texts[i]!r}); give at least one token")
        if max_tokens and len(row) > max_tokens:
            raise BadInput(
                f"prompt {i} has {len(row)} tokens; this model reads at most {max_tokens}"
            )
    return _pad(tokenizer, rows, texts, padding_side or "right")


def _ids(ids: torch.Tensor, vocabulary: int | None) -> list[list[int]]:
    """Check a tensor of token ids, [columns] or [prompts, columns], and return it as lists."""
    if ids.ndim not in (1, 2) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise BadInput(
            f"token ids must be whole numbers [prompts, positions], not {ids.dtype} of shape "
            f"{tuple(ids.shape)}"
        )
    if ids.numel() == 0:
        raise BadInput(f"token ids of shape {tuple(ids.shape)} hold no token")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        wrong = low if low < 0 else high
        end = "" if vocabulary is None else f"{vocabulary - 1}"
        raise BadInput(f"token id {wrong} is outside the vocabulary, 0..{end}")
    rows: list[list[int]] = (ids if ids.ndim == 2 else ids[None]).tolist()
    return rows


def _pad(tokenizer: Any, rows: list[list[int]], texts: list[str], side: Side) -> Tokens:
    width = max(map(len, rows))
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = pad if pad is not None else getattr(tokenizer, "eos_token_id", None) or 0
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return Tokens(ids, mask, tuple(tuple(token_strings(tokenizer, r)) for r in rows), tuple(texts))


def token_strings(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Decode ids one by one, so that spaces and odd bytes stay visible."""
    if tokenizer is None:
        return [str(i) for i in ids]
    return [str(tokenizer.decode([i])) for i in ids]
