from __future__ import annotations

import re

import pytest

from lwlab.models import toys
from lwlab.tasks import AGREEMENT_TEMPLATES, IOI_TEMPLATES, PRONOUN_TEMPLATES, RELATIONS, words


def _vocabulary() -> list[str]:
    frames = [*IOI_TEMPLATES.values(), *AGREEMENT_TEMPLATES.values()]
    frames += [frame for frame, _, _ in PRONOUN_TEMPLATES.values()]
    frames += [frame for r in RELATIONS.values() for frame in r.templates.values()]
    frames += ["The lasted from the year to the year", "Words: he she his her himself herself"]
    frames += ["is are + - * = a"]
    known = re.findall(r"\w+|[^\w\s]+", re.sub(r"\{\w+\}", " ", " ".join(frames)))
    known += [*words.NAMES, *words.PLACES, *words.OBJECTS, *words.EVENTS, *words.THINGS]
    known += [form for pair in words.NOUNS for form in pair]
    for relation in RELATIONS.values():
        known += [*relation.pairs, *relation.pairs.values()]
    known += [str(i) for i in range(100)] + [f"{i:02d}" for i in range(100)]
    return known


def make_tokenizer(digits: str = "one", start: bool = False, end: bool = False, drop: str = ""):
    """A word-level tokenizer that knows every word of the tasks, except those in `drop`."""
    from tokenizers import Regex, pre_tokenizers, processors

    vocabulary = [w for w in _vocabulary() if w not in drop.split()]
    tokenizer = toys.tokenizer(vocabulary)
    numbers = {"one": r"\d", "two": r"\d{2}|\d", "year": r"\d+"}[digits]
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.Split(Regex(rf"{numbers}|[A-Za-z]+|[^\sA-Za-z\d]+"), "isolated"),
        ]
    )
    if start or end:
        frame = f"{'<bos> ' if start else ''}$A{' <eos>' if end else ''}"
        backend.post_processor = processors.TemplateProcessing(
            single=frame, special_tokens=[("<bos>", 1), ("<eos>", 2)]
        )
    return tokenizer


@pytest.fixture(scope="session")
def make():
    return make_tokenizer


@pytest.fixture(scope="session", params=["plain", "start token", "two digits"])
def tokenizer(request):
    return make_tokenizer(
        digits="two" if request.param == "two digits" else "one",
        start=request.param == "start token",
    )


@pytest.fixture(scope="session")
def tiny():
    """A tiny random Llama that reads the tasks' words."""
    import lwlab

    tokenizer = make_tokenizer()
    module, _ = toys.tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=128)
    return lwlab.wrap(module, tokenizer=tokenizer)
