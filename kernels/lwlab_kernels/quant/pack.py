"""Codes that really take b bits each, so that a size in bytes is the size of something."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lwlab.errors import BadInput

SCALE_BITS = 16


def bits_per_weight(bits: int, group: int, symmetric: bool = True) -> float:
    """Storage a weight: `bits` and a float16 scale (and offset) a group of `group` weights.

    What rounds up to whole bytes at the end of a matrix (`Packed.nbytes`) is not in it.
    """
    return bits + (1 if symmetric else 2) * SCALE_BITS / group


@dataclass(frozen=True)
class Packed:
    """A matrix in b bits: `codes` is a stream of bits, lowest first, rows in order.

    A code is the number of steps above the lowest level. `nbytes` is what all of it takes.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None
    bits: int
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets."""
        extra = 0 if self.offset is None else self.offset.nbytes
        return self.codes.nbytes + self.scale.nbytes + extra


def pack(w: torch.Tensor, bits: int, group: int | None = None, symmetric: bool = True) -> Packed:
    """Store `w` [rows, columns] in `bits` bits (formulas: `lwlab_kernels.quant`), on the CPU.

    Raises BadInput as `fake_quant` does, and for weights that have no code: NaN, infinity, or a
    scale or offset beyond float16.
    """
    from lwlab_kernels.quant import check
    from lwlab_kernels.quant.reference import codes, groups, levels

    (bits,), group = check(w, bits, group)
    x = groups(w.detach().cpu(), group)
    scale, offset = levels(x, bits, symmetric)
    if not bool(scale.isfinite().all()):
        raise BadInput("w holds NaN, infinity, or a group whose scale or offset exceeds float16")
    q, low = codes(x, scale, offset, bits)
    steps = (q - low).to(torch.uint8).numpy().reshape(-1)
    if symmetric and bits == 1:
        steps = steps >> 1  # -1, 1 -> 0, 1
    stream = np.unpackbits(steps[:, None], axis=1, count=bits, bitorder="little")
    return Packed(
        torch.from_numpy(np.packbits(stream.reshape(-1), bitorder="little")),
        scale.squeeze(-1).half(),
        None if offset is None else offset.squeeze(-1).half(),
        bits,
        (w.shape[0], w.shape[1]),
    )


def unpack(packed: Packed) -> torch.Tensor:
    """Return the weights [rows, columns] in float32: `fake_quant(...).weight`, bit for bit."""
    rows, columns = packed.shape
    n, bits = rows * columns, packed.bits
    stream = np.unpackbits(packed.codes.numpy(), count=n * bits, bitorder="little")
    codes = np.packbits(stream.reshape(n, bits), axis=1, bitorder="little")
    q = torch.from_numpy(codes.reshape(rows, packed.scale.shape[1], -1) if n else codes).float()
    if not n:
        return q.reshape(rows, columns)
    scale = packed.scale.float().unsqueeze(-1)
    if packed.offset is not None:
        return (q * scale + packed.offset.float().unsqueeze(-1)).reshape(rows, columns)
    q = 2 * q - 1 if bits == 1 else q - (2 ** (bits - 1) - 1)
    return (q * scale).reshape(rows, columns)
