"""Sources of toy notebooks: no model, so that a run takes a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

HEADER = """\
# ---
# jupyter:
#   lwlab:
#     id: {id}
#     family: depth
#     title: "A toy: {id}"
#     paper: "2501.00001"
#     cost: {{seconds: 3, memory_mb: 100}}
#     model: tiny
# ---

# %% [markdown]
# # A toy
# with $x^2$

# %% tags=["parameters"]
from typing import Literal

model: str = "tiny"  # any name
profile: Literal["quick", "full"] = "quick"
seed: int = 0
n: int = 3  # how many
"""

CLAIM = """\
import lwlab as lw
lw.claim("toy.n", statement="n is large", measured=n, expect=">= 3", kind="paper",
         n=n, seed=seed, model=model, pinned={"tiny": "reproduced"})
"""

#: Writes a notebook of the given cells and returns its source.
Toy = Callable[..., Path]
