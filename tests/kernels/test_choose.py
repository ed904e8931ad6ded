"""The choice of a backend."""

from __future__ import annotations

import subprocess
import sys

import lwlab_kernels
import pytest
import torch
from lwlab_kernels import choose as module
from lwlab_kernels.choose import check_floats, choose, interpreted

from lwlab.errors import BadInput, UnknownName

x = torch.ones(2)


def test_the_cpu_has_numba_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(None, x) == "numba"
    assert choose(None, x, have=("torch", "triton")) == "torch"
    monkeypatch.setattr(module, "installed", lambda name: False)
    assert choose(None, x) == "torch"
    with pytest.raises(BadInput, match="numba is not installed"):
        choose("numba", x)


def test_other_devices_have_torch() -> None:
    assert choose(None, x.to("meta")) == "torch"
    with pytest.raises(BadInput, match="runs on the CPU"):
        choose("numba", x.to("meta"))


@pytest.mark.skipif(interpreted(), reason="the interpreter takes CPU tensors")
def test_triton_wants_a_gpu() -> None:
    with pytest.raises(BadInput, match="runs on CUDA"):
        choose("triton", x)


def test_names_are_checked_and_devices_agree() -> None:
    assert choose("torch", x) == "torch"
    with pytest.raises(UnknownName, match="did you mean 'numba'"):
        choose("nubma", x)
    with pytest.raises(BadInput, match="this kernel has numba, torch"):
        choose("triton", x, have=("torch", "numba"))
    with pytest.raises(BadInput, match="different devices"):
        choose(None, x, x.to("meta"))
    with pytest.raises(BadInput, match=r"W is torch\.int64"):
        check_floats(x=x, nothing=None, W=torch.ones(2, dtype=torch.long))
    with pytest.raises(BadInput, match="W is a list"):
        check_floats(W=[1.0])  # type: ignore[arg-type]


def test_names_are_found_and_numba_and_triton_wait() -> None:
    assert {"lens_stats", "attn_stats"} <= set(dir(lwlab_kernels))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lwlab_kernels.nothing
    code = (
        "import sys, lwlab_kernels, lwlab.kernels, lwlab_kernels.choose\n"
        "assert not {'numba', 'triton'} & set(sys.modules), 'imported too soon'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
