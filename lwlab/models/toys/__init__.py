"""Small models made here: random ones of every architecture, and ones trained here by a recipe.

`tiny(arch)` makes a random model in milliseconds, for tests. `lw.load("toys/char-gpt2")`, or any
other name of `TABLE`, gives a trained one: trained on this machine at the first use, with progress,
and kept in the cache. `toys/NAME:SEED` is the same recipe from another seed, `toys/NAME@STEP` the
model as it was after that many steps, where the recipe keeps it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwlab.models.toys.architectures import ARCHS, VOCAB, WORDS, tiny, tokenizer
    from lwlab.models.toys.recipe import Recipe, characters
    from lwlab.models.toys.training import find, history, train, trained

TABLE: dict[str, str | type[Recipe]] = {
    "arithmetic": "arithmetic:Arithmetic",
    "char-gpt2": "char_gpt2:CharGPT2",
    "char-llama": "char_llama:CharLlama",
    "char-llama-code": "merging_tunes:Code",
    "char-llama-reversed": "merging_tunes:Reversed",
    "char-llama-upper": "merging_tunes:Upper",
    "char-relu": "char_relu:CharRelu",
    "char-relu-random": "char_relu:CharReluRandom",
    "vit-digits": "vit_digits:ViTDigits",
    "char-gpt2-ln-free": "ln_free:LNFree",
    "char-gpt2-tuned": "ln_free:Tuned",
}
"""Name of a trained toy to its recipe: `module:class` in this package, or a `Recipe` of yours."""

_LAZY = {
    **dict.fromkeys(("ARCHS", "VOCAB", "WORDS", "tiny", "tokenizer"), "architectures"),
    **{"Recipe": "recipe", "characters": "recipe"},
    **{"find": "training", "history": "training", "train": "training", "trained": "training"},
}
__all__ = [
    "ARCHS",
    "TABLE",
    "VOCAB",
    "WORDS",
    "Recipe",
    "characters",
    "find",
    "history",
    "tiny",
    "tokenizer",
    "train",
    "trained",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lwlab.models.toys' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lwlab.models.toys.{_LAZY[name]}"), name)
