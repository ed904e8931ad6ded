"""Every kernel test runs by backend; triton's interpreter has a process of its own.

A test that takes the fixture `backend` runs on torch and numba, and on triton where there is a
CUDA device. `test_..._in_the_interpreter` starts `interpreter(__file__)`: the same tests with
triton's interpreter on the CPU, which must be asked for before triton is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from lwlab_kernels.choose import BACKENDS, interpreted


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """torch, numba, and triton where it can run."""
    name: str = request.param
    if name == "triton" and not (torch.cuda.is_available() or interpreted()):
        pytest.skip("no CUDA device; the interpreter runs it in a process of its own")
    return name


@pytest.fixture
def device(backend: str) -> str:
    """Where the tensors of a test with `backend` go."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


@pytest.fixture
def interpreter() -> Callable[[str], str]:
    """Run the triton tests of a file in the interpreter; return pytest's last line."""

    def run(file: str) -> str:
        if interpreted():
            pytest.skip("this is the interpreter's own process")
        env = {
            **os.environ,
            "TRITON_INTERPRET": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        plain = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-x"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", file, "-k", "triton", *plain],
            env=env, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        tail = done.stdout[-4000:] + done.stderr[-1000:]
        assert done.returncode == 0, tail
        assert " passed" in done.stdout, tail
        return done.stdout.strip().splitlines()[-1]

    return run


@pytest.fixture
def compiled() -> Callable[[Any, Mapping[str, Any]], int]:
    """Compile a triton kernel for an H100 without one; return the machine code's bytes.

    `types` gives each argument's type ("*fp32", "i32") or, for a constexpr, its value. The
    interpreter accepts much that the compiler refuses.
    """
    if interpreted():
        pytest.skip("compiling is for the process without the interpreter")
    triton = pytest.importorskip("triton")

    def compile_(kernel: Any, types: Mapping[str, Any]) -> int:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        constants = {k: v for k, v in types.items() if not isinstance(v, str)}
        signature = {k: "constexpr" if k in constants else types[k] for k in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        code = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        return len(code.asm["cubin"])

    return compile_
