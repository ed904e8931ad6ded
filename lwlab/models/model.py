"""`Model`: one network, its tokenizer, its anatomy and its nnsight view."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from lwlab.errors import BadInput, MissingSite
from lwlab.models.anatomy import Anatomy
from lwlab.models.tokens import Side, Tokens, tokenize

Prompts = str | Sequence[str] | Tokens | torch.Tensor | Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Model:
    """What `lw.load` and `lw.wrap` return.

    `module` is the torch model, its weights untouched; `nn` is the raw nnsight model over it, for
    traces of your own; `anatomy` says which sites it has. `rules` names the backward rules in
    force (see `lw.rules`), empty for an ordinary model. `example` is a short input of the model's
    own kind, where one was given. `remote` is what was given to `lw.load`: with True or an
    address, `module` is a skeleton without weights, and traces run on that server.
    """

    name: str
    module: nn.Module
    nn: Any
    anatomy: Anatomy
    tokenizer: Any = None
    checksum: str = ""
    source: str = ""
    rules: tuple[str, ...] = ()
    checks: Mapping[str, float] = field(default_factory=dict)
    example: Prompts | None = None
    remote: bool | str = False

    def __repr__(self) -> str:
        a = self.anatomy
        shape = f"{a.n_layers} layers" + (f", {a.n_heads} heads" if a.n_heads else "")
        kv = f" ({a.n_kv_heads} key/value)" if a.n_kv_heads != a.n_heads else ""
        ruled = f", rules {'+'.join(self.rules)}" if self.rules else ""
        far = f", remote={self.remote!r}" if self.remote else ""
        return f"<Model {self.name}: {a.name}, {shape}{kv}, d_model {a.d_model}{ruled}{far}>"

    def __reduce__(self) -> Any:
        """Refuse to be pickled, saying what to send to another process instead."""
        raise BadInput(
            f"{self.name}: a Model stays in its process. Send its name and call lw.load there, or "
            "send model.module and call lw.wrap there."
        )

    @property
    def kind(self) -> str:
        """decoder, encoder, encoder-decoder, vision or generic."""
        return self.anatomy.kind

    @property
    def device(self) -> torch.device:
        """Where the inputs go: to the first weights that are not offloaded."""
        held = (p.device for p in self.module.parameters() if not p.is_meta)
        return next(held, torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next((p.dtype for p in self.module.parameters()), torch.float32)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.anatomy.n_layers

    @property
    def n_heads(self) -> int | None:
        """Query heads a layer."""
        return self.anatomy.n_heads

    @property
    def n_kv_heads(self) -> int | None:
        """Key/value heads a layer."""
        return self.anatomy.n_kv_heads

    @property
    def d_model(self) -> int | None:
        """Width of the residual stream."""
        return self.anatomy.d_model

    @property
    def d_head(self) -> int | None:
        """Width of a head."""
        return self.anatomy.d_head

    @property
    def d_mlp(self) -> int | None:
        """Neurons in an MLP."""
        return self.anatomy.d_mlp

    @property
    def d_vocab(self) -> int | None:
        """Size of the vocabulary."""
        return self.anatomy.d_vocab

    def sites(self) -> list[str]:
        """Names of the sites this model has."""
        return self.anatomy.sites()

    @cached_property
    def forward_names(self) -> frozenset[str]:
        """Keyword names the module's forward takes."""
        return frozenset(inspect.signature(type(self.module).forward).parameters)

    @property
    def max_tokens(self) -> int | None:
        """Longest prompt that the position embeddings allow, or None."""
        config: Any = getattr(self.module, "config", None)
        value = getattr(config, "max_position_embeddings", None)
        if not value:
            return None
        # RoBERTa counts positions from its padding id + 1, and its table is longer by as much.
        return int(value) - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)

    def tokens(self, prompts: Prompts, padding_side: Side | None = None) -> Tokens:
        """Tokenize prompts with this model's tokenizer (its special tokens, nothing else).

        Unequal prompts are padded on the right, or on `padding_side`; Tokens keep their side
        unless one is asked for. Raises BadInput for empty or over-long prompts, ids outside the
        vocabulary, or text when the model has no tokenizer.
        """
        if isinstance(prompts, Mapping):
            raise BadInput("this call needs text or token ids, not a mapping of tensors")
        if self.kind == "vision":
            raise BadInput(
                f"{self.name} reads pictures: pass a [pictures, channels, height, width] tensor"
            )
        if self.tokenizer is None and not isinstance(prompts, Tokens | torch.Tensor):
            raise BadInput(
                f"{self.name} has no tokenizer; pass token ids as a [prompts, positions] tensor"
            )
        tokens = tokenize(
            self.tokenizer, prompts, padding_side,
            max_tokens=self.max_tokens, vocabulary=self.d_vocab,
        )  # fmt: skip
        return tokens.to(self.device)

    def token_id(self, word: str) -> int:
        """Return the id of `word` where it is one token; raise BadInput showing how it splits."""
        if self.tokenizer is None:
            raise BadInput(f"{self.name} has no tokenizer, so no word has an id")
        ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            parts = [self.tokenizer.decode([i]) for i in ids]
            raise BadInput(
                f"{word!r} is {len(ids)} tokens for {self.name}: {parts}; use a one-token word"
            )
        return int(ids[0])

    def unembed(self, stream: torch.Tensor, norm: bool = True) -> torch.Tensor:
        """Logits of a stream h, [..., d_model] -> [..., tokens]: softcap(W_U N(h)).

        With `norm=False`, N is left out.

        Raises MissingSite for a model without an unembedding.
        """
        a = self.anatomy
        if a.unembed is None:
            raise MissingSite(f"{self.name} has no unembedding, so a stream has no logits here")
        from lwlab.tracing import lock

        with lock(self):
            h = self.module.get_submodule(a.final_norm)(stream) if norm and a.final_norm else stream
            z = self.module.get_submodule(a.unembed)(h * a.logit_scale)
        assert isinstance(z, torch.Tensor)
        return z if a.softcap is None else a.softcap * torch.tanh(z / a.softcap)

    def ruled(self, nn_: Any, rules: tuple[str, ...]) -> Model:
        """Return this model seen through another nnsight view."""
        return replace(self, nn=nn_, rules=rules)
