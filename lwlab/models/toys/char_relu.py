"""toys/char-relu and toys/char-relu-random: ReLU transformers on text and on random labels."""

from __future__ import annotations

import hashlib
import inspect
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lwlab.models.toys.char_gpt2 import LENGTH, CharGPT2, letters, stretches
from lwlab.models.toys.recipe import characters


class CharRelu(CharGPT2):
    """The GPT-2 of toys/char-gpt2 with ReLU for GELU: 4 layers, width 64, MLP 256, 0.22 M weights.

    Data, batches and schedule are those of toys/char-gpt2. What its neurons do is nought or not,
    so its activation sparsity can be counted.
    """

    name = "char-relu"
    summary = "GPT-2 in small with ReLU (4 layers, width 64), letters of Python's documentation"
    steps = 300
    keep = (0, 10, 25, 50, 100, 200)  # type: ignore[assignment]

    def build(self) -> None:
        """Draw the weights and read the text."""
        from transformers import GPT2Config, GPT2LMHeadModel

        self.tokenizer = characters(LENGTH)
        self.module = GPT2LMHeadModel(
            GPT2Config(
                **{"vocab_size": len(self.tokenizer), "n_positions": LENGTH, "n_embd": 64},
                **{"n_layer": 4, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
                **{"attn_pdrop": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1},
                activation_function="relu",
            )
        )
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.train_ids, self.held_out = letters(self.tokenizer)

    @classmethod
    def checksum(cls) -> str:
        """Eight digits over this text and that of the recipe it is made of."""
        own = inspect.getsource(sys.modules[cls.__module__])
        return hashlib.sha256((own + CharGPT2.checksum()).encode()).hexdigest()[:8]


class CharReluRandom(CharRelu):
    """The same network on labels that mean nothing: 16 stretches of text, a random letter a place.

    The labels stay the same, so all there is to learn is to remember them.
    """

    name = "char-relu-random"
    summary = "toys/char-relu on random labels: 16 stretches whose letters to predict were drawn"

    def build(self) -> None:
        """Draw the weights, read the text and draw the labels."""
        super().build()
        generator = torch.Generator().manual_seed(self.seed)
        self.texts = stretches(self.train_ids, 16, LENGTH, generator)
        self.labels = torch.randint(3, len(self.tokenizer), self.texts.shape, generator=generator)

    def batch(self, step: int, generator: torch.Generator) -> Any:
        """Draw 8 of the 16 stretches, with their labels."""
        which = torch.randperm(len(self.texts), generator=generator)[:8]
        return self.texts[which], self.labels[which]

    def loss(self, batch: Any) -> Tensor:
        """Cross-entropy of the label of each place, in nats."""
        logits: Any = self.module(batch[0]).logits
        return functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten())

    def measure(self) -> dict[str, float]:
        """Loss in nats a label and the share of labels remembered, on all 16 stretches."""
        logits: Any = self.module(self.texts).logits
        right = (logits.argmax(-1) == self.labels).float().mean()
        return {
            "training_loss": float(self.loss((self.texts, self.labels))),
            "remembered": float(right),
        }
