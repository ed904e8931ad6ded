"""Compiled code is stored, and forgotten when a helper in another file changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lwlab_kernels
import numpy as np
import pytest
import torch
from lwlab_kernels import _numba

USE = """
import numpy as np
from lwlab_kernels import _numba
from lwlab_kernels.lens.cpu import _sums
print(*_sums(np.zeros(8, np.float32), np.float32(0)), sum(_sums.stats.cache_hits.values()))
"""


def test_a_changed_helper_is_compiled_again(tmp_path: Path) -> None:
    here = tmp_path / "lwlab_kernels"
    shutil.copytree(
        Path(lwlab_kernels.__file__).parent, here, ignore=shutil.ignore_patterns("__pycache__")
    )

    def run() -> list[float]:
        env = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "c")}
        done = subprocess.run(
            [sys.executable, "-c", USE], env=env, capture_output=True, text=True, check=True
        )
        return [float(x) for x in done.stdout.split()]

    assert run() == [8, 0, 0]
    assert run() == [8, 0, 1]  # from the cache
    source = here / "_numba.py"
    text = source.read_text()
    assert "return p * as_float" in text
    source.write_text(text.replace("return p * as_float", "return 2 * p * as_float"))
    assert run() == [16, 0, 0]


def test_without_a_place_to_store_code_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _numba.numba.njit

    def njit(*given: Any, **settings: Any) -> Any:
        if settings.get("cache"):
            raise RuntimeError("no locator available")
        return plain(*given, **settings)

    monkeypatch.setattr(_numba.numba, "njit", njit)

    @_numba.jit(**_numba.FAST)
    def twice(x: float) -> float:
        return 2 * x

    assert twice(3.0) == 6


def test_the_exponential_is_exact_to_float32_and_vectorises() -> None:
    @_numba.jit(**{**_numba.FAST, "cache": False})
    def many(x: np.ndarray, out: np.ndarray) -> None:
        for i in range(len(x)):
            out[i] = _numba.exp32(x[i])

    x = np.linspace(-87, 80, 20_001, dtype=np.float32)
    out = np.empty_like(x)
    many(x, out)
    want = np.exp(x.astype(np.float64))
    assert float(abs(out / want - 1).max()) < 3e-7
    low = np.array([-1e30, -100, -87], np.float32)
    many(low, out[:3])
    assert out[:3].tolist() == pytest.approx([np.exp(-87)] * 3, rel=1e-6)
    code = "\n".join(many.inspect_asm().values())
    assert "ymm" in code or "zmm" in code or "v0.4s" in code


def test_keys_have_the_order_of_floats() -> None:
    x = torch.tensor([-torch.inf, -3.0, -1e-40, -0.0, 0.0, 1e-40, 2.0, torch.inf])
    keys = [int(_numba.float_key(b)) for b in x.view(torch.int32).numpy()]
    assert keys == sorted(keys)
    assert keys[3] == keys[4] == 0
    assert keys[-1] == -keys[0] == int(_numba.INF_KEY)
    for value, key in zip(x.tolist(), keys):
        back = torch.tensor(int(_numba.float_bits(np.int32(key))), dtype=torch.int32)
        assert float(back.view(torch.float32)) == value
