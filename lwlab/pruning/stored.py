"""Read a pruned model from its folder: the architecture made narrow, then filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lwlab.errors import BadInput
from lwlab.models import build, layouts
from lwlab.models.kept import kept
from lwlab.models.model import Model
from lwlab.pruning.cut import cut
from lwlab.pruning.units import PARTS, slabs


def read(path: str | Path, config: Any, auto: Any, dtype: torch.dtype) -> nn.Module:
    """Return the module in `path`, whose configuration says what its layers keep.

    `auto`: the transformers class that makes it. Raises BadInput where widths and weights disagree.
    """
    from safetensors.torch import load_file

    module: nn.Module = auto.from_config(config, dtype=dtype)
    layout = layouts.find(config.get_text_config().model_type)
    if layout is None:
        raise BadInput(f"{path} says what its layers keep, but its architecture has no layout here")
    anatomy = build.from_layout(module, layout)
    whole = Model(str(path), module, None, anatomy)
    for part, widths in kept(config).items():
        if part not in PARTS or len(widths) != anatomy.n_layers:
            raise BadInput(f"{path}: what its layers keep ({part}: {widths}) is not understood")
        units = slabs(whole, part)
        n = len(units[0][0].index)
        # Which units stayed does not matter any more, only how many.
        cut(module, anatomy, part, units, np.arange(n)[None] < np.array(widths)[:, None])
    state: dict[str, torch.Tensor] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        state |= load_file(file)
    try:
        lacking = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise BadInput(f"{path}: widths and weights disagree: {str(error)[:300]}") from None
    module.tie_weights()  # type: ignore[operator]
    named = dict(module.named_parameters(remove_duplicate=False))
    filled = {id(named[k]) for k in state if k in named}
    buffers = dict(module.named_buffers())
    empty = [k for k in lacking.missing_keys if k not in buffers and id(named[k]) not in filled]
    if empty or lacking.unexpected_keys:
        raise BadInput(f"{path}: weights missing {empty}, not known {lacking.unexpected_keys}")
    return module
