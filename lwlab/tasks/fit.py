"""From words and templates to a Task checked against a tokenizer, before anything runs."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lwlab.errors import BadInput
from lwlab.tasks.base import Task


@dataclass(frozen=True)
class Text:
    """A filled template: the text and the characters [start, end) of each slot in it."""

    text: str
    spans: Mapping[str, tuple[int, int]]
    template: str


def fill(template: str, **slots: str) -> Text:
    """Fill the slots; a slot's span takes in the space before it, as most models' tokens do."""
    text = ""
    spans: dict[str, tuple[int, int]] = {}
    for before, slot, _, _ in string.Formatter().parse(template):
        text += before
        if slot is None:
            continue
        if slot not in slots:
            raise BadInput(
                f"template {template!r} has a slot {{{slot}}}; this task fills "
                f"{', '.join('{' + s + '}' for s in slots)}."
            )
        start = len(text) - text.endswith(" ")
        text += slots[slot]
        spans.setdefault(slot, (start, len(text)))
    return Text(text, spans, template)


@dataclass(frozen=True)
class Example:
    """One prompt with its twin; `where` names positions by slot, `changed` those that differ."""

    clean: Text
    corrupt: Text
    answer: tuple[str, ...]
    foil: tuple[str, ...]
    where: Mapping[str, str]
    changed: tuple[str, ...]

    def mirror(self) -> Example:
        """Return the twin's own example, in which the roles are exchanged."""
        return replace(
            self, clean=self.corrupt, corrupt=self.clean, answer=self.foil, foil=self.answer
        )


