"""toys/char-gpt2: a GPT-2 in small that writes Python's documentation letter by letter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lwlab.models.toys.recipe import Recipe, characters

LENGTH = 128
BATCH = 8


class CharGPT2(Recipe):
    """GPT-2 (LayerNorm, GELU, learned positions), 4 layers, 4 heads, width 96, 0.46 M weights.

    Read: the topics of Python's documentation (`lw.tasks.corpus("pydoc")`), letter by letter, 128
    letters a text; the last tenth of the letters is held out.
    """

    name = "char-gpt2"
    summary = "GPT-2 in small (4 layers, width 96), letters of Python's documentation"
    steps = 800
    keep = (0, 10, 25, 50, 100, 200, 300, 400, 600)

    def build(self) -> None:
        """Draw the weights and read the text."""
        from transformers import GPT2Config, GPT2LMHeadModel

        self.tokenizer = characters(LENGTH)
        self.module = GPT2LMHeadModel(
            GPT2Config(
                **{"vocab_size": len(self.tokenizer), "n_positions": LENGTH, "n_embd": 96},
                **{"n_layer": 4, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
                **{"attn_pdrop": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1},
            )
        )
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.train_ids, self.held_out = letters(self.tokenizer)

    def rate(self, step: int) -> float:
        """Rise over 20 steps, then fall as a cosine to a tenth."""
        if step < 20:
            return (step + 1) / 20
        along = (step - 20) / (self.steps - 20)
        return 0.55 + 0.45 * math.cos(math.pi * along)

    def batch(self, step: int, generator: torch.Generator) -> Tensor:
        """Draw 8 stretches of 128 letters."""
        return stretches(self.train_ids, BATCH, LENGTH, generator)

    def loss(self, batch: Tensor) -> Tensor:
        """Cross-entropy of the next letter, in nats."""
        logits: Any = self.module(batch).logits[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def measure(self) -> dict[str, float]:
        """Loss in nats a letter on 64 held-out stretches, the same at every call."""
        batch = stretches(self.held_out, 64, LENGTH, torch.Generator().manual_seed(0))
        return {"held_out_loss": float(self.loss(batch))}


def letters(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Return the ids of the text's letters: the first nine tenths, and the last for measuring."""
    from lwlab.tasks import corpus

    text = "\n\n".join(corpus("pydoc", seed=0))
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:]


def stretches(ids: Tensor, n: int, length: int, generator: torch.Generator) -> Tensor:
    """Draw `n` stretches of `length` ids: [n, length]."""
    starts = torch.randint(len(ids) - length, (n,), generator=generator)
    return ids[starts[:, None] + torch.arange(length)]
