"""Models whose weights are elsewhere: a skeleton here, the runs on a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lwlab.errors import FetchError
from lwlab.models.model import Model
from lwlab.tracing import _nnsight

_WHY = "a server's attention cannot be switched to the explicit form from here"


def packed(model: Model) -> Model:
    """Return a model whose runs are packed as for a server, and then made here."""
    anatomy = model.anatomy
    if "attn_pattern" in anatomy.taps:
        anatomy = anatomy.without("attn_pattern", _WHY)
    return replace(model, anatomy=anatomy, remote="local")


def skeleton(name: str, dtype: torch.dtype, stack: str | None, remote: bool | str) -> Model:
    """Return a model without weights, for traces that run on a server.

    `name`: a hub id, or a folder that lies at the same place on the server; "id@revision" pins one.
    Its modules are on PyTorch's meta device (shapes, no data), so no identity can be measured: the
    anatomy is taken from the architecture, which must be one that lwlab knows.

    Raises FetchError where neither the configuration nor the tokenizer can be had.
    """
    import transformers as tf

    from lwlab.models.loading import anatomy_of, auto_class, tokenizer_at

    repo, _, revision = name.partition("@") if not Path(name).exists() else (name, "", "")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        config = tf.AutoConfig.from_pretrained(repo, **options)
        tokenizer = tokenizer_at(repo, **options)
    except (OSError, ValueError) as error:
        raise FetchError(
            f"remote model {name}: its configuration or tokenizer is not to be had "
            f"({str(error).strip().splitlines()[0][:200]})"
        ) from error
    generates = auto_class(config) is tf.AutoModelForCausalLM
    task = "text-generation" if generates else "feature-extraction"
    nn_ = _nnsight.skeleton(repo, revision or None, tokenizer, task, dtype)
    module = nn_._module.eval()
    anatomy = anatomy_of(module, stack)
    if "attn_pattern" in anatomy.taps:
        anatomy = anatomy.without("attn_pattern", _WHY)
    return Model(name, module, nn_, anatomy, tokenizer, "", f"remote: {repo}", remote=remote)
