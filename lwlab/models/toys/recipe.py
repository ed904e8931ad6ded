"""How a small model is made: what a recipe says, and the checksum that names its result."""

from __future__ import annotations

import hashlib
import inspect
import sys
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Recipe:
    """A model, its data and its training, complete and repeatable. One subclass a toy.

    A subclass sets the class attributes, builds `module`, `tokenizer` (or None) and `optimizer` in
    `build`, and gives `batch` and `loss`; the rest has defaults to replace where a recipe needs it
    (a schedule of events, another optimiser, several losses). `build` runs under
    `torch.manual_seed(seed)`. Everything drawn for step i comes from the generator given to
    `batch`, which is made of the seed and i alone: so a run that was cut off goes on exactly where
    it would have been.

    Attributes: `name` as in `lw.load("toys/<name>")`; `summary`, one line; `steps`; `keep`, the
    steps whose weights are kept beside the last ones (0 is the model before training); `every`,
    how often the numbers of a step are recorded; `parents`, the toys that `build` starts from.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    steps: ClassVar[int]
    keep: ClassVar[tuple[int, ...]] = ()
    every: ClassVar[int] = 10
    parents: ClassVar[tuple[str, ...]] = ()

    module: nn.Module
    tokenizer: Any = None
    optimizer: torch.optim.Optimizer

    def __init__(self, seed: int = 0) -> None:
        """Build everything for one training run from `seed`; torch's generator stays as it was."""
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.build()

    def build(self) -> None:
        """Set `module`, `tokenizer`, `optimizer` and the data."""
        raise NotImplementedError

    def batch(self, step: int, generator: torch.Generator) -> Any:
        """Return what `loss` of this step (from 0) is computed on."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """Return the scalar to go down on."""
        raise NotImplementedError

    def rate(self, step: int) -> float:
        """Return what the optimiser's learning rates are multiplied with at a step."""
        return 1.0

    def measure(self) -> dict[str, float]:
        """Return numbers on held-out data; called, without gradients, where weights are kept."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the weights and the optimiser's state."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""

    def step(self, step: int) -> dict[str, float]:
        """Do step number `step` (from 0) and return the numbers to record; clips at norm 1."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        if not hasattr(self, "_rates"):
            self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        factor = self.rate(step)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.batch(step, generator))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        return {"loss": float(loss.detach()), "grad_norm": float(norm)}

    @classmethod
    def checksum(cls) -> str:
        """Eight digits over the text of the recipe's module, of this one, and of its parents.

        Another text, another model: the cache never gives out what an older recipe made.
        """
        from lwlab.models.toys.training import find

        digest = hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode())
        try:
            digest.update(inspect.getsource(sys.modules[cls.__module__]).encode())
        except (OSError, TypeError):  # a class written in a notebook has no module with a file
            digest.update(inspect.getsource(cls).encode())
        for parent in cls.parents:
            digest.update(find(parent).checksum().encode())
        return digest.hexdigest()[:8]


def characters(length: int = 128) -> Any:
    """Return a tokenizer whose tokens are single characters: newline and printable ASCII.

    Ids 0 to 2 are `<pad>`, `<eos>` and `<unk>`; 99 tokens in all. Nothing is added around a text
    and decoding gives it back.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    listed = ["<pad>", "<eos>", "<unk>", "\n", *map(chr, range(32, 127))]
    vocabulary = {word: i for i, word in enumerate(listed)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=length,
    )
