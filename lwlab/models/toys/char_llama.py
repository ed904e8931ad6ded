"""toys/char-llama: the letters of toys/char-gpt2 read by a Llama in small, often looked at."""

from __future__ import annotations

import hashlib
import inspect
import sys

import torch

from lwlab.models.toys.char_gpt2 import LENGTH, CharGPT2, letters
from lwlab.models.toys.recipe import characters


class CharLlama(CharGPT2):
    """Llama (RMSNorm, SwiGLU, rotary positions, grouped keys), 4 layers, width 96, 0.46 M weights.

    Data, batches and schedule are those of toys/char-gpt2. Its weights are kept at 37 steps, at
    equal ratios, for what emerges during training.
    """

    name = "char-llama"
    summary = "Llama in small (4 layers, width 96), the same letters; kept at 37 steps"
    keep = (0, *sorted({round(800 ** (i / 42)) for i in range(42)}))

    def build(self) -> None:
        """Draw the weights and read the text."""
        from transformers import LlamaConfig, LlamaForCausalLM

        self.tokenizer = characters(LENGTH)
        self.module = LlamaForCausalLM(
            LlamaConfig(
                **{"vocab_size": len(self.tokenizer), "max_position_embeddings": LENGTH},
                **{"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4},
                **{"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
                **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1},
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
