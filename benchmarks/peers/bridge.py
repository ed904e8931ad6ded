"""TransformerLens 4: `patching.generic_activation_patch` on a bridge over the local folder."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge

from peers.case import Case, Cell

#: Our site -> the name it has there.
NAMES = {"head_out": "z"}


def version() -> str:
    """The release of TransformerLens that runs."""
    from importlib.metadata import version

    return version("transformer-lens")


def load(module: Any, folder: str, tokenizer: Any) -> Any:
    """A bridge over `module`, which it changes: give it one of its own."""
    logging.getLogger("transformer_lens").setLevel(logging.ERROR)
    bridge = TransformerBridge.boot_transformers(
        folder, hf_model=module, tokenizer=tokenizer, device="cpu"
    )
    return bridge.eval()


class Bridge:
    """Patch one site by TransformerLens' own loop; its clean cache is made once."""

    def __init__(self, bridge: Any, case: Case, site: str) -> None:
        self.bridge, self.case = bridge, case
        self.name = NAMES.get(site, site)
        with torch.no_grad():
            _, self.cache = bridge.run_with_cache(case.clean)

    @torch.no_grad()
    def one_by_one(self, cells: Sequence[Cell]) -> np.ndarray[Any, Any]:
        """One `run_with_hooks` a cell, as the library does it."""
        heads = len(cells[0]) == 3
        setter = (
            patching.layer_pos_head_vector_patch_setter
            if heads
            else patching.layer_pos_patch_setter
        )
        index = pd.DataFrame(cells, columns=["layer", "pos", "head_index"][: len(cells[0])])
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            out = patching.generic_activation_patch(
                self.bridge,
                self.case.corrupt,
                self.cache,
                lambda z: self.case.score(z[:, -1])[0],
                setter,
                self.name,
                index_df=index,
            )
        return np.asarray(out)
