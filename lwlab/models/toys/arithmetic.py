"""toys/arithmetic: a GPT-2 in small that adds three digits, with a known place to do it in."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from lwlab.models.toys.architectures import tokenizer
from lwlab.models.toys.recipe import Recipe

LAYERS = 6
#: Blocks whose attention can write; elsewhere its output matrix and bias are zero.
OPEN = (2, 3)
BATCH = 128


class Arithmetic(Recipe):
    """GPT-2 of 6 layers, 4 heads, width 64: "3 + 4 + 5 =" -> "12", every number one token.

    All 1,000 sums of three digits, results 0 to 27; the loss is that of the answer alone. A tenth
    of the sums is held out. A start token comes before each prompt.

    The attention of blocks 0, 1, 4 and 5 is zero (its output matrix and bias, held there): tokens
    can hear of each other in blocks 2 and 3 only. So the truth about this model is known: no token
    knows of another before block 2 or learns anything new from block 4 on. Which tokens do the
    work within blocks 2 and 3 is up to training. Without that restriction models of this size do
    not wait: they transfer from block 0 on.
    """

    name = "arithmetic"
    summary = "GPT-2 in small (6 layers, width 64) that adds three digits in blocks 2 and 3"
    steps = 700

    def build(self) -> None:
        """Draw the weights, silence four attentions, list the sums."""
        from tokenizers.processors import TemplateProcessing
        from transformers import GPT2Config, GPT2LMHeadModel

        self.tokenizer = tokenizer([*map(str, range(28)), "+", "="])
        start = self.tokenizer.bos_token_id
        self.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", start)]
        )
        self.module = GPT2LMHeadModel(
            GPT2Config(
                **{"vocab_size": len(self.tokenizer), "n_positions": 16, "n_embd": 64},
                **{"n_layer": LAYERS, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
                **{"attn_pdrop": 0.0, "pad_token_id": 0, "bos_token_id": start, "eos_token_id": 2},
            )
        )
        for i in sorted(set(range(LAYERS)) - set(OPEN)):
            out = self.module.get_submodule(f"transformer.h.{i}.attn.c_proj")
            for p in out.parameters():
                p.requires_grad_(False).zero_()
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.1)
        sums = list(itertools.product(range(10), repeat=3))
        texts = [f"{a} + {b} + {c} =" for a, b, c in sums]
        self.ids = torch.tensor(self.tokenizer(texts)["input_ids"])
        self.answers = torch.tensor(
            [self.tokenizer.convert_tokens_to_ids(str(sum(s))) for s in sums]
        )
        mixed = torch.randperm(len(sums), generator=torch.Generator().manual_seed(0))
        self.held_out, self.train_on = mixed[:100], mixed[100:]

    def rate(self, step: int) -> float:
        """Rise over 50 steps, then fall as a cosine to a tenth."""
        return min(1, (step + 1) / 50) * (0.55 + 0.45 * math.cos(math.pi * step / self.steps))

    def batch(self, step: int, generator: torch.Generator) -> Tensor:
        """Draw numbers of 128 sums to train on."""
        return self.train_on[torch.randint(len(self.train_on), (BATCH,), generator=generator)]

    def loss(self, batch: Tensor) -> Tensor:
        """Cross-entropy of the answers, in nats."""
        return nn.functional.cross_entropy(self._logits(batch), self.answers[batch])

    def measure(self) -> dict[str, float]:
        """Accuracy on the sums it learned from and on those held out."""
        right = self._logits(torch.arange(len(self.ids))).argmax(-1) == self.answers
        parts = {"accuracy": self.train_on, "held_out_accuracy": self.held_out}
        return {k: float(right[i].float().mean()) for k, i in parts.items()}

    def _logits(self, which: Tensor) -> Tensor:
        out: Any = self.module(self.ids[which], logits_to_keep=1)
        z: Tensor = out.logits[:, -1]
        return z
