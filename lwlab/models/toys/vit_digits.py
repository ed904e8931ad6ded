"""toys/vit-digits: a vision transformer in small that reads handwritten digits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lwlab.models.toys.recipe import Recipe

BATCH = 32


class ViTDigits(Recipe):
    """ViT, 4 layers, 4 heads, width 64, MLP 128, 16 patches of 2 x 2 and a class token.

    Read: three quarters of scikit-learn's 1,797 digits (`lw.tasks.digits()`); measured on the rest.
    Matrices start at N(0, 0.01) and tokens and positions at N(0, 0.04): with transformers' usual
    0.02 deviations the patches all look alike at this width, and it takes twenty times as long.
    """

    name = "vit-digits"
    summary = "vision transformer in small (4 layers, width 64), scikit-learn's digits"
    steps = 600
    keep = (0, 50, 200)

    def build(self) -> None:
        """Draw the weights and fetch the digits."""
        from transformers import ViTConfig, ViTForImageClassification

        from lwlab.tasks import digits

        self.module = ViTForImageClassification(
            ViTConfig(
                **{"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10},
                **{"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
                **{"intermediate_size": 128, "hidden_dropout_prob": 0.0},
                attention_probs_dropout_prob=0.0,
            )
        )
        for name, weight in self.module.named_parameters():
            if "embeddings" in name and "bias" not in name:
                nn.init.normal_(weight, 0, 0.2)
            elif weight.dim() > 1:
                nn.init.normal_(weight, 0, 0.1)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-3, weight_decay=0.05)
        self.data = digits()

    def rate(self, step: int) -> float:
        """Rise over 30 steps, then fall as a cosine to nought."""
        if step < 30:
            return (step + 1) / 30
        return 0.5 + 0.5 * math.cos(math.pi * (step - 30) / (self.steps - 30))

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw 32 digits."""
        which = torch.randint(len(self.data.train_y), (BATCH,), generator=generator)
        return self.data.train_x[which], self.data.train_y[which]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy of the digit, in nats."""
        out: Any = self.module(batch[0])
        return functional.cross_entropy(out.logits, batch[1])

    def measure(self) -> dict[str, float]:
        """Accuracy and loss on the held-out digits."""
        out: Any = self.module(self.data.test_x)
        right = (out.logits.argmax(1) == self.data.test_y).float().mean()
        loss = functional.cross_entropy(out.logits, self.data.test_y)
        return {"held_out_accuracy": float(right), "held_out_loss": float(loss)}
