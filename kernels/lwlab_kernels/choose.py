"""Which backend runs: by the device of the tensors, by what is installed, or by name."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

from lwlab.errors import BadInput, UnknownName, suggest

Backend = Literal["torch", "numba", "triton"]
BACKENDS: tuple[Backend, ...] = ("torch", "numba", "triton")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@cache
def installed(package: str) -> bool:
    """Whether `package` (numba, triton) can be imported; it is not imported here."""
    return find_spec(package) is not None


def interpreted() -> bool:
    """Whether triton was asked to interpret its kernels on the CPU, which only tests want."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def choose(
    backend: str | None, *tensors: torch.Tensor | None, have: Collection[Backend] = BACKENDS
) -> Backend:
    """Return the backend for `tensors`, all on one device: one of `have`.

    None: triton on CUDA, numba on the CPU, each where it is installed and in `have`; else torch.
    A name forces that backend. Triton also runs CPU tensors where TRITON_INTERPRET=1 (slow, for
    tests).

    Raises UnknownName for a name that is no backend; BadInput for tensors on different devices,
    for a backend that this kernel lacks, that is not installed, or that cannot run on the device.
    """
    given = [t for t in tensors if t is not None]
    device = same_device(*given)
    if backend is None:
        best: Backend = "triton" if device.type == "cuda" else "numba"
        usable = device.type in ("cpu", "cuda") and best in have and installed(best)
        return best if usable else "torch"
    if backend not in BACKENDS:
        raise UnknownName(f"unknown backend {backend!r}{suggest(str(backend), BACKENDS)}")
    named = backend
    if named not in have:
        raise BadInput(f"backend={named!r}: this kernel has {', '.join(sorted(have))}")
    if named != "torch" and not installed(named):
        raise BadInput(f"backend={named!r}: {named} is not installed; use 'torch', or install it")
    if named == "numba" and device.type != "cpu":
        raise BadInput(f"backend='numba' runs on the CPU and these tensors are on {device}")
    if named == "triton" and device.type != "cuda" and not interpreted():
        raise BadInput(
            f"backend='triton' runs on CUDA and these tensors are on {device}; use 'numba' or "
            "'torch' (or set TRITON_INTERPRET=1 before triton is imported, to test)"
        )
    return named


def same_device(*tensors: torch.Tensor) -> torch.device:
    """Return the one device that `tensors` are on; raise BadInput when there are several."""
    devices = dict.fromkeys(t.device for t in tensors)
    if len(devices) > 1:
        raise BadInput(f"tensors on different devices: {', '.join(map(str, devices))}")
    return next(iter(devices), torch.device("cpu"))


def check_floats(**tensors: torch.Tensor | None) -> None:
    """Raise BadInput unless every tensor (by its argument's name) is floating point."""
    for name, t in tensors.items():
        if t is None:
            continue
        if not isinstance(t, torch.Tensor):
            raise BadInput(f"{name} is a {type(t).__name__}; pass a torch tensor")
        if t.dtype not in FLOATS:
            raise BadInput(f"{name} is {t.dtype}; it must be float32, float64, float16 or bfloat16")
