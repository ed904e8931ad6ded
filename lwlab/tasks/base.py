"""`Task`: prompts that ask something, their corrupted twins, and how to score the reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lwlab.errors import BadInput
from lwlab.tasks.metrics import Metric, measure

if TYPE_CHECKING:
    import pandas as pd

    from lwlab.models import Model, Tokens


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """n prompts with answers; made by `lw.tasks.ioi` and its siblings, checked when made.

    clean, corrupt: the prompts and their twins, which have equally many tokens and differ only at
    the named positions `changed`. answers, foils: as text with their leading space, the members of
    a set joined by "|". answer_sets, foil_sets: token ids [n, k], padded with -1.
    positions: name -> position of that token in each prompt [n], counted from the prompt's first
    token (a start token included); a word of several tokens is named by its last one. groups:
    prompts with one number [n] are not independent (each other's corruption), so intervals resample
    groups. attrs: what else a result should say (template, corruption, ...).
    """

    name: str
    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    answers: tuple[str, ...]
    foils: tuple[str, ...]
    answer_sets: Tensor
    foil_sets: Tensor
    positions: Mapping[str, Tensor]
    changed: tuple[str, ...]
    groups: Tensor
    templates: tuple[str, ...]
    lengths: Tensor
    seed: int = 0
    measure: str = "logit_diff"
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        tokens = sorted(set(self.lengths.tolist()))
        span = f"{tokens[0]}" if len(tokens) == 1 else f"{tokens[0]}-{tokens[-1]}"
        return (
            f"<Task {self.name}: {len(self)} prompts of {span} tokens, {self.clean[0]!r} -> "
            f"{self.answers[0]!r} not {self.foils[0]!r}>"
        )

    @property
    def metric(self) -> Metric:
        """The metric for these answers: last-position logits [n, d_vocab] -> [n]."""
        return measure(self.measure, self.answer_sets, self.foil_sets)

    def with_metric(self, name: str) -> Task:
        """Return the task scored by another metric; raise UnknownName if there is none of it."""
        measure(name, self.answer_sets, self.foil_sets)
        return replace(self, measure=name)

    @property
    def answer_ids(self) -> Tensor:
        """The answers' token ids [n]; BadInput where answers are sets (use `answer_sets`)."""
        return self._single(self.answer_sets, "answer")

    @property
    def foil_ids(self) -> Tensor:
        """The foils' token ids [n]; BadInput where foils are sets (use `foil_sets`)."""
        return self._single(self.foil_sets, "foil")

    def _single(self, table: Tensor, what: str) -> Tensor:
        if table.shape[1] > 1:
            raise BadInput(
                f"{self.name} has sets of {what}s, not one a prompt: use task.metric, or "
                f"task.{what}_sets (padded with -1)."
            )
        return table[:, 0]

    def subset(self, index: int | slice | Sequence[int] | Tensor) -> Task:
        """Return the task of some prompts: an index, a slice, a list, or a mask of n bools.

        Raises BadInput for an index out of range and for no prompt at all.
        """
        every = torch.arange(len(self))
        if not isinstance(index, slice):
            index = torch.as_tensor(index)
            index = index if index.dtype == torch.bool else index.long()
        try:
            rows = every[index].reshape(-1)
        except IndexError as error:
            raise BadInput(f"{self.name} has {len(self)} prompts: {error}") from None
        if len(rows) == 0:
            raise BadInput(f"no prompt of {self.name} is left by that index.")
        at = rows.tolist()
        kept: dict[str, Any] = {
            key: tuple(getattr(self, key)[i] for i in at)
            for key in ("clean", "corrupt", "answers", "foils", "templates")
        }
        for key in ("answer_sets", "foil_sets", "groups", "lengths"):
            kept[key] = getattr(self, key)[rows]
        kept["positions"] = {key: value[rows] for key, value in self.positions.items()}
        return replace(self, **kept)

    def tokens(self, model: Model, which: Literal["clean", "corrupt"] = "clean") -> Tokens:
        """Return the prompts as the model's tokens (see `Model.tokens`)."""
        return model.tokens(list(self.clean if which == "clean" else self.corrupt))

    @property
    def equal_length(self) -> bool:
        """Whether all prompts, not only twins, have one number of tokens."""
        return bool((self.lengths == self.lengths[0]).all())

    def to_frame(self) -> pd.DataFrame:
        """Return the prompts as a table, one row a prompt."""
        import pandas as pd

        columns = ("clean", "corrupt", "answers", "foils")
        return pd.DataFrame({key: list(getattr(self, key)) for key in columns})
