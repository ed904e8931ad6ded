"""The Triton kernels of quant and sparse_mlp become machine code for a GPU, without having one.

The interpreter takes programs that the compiler refuses. What comes out is not run here.
"""

from __future__ import annotations

from typing import Any

import pytest
from lwlab_kernels.choose import interpreted

pytest.importorskip("triton")
if interpreted():
    pytest.skip("this process interprets Triton", allow_module_level=True)

HOPPER = ("cuda", 90, 32)


def built(kernel: Any, types: dict[str, str], **constants: Any) -> Any:
    """Compile for an H100; the result's `asm` holds "ptx" and "cubin"."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=kernel,
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constexprs={(kernel.arg_names.index(k),): v for k, v in constants.items()},
    )
    return triton.compile(source, target=GPUTarget(*HOPPER))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_rounding(symmetric: bool, kind: str) -> None:
    from lwlab_kernels.quant import gpu

    sizes = dict.fromkeys(("rows", "columns", "group", "groups", "bits"), "i32")
    types = {"w_ptr": f"*{kind}", **dict.fromkeys(("out_ptr", "s_ptr", "z_ptr"), "*fp32")}
    code = built(gpu._fake, types | sizes, ROWS=16, GROUP=64, SYMMETRIC=symmetric)
    assert code.asm["cubin"]
    ptx = code.asm["ptx"]
    # Divisions are the exact ones, and the constant that rounds was not optimised away.
    assert "div.rn" in ptx
    assert "div.full" not in ptx
    assert "0f4B400000" in ptx
    assert "0fCB400000" in ptx
    sizes = dict.fromkeys(("rows", "columns", "group", "n"), "i32")
    types = {"w_ptr": f"*{kind}", "c_ptr": "*fp32", "bits_ptr": "*i32"}
    types |= dict.fromkeys(("error_ptr", "norm_ptr"), "*fp64")
    shape = {"ROWS": 16, "GROUP": 64, "N": 8, "SYMMETRIC": symmetric, "WEIGHTED": True}
    assert built(gpu._table, types | sizes, **shape).asm["cubin"]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_sparse_mlp(given: bool, kind: str) -> None:
    from lwlab_kernels.sparse_mlp import gpu

    weights = dict.fromkeys(("x_ptr", "gate_ptr", "up_ptr"), f"*{kind}")
    types = {"idx_ptr": "*i64", "limit_ptr": "*fp32", "rows_ptr": "*i64", "h_ptr": "*fp32"}
    types = weights | types | {"d": "i32", "k": "i32"}
    for code in range(4) if kind == "fp32" else (0,):
        found = built(gpu._hidden, types, GIVEN=given, CODE=code, NEURONS=16, WIDTH=64)
        assert found.asm["cubin"]
    types = {"h_ptr": "*fp32", "rows_ptr": "*i64", "down_ptr": f"*{kind}", "y_ptr": "*fp32"}
    assert built(gpu._down, types | {"k": "i32", "d": "i32"}, NEURONS=16, WIDTH=64).asm["cubin"]