class Fit:
    """What one tokenizer does to words and prompts."""

    def __init__(self, model: Any) -> None:
        """Take a Model or a tokenizer; BadInput if it has none or ends prompts with a token."""
        self.tokenizer: Any = getattr(model, "tokenizer", model)
        self.dropped: dict[str, list[str]] = {}
        if not callable(self.tokenizer):
            raise BadInput(f"a task needs a model with a tokenizer; {model!r} has none.")
        bare = list(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        full = self.ids("a")
        if full[-len(bare) :] != bare:
            last = self.tokenizer.convert_ids_to_tokens(full[-1])
            raise BadInput(
                f"this tokenizer ends every prompt with {last!r}, so nothing is predicted after "
                "it; next-token tasks need a decoder's tokenizer."
            )

    def ids(self, text: str) -> list[int]:
        """Token ids as the model sees them, its own start token included."""
        return list(self.tokenizer(text)["input_ids"])

    def pieces(self, text: str, after: str = "the") -> list[str]:
        """How `text` splits when it follows `after`."""
        ids = self.ids(after + text)[len(self.ids(after)) :]
        return [self.tokenizer.decode([i]) for i in ids]

    def single(self, text: str, after: str = "the") -> int | None:
        """The one token id of `text` following `after`, or None if it is not exactly one."""
        before, both = self.ids(after), self.ids(after + text)
        fits = both[:-1] == before and both[-1] != getattr(self.tokenizer, "unk_token_id", None)
        return both[-1] if fits else None

    def keep(self, words: Iterable[str], what: str, need: int) -> list[str]:
        """Return the words that are one token with a leading space; fewer than `need` is an error.

        Dropped words are remembered, for this and later errors to name.
        """
        words = list(dict.fromkeys(words))
        fits = [w for w in words if self.single(" " + w) is not None]
        kept = set(fits)
        self.dropped |= {w: self.pieces(" " + w) for w in words if w not in kept}
        if len(fits) < need:
            raise BadInput(
                f"{len(fits)} of {len(words)} {what} can be used and {need} are needed."
                f"{self.why()} Give other {what}."
            )
        return fits

    def check_n(self, n: int, most: int, task: str) -> None:
        """Raise BadInput unless 1 <= n <= most, the number of distinct prompts there are."""
        if n < 1:
            raise BadInput(f"{task} was asked for n={n} prompts; n must be at least 1.")
        if n > most:
            raise BadInput(
                f"{task} was asked for n={n} prompts and these words and templates make {most} "
                f"distinct ones; take n <= {most}, or give more words or templates.{self.why()}"
            )

    def why(self) -> str:
        """Return the sentence that names the words dropped so far and how they split, or ""."""
        shown = [f"{word!r} = {pieces}" for word, pieces in self.dropped.items()]
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        listed = f"{', '.join(shown[:8])}{more}"
        return f" Not one token for this tokenizer: {listed}." if shown else ""

    def place(self, text: Text, slot: str) -> int | None:
        """Position of a slot's token, or None if the slot is not exactly one token there."""
        if slot not in text.spans:
            raise BadInput(f"template {text.template!r} needs a slot {{{slot}}}.")
        start, end = text.spans[slot]
        before, head = self.ids(text.text[:start]), self.ids(text.text[:end])
        whole = self.ids(text.text)[: len(head)]
        return len(head) - 1 if whole == head and head[:-1] == before else None

    def position(self, text: Text, slot: str) -> int:
        """Position of a slot's token; BadInput if the slot is not exactly one token there."""
        found = self.place(text, slot)
        if found is None:
            start, end = text.spans[slot]
            raise BadInput(
                f"{text.text[start:end]!r} is not one token of its own in {text.text!r}, so "
                f"{{{slot}}} has no position; put a space before the slot, or take another word."
            )
        return found

    def next_ids(self, text: Text, replies: Sequence[str]) -> list[int]:
        """The one token id of each reply after the prompt; BadInput for a reply of several."""
        out = []
        for reply in replies:
            found = self.single(reply, after=text.text)
            if found is None:
                raise BadInput(
                    f"{reply!r} is not one token after {text.text!r}: it splits into "
                    f"{self.pieces(reply, after=text.text)}; answers and foils must be one token."
                )
            out.append(found)
        return out


def build(
    fit: Fit,
    name: str,
    examples: Sequence[Example],
    *,
    seed: int,
    groups: Sequence[int],
    measure: str = "logit_diff",
    ragged: bool = False,
    known: Mapping[str, int] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Task:
    """Check every example against the tokenizer and return the Task.

    `known` holds ids of replies that need no check after each prompt; `attrs` is what results
    should say besides the template. Raises BadInput, naming the prompt, where twins differ in
    length or outside the named positions, an answer is not one token, or (unless `ragged`)
    prompts differ in length.
    """
    lengths: list[int] = []
    places: list[dict[str, int]] = []
    answers: list[list[int]] = []
    foils: list[list[int]] = []
    for example in examples:
        clean, corrupt = fit.ids(example.clean.text), fit.ids(example.corrupt.text)
        pair = f"{example.clean.text!r} and {example.corrupt.text!r}"
        here = {p: fit.position(example.clean, slot) for p, slot in example.where.items()}
        there = {p: fit.position(example.corrupt, slot) for p, slot in example.where.items()}
        if len(clean) != len(corrupt):
            raise BadInput(f"{pair} have {len(clean)} and {len(corrupt)} tokens; twins need equal.")
        here["END"] = there["END"] = len(clean) - 1
        differ = {i for i, (a, b) in enumerate(zip(clean, corrupt)) if a != b}
        stray = differ - {here[p] for p in example.changed}
        if here != there or stray or not differ:
            raise BadInput(
                f"{pair} should differ at {', '.join(example.changed)} only, and do at positions "
                f"{sorted(differ)}."
            )
        lengths.append(len(clean))
        places.append(here)
        for reply, rows in ((example.answer, answers), (example.foil, foils)):
            rows.append([known[r] for r in reply] if known else fit.next_ids(example.clean, reply))
    if len(set(lengths)) > 1 and not ragged:
        other = next(i for i, k in enumerate(lengths) if k != lengths[0])
        raise BadInput(
            f"{name} prompts differ in length, so positions cannot be averaged: "
            f"{examples[0].clean.text!r} has {lengths[0]} tokens, {examples[other].clean.text!r} "
            f"has {lengths[other]}. Take one template, or pass ragged=True."
        )
    return Task(
        name=name,
        clean=tuple(e.clean.text for e in examples),
        corrupt=tuple(e.corrupt.text for e in examples),
        answers=tuple("|".join(e.answer) for e in examples),
        foils=tuple("|".join(e.foil) for e in examples),
        answer_sets=_padded(answers),
        foil_sets=_padded(foils),
        positions={p: torch.tensor([row[p] for row in places]) for p in places[0]},
        changed=examples[0].changed,
        groups=torch.tensor(groups),
        templates=tuple(e.clean.template for e in examples),
        lengths=torch.tensor(lengths),
        seed=seed,
        measure=measure,
        attrs={"template": sorted({e.clean.template for e in examples}), **(attrs or {})},
    )


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])
