"""toys/char-gpt2-ln-free and its twin: the letters model without LayerNorm, and tuned as long with.

After arXiv:2507.02559: while training goes on, one LayerNorm after the other has its standard
deviation replaced by a constant, y = g (x - mean x) / S + b, with S the running average of what it
was. First the norms before the MLPs, layer by layer, then those before attention, then the last.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lwlab.models.toys.char_gpt2 import BATCH, LENGTH, letters, stretches
from lwlab.models.toys.recipe import Recipe

MOMENTUM = 0.9
#: A LayerNorm with this eps divides by its root, whatever comes; its gain makes up for it.
EPS = 1e12


class Leaving(nn.LayerNorm):
    """A LayerNorm that notes its standard deviation in training, and can hold it constant."""

    def __init__(self, old: nn.LayerNorm) -> None:
        super().__init__(old.normalized_shape, eps=old.eps)
        self.weight, self.bias = old.weight, old.bias
        self.scale: float | None = None
        self.now = 0.0
        self.frozen = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, or divide by the constant."""
        if self.training:
            with torch.no_grad():
                self.now = float((x.var(-1, unbiased=False) + 1e-5).sqrt().mean())
            if not self.frozen:
                before = self.now if self.scale is None else self.scale
                self.scale = MOMENTUM * before + (1 - MOMENTUM) * self.now
        if not self.frozen:
            return super().forward(x)
        assert self.scale is not None
        return (x - x.mean(-1, keepdim=True)) / self.scale * self.weight + self.bias

    def release(self) -> None:
        """Become a plain LayerNorm that computes the same: eps of 1e12 and a gain of g 1e6 / S."""
        assert self.scale is not None
        self.weight.data *= math.sqrt(EPS) / self.scale
        self.eps, self.frozen = EPS, False


class Tuned(Recipe):
    """toys/char-gpt2 trained 240 steps further, on the same text, with its LayerNorms."""

    name = "char-gpt2-tuned"
    summary = "toys/char-gpt2 tuned 240 steps further: the twin of toys/char-gpt2-ln-free"
    steps = 240
    every = 1
    parents = ("char-gpt2",)
    #: The step of the first removal, and steps between two; none at all where `first` is negative.
    first = -1
    gap = 16

    def build(self) -> None:
        """Take the trained model and put norms into it that can be frozen."""
        from transformers import AutoTokenizer, GPT2LMHeadModel

        from lwlab.models.loading import quiet
        from lwlab.models.toys.training import find, train

        parent = find("char-gpt2")
        folder = train(parent) / f"step-{parent.steps}"
        with quiet():
            module: Any = GPT2LMHeadModel.from_pretrained(folder)
        self.module = module
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.norms: dict[str, Leaving] = {}
        for part in ("ln_2", "ln_1"):
            for i, block in enumerate(module.transformer.h):
                setattr(block, part, Leaving(getattr(block, part)))
                self.norms[f"{i}.{part}"] = getattr(block, part)
        module.transformer.ln_f = self.norms["ln_f"] = Leaving(module.transformer.ln_f)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=6e-4, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.train_ids, self.held_out = letters(self.tokenizer)

    def schedule(self) -> dict[str, int]:
        """Return the step at which each norm is frozen, in order; empty for the twin."""
        if self.first < 0:
            return {}
        return {name: self.first + self.gap * i for i, name in enumerate(self.norms)}

    def rate(self, step: int) -> float:
        """Rise over 20 steps, then fall as a cosine to a tenth."""
        if step < 20:
            return (step + 1) / 20
        return 0.55 + 0.45 * math.cos(math.pi * (step - 20) / (self.steps - 20))

    def batch(self, step: int, generator: torch.Generator) -> Tensor:
        """Draw 8 stretches of 128 letters."""
        return stretches(self.train_ids, BATCH, LENGTH, generator)

    def loss(self, batch: Tensor) -> Tensor:
        """Cross-entropy of the next letter, in nats."""
        logits: Any = self.module(batch).logits[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def step(self, step: int) -> dict[str, float]:
        """Freeze what is due, take the step, and note how far each norm's input has drifted."""
        for name, at in self.schedule().items():
            self.norms[name].frozen = step >= at
        numbers = super().step(step)
        numbers["removed"] = float(sum(n.frozen for n in self.norms.values()))
        numbers |= {f"sd {name}": n.now for name, n in self.norms.items()}
        if step % 20 == 0 or step + 1 == self.steps:
            self.module.eval()
            with torch.no_grad():
                batch = stretches(self.held_out, 16, LENGTH, torch.Generator().manual_seed(0))
                numbers["held_out"] = float(self.loss(batch))
        if step + 1 == self.steps and self.schedule():
            for norm in self.norms.values():
                norm.release()
            config: Any = self.module.config
            config.layer_norm_epsilon = EPS
        return numbers

    def measure(self) -> dict[str, float]:
        """Loss in nats a letter on 64 held-out stretches, and the constant of each norm."""
        batch = stretches(self.held_out, 64, LENGTH, torch.Generator().manual_seed(0))
        scales = {f"S {name}": norm.scale or 0.0 for name, norm in self.norms.items()}
        return {"held_out_loss": float(self.loss(batch)), **scales}

    def state(self) -> dict[str, Any]:
        """Return the running averages."""
        return {name: norm.scale for name, norm in self.norms.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take the running averages back."""
        for name, scale in state.items():
            self.norms[name].scale = scale


class LNFree(Tuned):
    """The same, with the nine LayerNorms frozen one after the other, 16 steps apart, from step 20.

    Kept as the paper's models are: as GPT-2 with LayerNorms whose eps is 1e12.
    """

    name = "char-gpt2-ln-free"
    summary = "toys/char-gpt2 tuned 240 steps while its nine LayerNorms are removed one by one"
    first = 20
