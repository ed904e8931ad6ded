"""Sparse autoencoders: TopK codes, and decoding that touches only the active features.

x_hat = b_dec + sum_i z_i W_dec[i] over the active features of a row: a weighted sum of a few rows
of the decoder, which is what `embedding_bag` computes; the dense product z @ W_dec multiplies
mostly by zero. TopK autoencoders: Gao et al. 2024 (arXiv:2406.04093).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from lwlab.errors import BadInput


class Code(NamedTuple):
    """Active features of n rows: `ids` and `values` [total], row i from offsets[i] on.

    offsets [n + 1]: the last one is the total. The ids of a row need no order; one that comes
    twice counts twice. `width`: the number of features in the dictionary.
    """

    ids: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    width: int

    @property
    def rows(self) -> int:
        """How many rows the code has."""
        return len(self.offsets) - 1


def encode(
    x: torch.Tensor, w_enc: torch.Tensor, b_enc: torch.Tensor | None, k: int,
    b_dec: torch.Tensor | None = None,
) -> Code:  # fmt: skip
    """TopK code of rows x [n, d]: the k largest of relu((x - b_dec) W_enc' + b_enc).

    w_enc [m, d], b_enc [m] or None, b_dec [d] or None. Each row has exactly k entries, some of
    which may be zero. Raises BadInput for shapes that do not fit or k outside 1..m.
    """
    if x.ndim != 2 or w_enc.ndim != 2 or x.shape[1] != w_enc.shape[1]:
        raise BadInput(f"x {tuple(x.shape)} and w_enc {tuple(w_enc.shape)}: want [n, d] and [m, d]")
    if not 1 <= k <= len(w_enc):
        raise BadInput(f"k={k}; this dictionary has 1..{len(w_enc)} features")
    x = x if b_dec is None else x - b_dec
    z = functional.linear(x, w_enc, b_enc).relu()
    values, ids = z.topk(k, dim=1)
    offsets = torch.arange(0, (len(x) + 1) * k, k, device=x.device)
    return Code(ids.flatten(), values.flatten(), offsets, len(w_enc))


def pack(z: torch.Tensor) -> Code:
    """The code of dense activations z [n, m]: everything that is not zero (NaN is kept)."""
    if z.ndim != 2:
        raise BadInput(f"z has shape {tuple(z.shape)}; want [rows, features]")
    rows, ids = z.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(z))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Code(ids, z[rows, ids], offsets, z.shape[1])


def dense(code: Code) -> torch.Tensor:
    """The code as a matrix [n, m]."""
    n = code.rows
    rows = torch.repeat_interleave(torch.arange(n, device=code.ids.device), code.offsets.diff())
    out = code.values.new_zeros(n, code.width)
    return out.index_put((rows, code.ids), code.values, accumulate=True)


def decode(code: Code, w_dec: torch.Tensor, b_dec: torch.Tensor | None = None) -> torch.Tensor:
    """x_hat [n, d] from a code and the decoder w_dec [m, d] (rows are feature directions).

    Equal to `dense(code) @ w_dec + b_dec` up to the order of additions (1e-5 of the largest term
    in float32), and differentiable in values, w_dec and b_dec. A row without features gives b_dec.
    Raises BadInput for a decoder of another width or type, or ids outside the dictionary.
    """
    if w_dec.ndim != 2 or len(w_dec) != code.width:
        raise BadInput(
            f"the decoder has shape {tuple(w_dec.shape)} and the code {code.width} features; "
            "want [features, d_model]"
        )
    if code.values.dtype != w_dec.dtype or code.values.device != w_dec.device:
        raise BadInput(
            f"the code is {code.values.dtype} on {code.values.device}, the decoder {w_dec.dtype} "
            f"on {w_dec.device}: bring them together first"
        )
    if code.ids.numel() and not 0 <= int(code.ids.min()) <= int(code.ids.max()) < code.width:
        raise BadInput(
            f"feature ids run from {int(code.ids.min())} to {int(code.ids.max())}; the dictionary "
            f"has 0..{code.width - 1}"
        )
    out = functional.embedding_bag(
        code.ids, w_dec, code.offsets, mode="sum", per_sample_weights=code.values,
        include_last_offset=True,
    )  # fmt: skip
    return out if b_dec is None else out + b_dec
