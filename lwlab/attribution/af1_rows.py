"""Prompts that differ in a few tokens at their end, run as rows of those tokens alone.

What all prompts share at their start is computed once: its keys and values are the same for every
prompt and every intervention behind it. Rows are products of the model's own modules (the packed
sweep's adapter), checked against the streams of the model's own run before they are used.
"""

from __future__ import annotations

from typing import Literal

import torch

from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.tasks.base import Task
from lwlab.tracing import lock
from lwlab.tracing.sweep import adapter as adapters
from lwlab.tracing.sweep.observe import observe

Sees = Literal["prefix", "first"]
Kind = Literal["full", "peek", "alone"]
Pair = tuple[torch.Tensor, torch.Tensor]
_ROWS = 256  # rows unembedded at once


class Rows:
    """The prompts of a task as rows [prompts, m, d_model]: their last m = T - s tokens.

    s (`shared`) leading tokens are the same in all prompts. `sees` says which of them a restricted
    token may still look at: all ("prefix") or only the first ("first"). `base[l]`
    [prompts, m, d_model] is the unedited stream entering layer l, `logits` [prompts, tokens] the
    model's own, `solved` the prompts it answers right (greedy, whole vocabulary).
    """

    def __init__(self, model: Model, task: Task, sees: Sees = "prefix") -> None:
        """Run the prompts once. Raises BadInput for what cannot be run so, saying why."""
        if sees not in ("prefix", "first"):
            raise BadInput(f"sees={sees!r} is unknown; use 'prefix' or 'first'")
        if reason := adapters.refusal(model):
            raise BadInput(f"AF1 cannot restrict the attention of {model.name}: {reason}")
        self.model, self.task, self.sees = model, task, sees
        tokens = task.tokens(model)
        self.length = tokens.require_equal_length("AF1")
        self.answers = task.answer_ids.to(model.device)
        every = torch.cat([tokens.ids, task.tokens(model, "corrupt").ids])
        same = (every == every[0]).all(0).long()
        self.shared = int(same.cumprod(0).sum())
        if self.shared == 0 or self.shared >= self.length:
            where = "no token" if self.shared == 0 else "every token"
            raise BadInput(
                f"the prompts of {task.name} share {where} at their start: AF1 needs a first token "
                "for restricted ones to rest on (a start token, or solved examples as a prefix) "
                "and operands that differ behind it"
            )
        self.ids, self.strings = tokens.ids[:, self.shared :], tokens.strings
        n = model.n_layers
        reads = [Address("resid_pre", i) for i in range(n)] + [Address("resid_post", n - 1)]
        seen = observe(model, tokens, reads)
        row = adapters.find(model)
        assert row is not None
        self.adapter = adapters.Adapter(model, row)
        adapters.verify(self.adapter, seen)
        calls = seen.calls[self.length]
        streams = [seen.values[a].view(len(tokens), self.length, -1) for a in reads]
        self.base = [h[:, self.shared :] for h in streams]
        self.tables = [adapters.tables(c, self.length, streams[0]) for c in calls]
        with lock(model), torch.no_grad():
            self.prefix = [self.project(i, streams[i][:1, : self.shared], 0)[1:] for i in range(n)]
        self.logits = seen.logits
        self.solved = self.logits.argmax(-1) == self.answers

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return self.model.n_layers

    def require_solved(self) -> torch.Tensor:
        """Numbers of the prompts that the full model answers right; BadInput for none."""
        if not bool(self.solved.any()):
            said = self.model.tokenizer.decode([int(self.logits[0].argmax())])
            raise BadInput(
                f"{self.model.name} answers no prompt of {self.task.name} right (to "
                f"{self.task.clean[0]!r} it says {said!r}, not {self.task.answers[0]!r}), so there "
                "is no accuracy to keep: take operands or solved examples that it can do"
            )
        return self.solved.nonzero()[:, 0]

    # -- what one block does -----------------------------------------------------------------

    def project(
        self, layer: int, h: torch.Tensor, first: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values [k, m, heads, d_head] of h [k, m, d], whose columns begin at."""
        k, m = h.shape[:2]
        flat = self.adapter.normed(layer, h.reshape(k * m, -1))
        q, key, v = self.adapter.project(layer, flat, "qkv")
        turn = self.tables[layer][0]
        if turn is not None:
            turn = tuple(t[first : first + m].repeat(k, 1) for t in turn)  # type: ignore[assignment]
        q, key = (self.adapter.finish(layer, s, x, turn) for s, x in (("q", q), ("k", key)))
        return tuple(x.reshape(k, m, *x.shape[1:]) for x in (q, key, v))  # type: ignore[return-value]

    def mask(self, layer: int, kind: Kind) -> torch.Tensor:
        """Additive mask [m, T] of a layer for the rows, on top of the model's own.

        "full": the model's. "alone": each row sees itself and what `sees` says. "peek": the same
        but for the last row, which sees all.
        """
        own = self.tables[layer][1][self.shared :]
        if kind == "full":
            return own
        m = len(own)
        open_ = torch.zeros(m, self.length, dtype=torch.bool, device=own.device)
        open_[:, : self.shared if self.sees == "prefix" else 1] = True
        open_[torch.arange(m), self.shared + torch.arange(m)] = True
        if kind == "peek":
            open_[-1] = True
        return own.masked_fill(~open_, float("-inf"))

    def keys(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> Pair:
        """Keys and values of whole prompts: the shared ones before those of the rows."""
        return tuple(  # type: ignore[return-value]
            torch.cat([p.expand(len(x), -1, -1, -1), x], 1)
            for p, x in zip(self.prefix[layer], (k, v))
        )

    def block(self, layer: int, h: torch.Tensor, kind: Kind) -> torch.Tensor:
        """Run block `layer` on rows h [k, m, d_model]."""
        q, k, v = self.project(layer, h, self.shared)
        z = self.adapter.attend(layer, q, *self.keys(layer, k, v), self.mask(layer, kind))
        return self.after(layer, h, z)

    def after(self, layer: int, h: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The stream leaving a block, of h [k, m, d] and the heads' outputs [k, m, heads, d]."""
        out = self.adapter.after(layer, h.flatten(0, 1), z.flatten(0, 1))
        return out.view_as(h)

    def last(
        self, layer: int, h: torch.Tensor, others: Pair | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Heads' outputs of the last rows h [k, 1, d], alone, and seeing `others` where given.

        `others`: keys and values [k, m - 1, heads, d] of the rows before. Returns two times
        [k, 1, heads, d].
        """
        q, k, v = self.project(layer, h, self.length - 1)
        mask = self.mask(layer, "alone")[-1:]
        cut = torch.cat([mask[:, : self.shared], mask[:, -1:]], 1)
        alone = self.adapter.attend(layer, q, *self.keys(layer, k, v), cut)
        if others is None:
            return alone, None
        k, v = torch.cat([others[0], k], 1), torch.cat([others[1], v], 1)
        full = self.mask(layer, "full")[-1:]
        return alone, self.adapter.attend(layer, q, *self.keys(layer, k, v), full)

    # -- what comes out ----------------------------------------------------------------------

    def read(self, h: torch.Tensor, rows: torch.Tensor) -> Pair:
        """Whether each last stream [k, prompts, d_model] gives the answer, and log p of it.

        `rows` are the prompts' numbers; returns [k, prompts] twice.
        """
        answers = self.answers[rows].repeat(len(h))
        right, score = [], []
        for part, ids in zip(torch.split(h.flatten(0, 1), _ROWS), torch.split(answers, _ROWS)):
            z = self.model.unembed(part).float()
            right.append(z.argmax(-1) == ids)
            score.append(z.gather(1, ids[:, None])[:, 0] - z.logsumexp(-1))
        shape = h.shape[:2]
        return torch.cat(right).view(shape), torch.cat(score).view(shape)
