"""What a sweep costs, by closed formula: rows, floating-point operations, bytes."""

from __future__ import annotations

from lwlab.models.model import Model
from lwlab.models.sites import SITES


def projections(model: Model) -> tuple[int, int, int, int]:
    """Operations of one row: (queries, keys and values, output of attention, MLP).

    2 d_model H d_head, 4 d_model G d_head, 2 H d_head d_model, and 2 d_model d_mlp for each of the
    MLP's two matrices, or three with a gate; 0 for what the anatomy does not size.
    """
    a = model.anatomy
    d, width, kv = a.d_model or 0, (a.n_heads or 0) * (a.d_head or 0), a.n_kv_heads or 0
    mlp = 2 * d * (a.d_mlp or 0) * (3 if a.gated else 2)
    return 2 * d * width, 4 * d * kv * (a.d_head or 0), 2 * width * d, mlp


def attention(model: Model, length: int) -> int:
    """Operations of one query row against `length` keys: 4 H d_head length."""
    a = model.anatomy
    return 4 * (a.n_heads or 0) * (a.d_head or 0) * length


def block_flops(model: Model, length: int) -> int:
    """Matrix-product operations of one block on one prompt."""
    return length * (sum(projections(model)) + attention(model, length))


def forward_flops(model: Model, length: int, columns: int) -> int:
    """Operations of a forward pass of one prompt, `columns` tokens unembedded at its end."""
    return model.n_layers * block_flops(model, length) + 2 * (model.d_model or 0) * columns


def resume_bytes(model: Model, length: int) -> int:
    """What a copy of a prompt holds in the resume engine: its stream before and after a block."""
    return 3 * length * (model.d_model or 1) * model.dtype.itemsize


def site_bytes(model: Model, site: str) -> int:
    """Bytes of one token of one layer at a site."""
    a = model.anatomy
    width = {
        "d_model": a.d_model, "neuron": a.d_mlp, "d_head": a.d_head, "head": a.n_heads,
        "kv_head": a.n_kv_heads,
    }  # fmt: skip
    total = model.dtype.itemsize
    for d in SITES[site].dims[1:]:
        total *= width[d] or 1
    return total
