"""What the Numba kernels share: compiler settings, and the two functions that let loops vectorise.

Import this from a `cpu.py` only: it imports numba.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

FAST: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"nnan", "ninf", "nsz", "contract", "reassoc", "arcp"},
}
"""Settings for loops that have seen to NaN and inf beforehand."""

SAFE: dict[str, Any] = {**FAST, "fastmath": {"nsz", "contract"}}
"""Settings for loops in which NaN and inf may occur and must survive."""


_STAMP = zlib.crc32(Path(__file__).read_bytes())


def jit(**settings: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit`, with what the helpers of this file need of its cache.

    Numba thinks stored code fresh while the function's own file is: here a change of this file
    counts too, or functions would go on with the helpers of an older release. Where there is no
    place to store code, it is compiled in each process.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            compiled = numba.njit(**settings)(function)
        except RuntimeError:  # no folder that numba may write to
            return numba.njit(**{**settings, "cache": False})(function)
        file: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
        if hasattr(file, "_source_stamp"):
            file._source_stamp = (file._source_stamp, _STAMP)
        return compiled

    return decorate


@intrinsic
def rint(typingctx: Any, x: Any) -> Any:
    """Round to the nearest integer, ties to even: one instruction, where np.rint is a call."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        name = {"float": "llvm.rint.f32", "double": "llvm.rint.f64"}[str(kind)]
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(kind, [kind]), name)
        return builder.call(function, args)

    if isinstance(x, types.Float):
        return x(x), codegen
    return None


@intrinsic
def as_float(typingctx: Any, i: Any) -> Any:
    """The float32 whose bits are the int32 `i`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    if i == types.int32:
        return types.float32(types.int32), codegen
    return None


_LOG2E = np.float32(1.4426950408889634)
# ln 2 in two parts, so that x - n ln 2 keeps its low bits (Cody and Waite).
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST = np.float32(-87.0)
_BIAS = np.int32(127)
_C = tuple(np.float32(1.0 / f) for f in (5040.0, 720.0, 120.0, 24.0, 6.0, 2.0))
_ONE = np.float32(1)


@numba.njit(inline="always", **{**FAST, "cache": False})
def exp32(x: Any) -> Any:
    """e^x for float32 x <= 88, about 1e-7 relative; below -87 it is e^-87 (1.6e-38).

    x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial; 2^n by the exponent's bits.
    Loops that call this vectorise, where those that call libm's exp do not.
    """
    x = max(x, _LOWEST)
    n = rint(x * _LOG2E)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = _C[0]
    p = p * r + _C[1]
    p = p * r + _C[2]
    p = p * r + _C[3]
    p = p * r + _C[4]
    p = p * r + _C[5]
    p = p * r + _ONE
    p = p * r + _ONE
    return p * as_float(np.int32((np.int32(n) + _BIAS) << np.int32(23)))


_MAGNITUDE, _SIGN = np.int32(0x7FFFFFFF), np.int32(-(2**31))
INF_KEY = np.int32(0x7F800000)
"""`float_key` of +inf; -INF_KEY is that of -inf, and NaNs lie beyond both."""


@numba.njit(inline="always", **{**FAST, "cache": False})
def float_key(b: Any) -> Any:
    """int32 in the order of the float32 whose bits are `b`; -0 and +0 are equal.

    Comparing these vectorises, NaNs or not, without telling the compiler that there are none.
    """
    sign = np.int32(b >> np.int32(31))
    return np.int32(((b & _MAGNITUDE) ^ sign) - sign)


@numba.njit(inline="always", **{**FAST, "cache": False})
def float_bits(key: Any) -> Any:
    """The bits of the float32 that has this `float_key`."""
    return np.int32(key if key >= 0 else -key | _SIGN)


@jit(**FAST)
def extremes(b: Any) -> Any:
    """Highest and lowest `float_key` of an array of bits."""
    high, low = _SIGN, _MAGNITUDE
    for j in range(len(b)):
        k = float_key(b[j])
        high = max(high, k)
        low = min(low, k)
    return high, low


def array(t: torch.Tensor) -> np.ndarray[Any, Any]:
    """A C-contiguous numpy view of a CPU tensor, float32 where it was half or bfloat16."""
    t = t.detach()
    if t.is_floating_point() and t.element_size() < 4:
        t = t.float()
    return t.contiguous().numpy()


def spread(work: Callable[..., None], n: int, *args: Any) -> None:
    """Call `work(start, stop, *args)` over 0..n, in as many threads as torch has.

    `work` is compiled with nogil and its parts touch nothing in common. Plain threads, because
    Numba's own pool must not be entered by two threads of a notebook at once.
    """
    threads = min(torch.get_num_threads(), n)
    if threads <= 1:
        work(0, n, *args)
        return
    edges = [i * n // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: work(edges[i], edges[i + 1], *args), range(threads)))
