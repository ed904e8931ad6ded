"""Plain PyTorch: a hook and a whole forward pass for each cell, and what saves some of that.

Everything here is for models of the Llama family, on a module that nothing else has wrapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

from peers.case import Case, Cell

#: Site -> (module of a block, which end of it).
PLACES = {
    "resid_pre": ("", "input"),
    "resid_mid": ("post_attention_layernorm", "input"),
    "attn_out": ("self_attn", "output"),
    "mlp_out": ("mlp", "output"),
    "head_out": ("self_attn.o_proj", "input"),
    "q": ("self_attn.q_proj", "output"),
    "k": ("self_attn.k_proj", "output"),
    "v": ("self_attn.v_proj", "output"),
}


def twin(module: Any) -> Any:
    """The same weights in a module of its own, with its own configuration.

    TransformerLens switches the configuration it is given to eager attention: shared, that would
    slow the others down.
    """
    plain = type(module)(deepcopy(module.config)).eval()
    plain.load_state_dict(module.state_dict(), assign=True)
    return plain.requires_grad_(False)


class Hooks:
    """Patch one site of a module with plain hooks; clean values are read once, when made."""

    def __init__(self, module: Any, case: Case, site: str) -> None:
        self.module, self.case, self.site = module, case, site
        self.layers = module.model.layers
        self.clean = self._read()

    def _at(self, layer: int) -> tuple[nn.Module, str]:
        path, end = PLACES[self.site]
        return self.layers[layer].get_submodule(path), end

    @torch.no_grad()
    def _read(self) -> list[torch.Tensor]:
        out: list[torch.Tensor] = []
        handles = []
        for layer in range(len(self.layers)):
            module, end = self._at(layer)
            if end == "input":
                handles.append(module.register_forward_pre_hook(lambda m, a: out.append(+a[0])))
            else:
                handles.append(module.register_forward_hook(lambda m, a, o: out.append(+first(o))))
        self.module(self.case.clean, use_cache=False)
        for handle in handles:
            handle.remove()
        return out

    def _set(self, layer: int, rows: Sequence[int], cells: Sequence[Cell]) -> Any:
        """Hook that puts cell i into row i of the batch."""
        module, end = self._at(layer)
        heads = self.case.heads(self.site)

        def put(x: torch.Tensor) -> None:
            width = x.shape[-1] // (heads or 1)
            for row, (_, p, *head) in zip(rows, cells):
                part = slice(head[0] * width, (head[0] + 1) * width) if head else slice(None)
                x[row, p, part] = self.clean[layer][0, p, part]

        def before(_m: Any, args: Any, kwargs: Any) -> Any:
            # A norm's input is also the residual: writing in place reaches both of its readers.
            put(args[0] if args else kwargs["hidden_states"])

        def after(_m: Any, _a: Any, output: Any) -> None:
            put(first(output))

        if end == "input":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    @torch.no_grad()
    def one_by_one(self, cells: Sequence[Cell], keep: int = 0) -> np.ndarray[Any, Any]:
        """One forward pass a cell; `keep=1` leaves out the logits of all but the last token."""
        out = []
        for cell in cells:
            handle = self._set(cell[0], [0], [cell])
            z = self.module(self.case.corrupt, use_cache=False, logits_to_keep=keep).logits
            handle.remove()
            out.append(float(self.case.score(z[:, -1])[0]))
        return np.array(out)

    @torch.no_grad()
    def batched(self, cells: Sequence[Cell]) -> np.ndarray[Any, Any]:
        """One forward pass a layer, with the layer's cells as rows of a batch."""
        out = []
        for layer in sorted({c[0] for c in cells}):
            mine = [c for c in cells if c[0] == layer]
            handle = self._set(layer, range(len(mine)), mine)
            rows = self.case.corrupt.expand(len(mine), -1)
            z = self.module(rows, use_cache=False, logits_to_keep=1).logits
            handle.remove()
            out += self.case.score(z[:, -1]).tolist()
        return np.array(out)

    @torch.no_grad()
    def resumed(self, cells: Sequence[Cell]) -> np.ndarray[Any, Any]:
        """The same from the patched layer on: streams that enter it come from the corrupt run."""
        streams = Hooks(self.module, self._swapped(), "resid_pre").clean
        width = self.case.width
        body = self.module.model
        out = []
        for layer in sorted({c[0] for c in cells}):
            mine = [c for c in cells if c[0] == layer]
            handle = self._set(layer, range(len(mine)), mine)
            h = streams[layer].repeat(len(mine), 1, 1)
            where = torch.arange(width)[None]
            turn = body.rotary_emb(h, where)
            for block in self.layers[layer:]:
                h = first(block(h, position_embeddings=turn, position_ids=where))
            handle.remove()
            out += self.case.score(self.module.lm_head(body.norm(h[:, -1]))).tolist()
        return np.array(out)

    def _swapped(self) -> Case:
        case = self.case
        return Case(case.model, case.task, case.corrupt, case.clean)


def first(output: Any) -> torch.Tensor:
    """The activation in a module's output."""
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tensor
