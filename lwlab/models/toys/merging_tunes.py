"""Three fine-tunes of toys/char-llama, made to be merged: capitals, reversed words, Python source.

All start from the same weights and see the same number of letters, so that their differences from
the start (task vectors) can be added, scaled and compared.
"""

from __future__ import annotations

import inspect
import re
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lwlab.errors import UnknownName, suggest
from lwlab.models.toys.char_gpt2 import BATCH, LENGTH, letters, stretches
from lwlab.models.toys.recipe import Recipe

KINDS = ("plain", "upper", "reversed", "code")
#: Modules of the standard library whose source is the text of "code".
MODULES = ("argparse", "ast", "inspect", "subprocess", "textwrap", "zipfile", "tarfile", "typing")


def text_of(kind: str, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Return the ids of one kind of text: nine tenths to learn from, and the last to measure with.

    "plain" is what toys/char-llama learned from; "upper" the same in capitals; "reversed" the same
    with the letters of each word backwards; "code" the source of some of Python's own modules.
    Raises UnknownName for another kind.
    """
    if kind not in KINDS:
        raise UnknownName(f"no kind of text {kind!r}{suggest(kind, KINDS)}")
    plain = letters(tokenizer)
    if kind == "plain":
        return plain
    if kind == "code":
        ids = _ids(tokenizer, _code())
        cut = len(ids) * 9 // 10
        return ids[:cut], ids[cut:]
    # Both halves are rewritten apart: no held-out sentence was seen in any other dress.
    train, held_out = (_ids(tokenizer, _rewrite(kind, tokenizer.decode(ids))) for ids in plain)
    return train, held_out


def _rewrite(kind: str, text: str) -> str:
    if kind == "upper":
        return text.upper()
    return re.sub(r"[A-Za-z]+", lambda word: word.group()[::-1], text)


@lru_cache(maxsize=1)
def _code() -> str:
    import importlib

    sources = [inspect.getsource(importlib.import_module(name)) for name in MODULES]
    return "".join(c for c in "\n".join(sources) if c == "\n" or " " <= c <= "~")


def _ids(tokenizer: Any, text: str) -> Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


class Upper(Recipe):
    """toys/char-llama tuned 80 steps on the same text in capitals."""

    name = "char-llama-upper"
    summary = "toys/char-llama tuned 80 steps on capitals, to be merged"
    kind: ClassVar[str] = "upper"
    steps = 80
    every = 1
    parents = ("char-llama",)

    def build(self) -> None:
        """Take the trained model and the text of this kind."""
        from transformers import AutoTokenizer, LlamaForCausalLM

        from lwlab.models.loading import quiet
        from lwlab.models.toys.training import find, train

        parent = find("char-llama")
        folder = train(parent) / f"step-{parent.steps}"
        with quiet():
            module: Any = LlamaForCausalLM.from_pretrained(folder)
        self.module = module
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.train_ids, self.held_out = text_of(self.kind, self.tokenizer)
        self.plain = text_of("plain", self.tokenizer)[1]

    def rate(self, step: int) -> float:
        """Rise over 10 steps, then fall to a tenth."""
        return min((step + 1) / 10, 1 - 0.9 * (step - 10) / (self.steps - 10))

    def batch(self, step: int, generator: torch.Generator) -> Tensor:
        """Draw 8 stretches of 128 letters."""
        return stretches(self.train_ids, BATCH, LENGTH, generator)

    def loss(self, batch: Tensor) -> Tensor:
        """Cross-entropy of the next letter, in nats."""
        logits: Any = self.module(batch).logits[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def measure(self) -> dict[str, float]:
        """Loss in nats a letter on 32 held-out stretches, of this text and of the plain one."""
        held = {"held_out_loss": self.held_out, "plain_loss": self.plain}
        return {
            name: float(self.loss(stretches(ids, 32, LENGTH, torch.Generator().manual_seed(0))))
            for name, ids in held.items()
        }


class Reversed(Upper):
    """toys/char-llama tuned 80 steps on text whose words are written backwards."""

    name = "char-llama-reversed"
    summary = "toys/char-llama tuned 80 steps on words written backwards, to be merged"
    kind = "reversed"


class Code(Upper):
    """toys/char-llama tuned 80 steps on Python source."""

    name = "char-llama-code"
    summary = "toys/char-llama tuned 80 steps on Python source, to be merged"
    kind = "code"
