"""The Walsh-Hadamard transform as two small matrix products."""

from __future__ import annotations

from functools import lru_cache

import torch

from lwlab.errors import BadInput


def hadamard_matrix(
    n: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> torch.Tensor:
    """Sylvester's H_n, [n, n] of 1 and -1: H_2m = [[H_m, H_m], [H_m, -H_m]]; H H = n I.

    Raises BadInput unless n is a power of two.
    """
    if not isinstance(n, int) or n < 1 or n & (n - 1):
        raise BadInput(f"n={n}: Sylvester's matrices exist for powers of two")
    h = torch.ones(1, 1, dtype=dtype, device=device)
    while len(h) < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


def walsh_hadamard(x: torch.Tensor, block: int | None = None) -> torch.Tensor:
    """y = x H_n / sqrt(n) along the last dimension; its own inverse.

    n = block, a power of two that divides the dimension: each run of `block` entries is transformed
    by itself. None: the largest one (64 for 576 = 64 * 9). With n = a b and rows read as [a, b]
    matrices X, H_n is the Kronecker product of H_a and H_b, so that Y = H_a X H_b: 2 n (a + b)
    operations a row, in two matrix products: a seventh to a twentieth of the time of the product
    with H_n for n = 512 to 4096, a quarter of a butterfly's in torch. A butterfly in compiled SIMD
    code (the package fht-cpu) is three to four times faster still (benchmarks/plain.py).

    Half and bfloat16 are transformed in their own type. Raises BadInput for a dimension of zero,
    a type that is not floating, or a block that is no power of two or does not divide.
    """
    n = x.shape[-1] if x.ndim else 0
    if not n or not x.is_floating_point():
        raise BadInput(f"x is {x.dtype} {tuple(x.shape)}: give floats with a last dimension")
    size = n & -n if block is None else block
    if not isinstance(size, int) or size < 1 or size & (size - 1) or n % size:
        raise BadInput(f"block={block}: give a power of two that divides {n}, such as {n & -n}")
    a = 1 << ((size.bit_length() - 1) // 2)
    b = size // a
    rows = x.reshape(-1, a, b)
    y = rows @ _scaled(b, x.dtype, x.device)
    if a > 1:
        y = _scaled(a, x.dtype, x.device) @ y
    return y.reshape(x.shape)


@lru_cache(maxsize=32)
def _scaled(n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return hadamard_matrix(n, torch.float64, device).div(n**0.5).to(dtype)
