"""Error tables and models with rounded weights: toys, and the real one's own grid."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from lwlab_kernels.quant import fake_quant, pack

import lwlab as lw
from lwlab.errors import BadInput, UnknownName
from lwlab.quantization import (
    error_table,
    fake_quantized,
    hessians,
    input_squares,
    matrices,
)

Toy = Callable[[str], lw.Model]


@contextmanager
def untouched(model: lw.Model) -> Iterator[None]:
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    yield
    for n, p in model.module.named_parameters():
        assert torch.equal(p, before[n]), n


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt", "phi", "bert"])
def test_matrices_are_all_linear_maps_of_the_blocks(toy: Toy, name: str) -> None:
    model = toy(name)
    found = matrices(model)
    assert {m.layer for m in found} == set(range(model.n_layers))
    count = sum(
        p.numel()
        for n, p in model.module.get_submodule(model.anatomy.blocks).named_parameters()
        if p.ndim == 2
    )
    assert sum(m.weight.numel() for m in found) == count
    if model.anatomy.down:
        inputs = {m.weight.shape[1] for m in found if m.name == model.anatomy.down.split("{}.")[-1]}
        assert inputs == {model.d_mlp}  # a Conv1D is turned the right way round


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_table_is_what_rounding_does(toy: Toy, name: str, symmetric: bool) -> None:
    model = toy(name)
    with untouched(model):
        table = error_table(model, 8, [2, 5], symmetric=symmetric)
    assert table["error"].dims == ("layer", "module", "bits")
    assert table.attrs["backend"] == "numba"
    for m in matrices(model):
        for bits in (2, 5):
            out = fake_quant(m.weight, bits, 8, symmetric).weight
            lost = float((out - m.weight).double().square().sum())
            here = table.sel(layer=m.layer, module=m.name, bits=bits)
            assert float(here.error) == pytest.approx(lost, rel=1e-4)
            norm = float(m.weight.double().square().sum())
            assert float(here.relative_error) == pytest.approx(lost / norm, rel=1e-4)
            assert round(float(here.megabytes) * 1e6) == pack(m.weight, bits, 8, symmetric).nbytes
            assert (int(here.outputs), int(here.inputs)) == m.weight.shape


def test_a_weighted_table_is_the_error_of_outputs(toy: Toy) -> None:
    model = toy("llama")
    ids = torch.randint(0, model.d_vocab or 0, (1, 24), generator=torch.Generator().manual_seed(0))
    text = model.tokenizer.decode(ids[0])
    squares = input_squares(model, text, skip=0)
    moments = hessians(model, text, skip=0)
    x = lw.cache(model, text, "mlp_in").mlp_in
    for layer in range(model.n_layers):
        rows = torch.tensor(x.isel(prompt=0).sel(layer=layer).values)
        for name in ("mlp.gate_proj", "mlp.up_proj"):
            want = rows.T @ rows / len(rows)
            torch.testing.assert_close(moments[layer, name], want, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(squares[layer, name], want.diagonal(), rtol=1e-4, atol=1e-5)
    table = error_table(model, 8, 3, weight=squares, modules="up_proj")
    m = matrices(model, 1, "up_proj")[0]
    d = fake_quant(m.weight, 3, 8).weight - m.weight
    want = (d.square() @ squares[1, m.name]).sum()
    assert float(table.error.sel(layer=1).squeeze()) == pytest.approx(float(want), rel=1e-4)
    kept = hessians(model, text, skip=3)[0, "mlp.up_proj"]
    rows = torch.tensor(x.isel(prompt=0).sel(layer=0).values)[3:]
    torch.testing.assert_close(kept, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_inside_the_block_weights_are_rounded_and_then_they_are_back(toy: Toy) -> None:
    model = toy("llama")
    prompt = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        before = model.module(prompt).logits
    with untouched(model):
        with fake_quantized(model, 3, 8, layers=[0]) as q:
            for m in matrices(model):
                expected = fake_quant(m.weight, 3, 8).weight
                assert torch.equal(m.weight, expected) == (m.layer == 0)
            assert "3-bit, group 8" in q.model.name
            traced = lw.cache(q.model, prompt, "logits")
            assert traced.attrs["model"] == q.model.name
            with torch.no_grad():
                inside = model.module(prompt).logits
            assert torch.equal(torch.tensor(traced.logits.values), inside)
        assert not torch.equal(inside, before)
        with torch.no_grad():
            assert torch.equal(model.module(prompt).logits, before)
        with fake_quantized(model, 4, 8), fake_quantized(model, 2, 8):
            pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_originals_kept_on_disk_come_back_bit_for_bit_and_leave_no_file(
    toy: Toy, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = lw.wrap(lw.models.toys.tiny("gpt2")[0].to(dtype), name="gpt2")
    before = [m.weight.clone() for m in matrices(model)]
    with fake_quantized(model, 3, 8):
        expected = [m.weight.clone() for m in matrices(model)]
    with fake_quantized(model, 3, 8, spill=True):
        assert all(torch.equal(m.weight, w) for m, w in zip(matrices(model), expected))
        assert list(tmp_path.rglob("*.pt"))
    assert all(torch.equal(m.weight, w) for m, w in zip(matrices(model), before))
    assert not list(tmp_path.iterdir())


def test_weights_come_back_after_an_exception(toy: Toy) -> None:
    model = toy("llama")
    with untouched(model):
        with pytest.raises(ZeroDivisionError), fake_quantized(model, 2, 8):
            1 / 0
        last = matrices(model)[-1].module.weight
        assert isinstance(last, torch.nn.Parameter)
        old = last.detach().clone()
        try:
            last.data[0, 0] = math.nan
            with (
                pytest.raises(BadInput, match="NaN or infinity"),
                fake_quantized(model, 2, 8),
            ):
                pytest.fail("entered")
        finally:
            last.data.copy_(old)


def test_other_threads_wait(toy: Toy) -> None:
    model = toy("llama")
    got: list[bool] = []

    def attempt() -> None:
        lock = lw.tracing.lock(model)
        got.append(lock.acquire(timeout=0.05))
        if got[-1]:
            lock.release()

    with fake_quantized(model, 4, 8):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    attempt()
    assert got == [False, True]


def test_bits_by_layer_and_module(toy: Toy) -> None:
    model = toy("llama")
    with fake_quantized(model, {0: 2, -1: 5}, 8) as q:
        assert set(q.bits.values()) == {2, 5}
        assert {b for (layer, _), b in q.bits.items() if layer == model.n_layers - 1} == {5}
    table = error_table(model, 8, [2, 4, 8])
    best = table.bits.where(table.relative_error < 0.02).min("bits")  # an allocator in one line
    with fake_quantized(model, best, 8) as q:
        size = sum(
            float(table.megabytes.sel(layer=i, module=m, bits=b)) for (i, m), b in q.bits.items()
        )
        assert q.megabytes == pytest.approx(size)
        assert q.relative_error < 0.02
    only = xr.full_like(best, np.nan)
    only.loc[{"layer": 0, "module": "mlp.up_proj"}] = 3
    with fake_quantized(model, only, 8) as q:
        assert q.bits == {(0, "mlp.up_proj"): 3}
    with pytest.raises(BadInput, match="names no matrix"), fake_quantized(model, only * np.nan, 8):
        pass
    with pytest.raises(BadInput, match="whole numbers"), fake_quantized(model, only + 0.5, 8):
        pass
    with pytest.raises(BadInput, match="over 'layer'"), fake_quantized(model, table.error, 8):
        pass


def test_sizes_add_up(toy: Toy) -> None:
    model = toy("gpt2")
    with fake_quantized(model, 4, 8, symmetric=False) as q:
        packed = sum(pack(m.weight, 4, 8, False).nbytes for m in matrices(model))
        assert q.megabytes * 1e6 == pytest.approx(packed)
        assert q.bits_per_weight == pytest.approx(4 + 32 / 8)
        parameters = sum(p.nbytes for p in model.module.parameters())
        assert (q.dense_megabytes + q.rest_megabytes) * 1e6 == pytest.approx(parameters)
        assert "asymmetric" in q.model.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 0}, "layer 0, .*from 1 to 8"),
        ({"bits": 9}, "from 1 to 8"),
        ({"group": 7}, "layer 0, .*does not divide"),
        ({"layers": 99}, "layer"),
        ({"modules": "mlp.up_prj"}, "did you mean"),
    ],
)
def test_bad_input_is_refused(toy: Toy, change: dict[str, object], message: str) -> None:
    model = toy("llama")
    given = {"bits": 4, "group": 8} | change
    with untouched(model):
        with pytest.raises(BadInput, match=message):
            error_table(model, **given)
        with pytest.raises(BadInput, match=message), fake_quantized(model, **given):
            pass
    with pytest.raises(BadInput, match="lacks"):
        error_table(model, 8, 4, weight={})
    with pytest.raises(BadInput, match="no token would"):
        hessians(model, "a", skip=4, max_tokens=4)
    with pytest.raises(UnknownName):
        matrices(model, modules="w")


def test_smollm2_lies_on_the_grid_of_q4_1(smollm2: lw.Model) -> None:
    """Its file was Q4_1 (four bits, groups of 32, float16 scale and offset): that is a no-op."""
    table = error_table(smollm2, 32, [3, 4, 8], symmetric=False)
    assert float(table.error.sel(bits=4).max()) == 0.0
    assert float(table.relative_error.sel(bits=3).min()) > 1e-3
    with fake_quantized(smollm2, 4, 32, symmetric=False) as q:
        assert (q.changed, q.relative_error) == (0, 0.0)
        assert q.bits_per_weight == pytest.approx(5.0)
    # Its embedding was Q8_0: eight bits, symmetric, groups of 32.
    embedding = smollm2.module.get_input_embeddings().weight
    assert torch.equal(fake_quant(embedding, 8, 32).weight, embedding)
    # Not one setting away: symmetric, or groups of 64, moves most weights.
    for group, symmetric in ((32, True), (64, False)):
        other = error_table(smollm2, group, 4, symmetric=symmetric, layers=[0, 15, 29])
        assert float(other.relative_error.min()) > 1e-3


def test_perplexity_of_the_real_model_rises_as_bits_fall(smollm2: lw.Model) -> None:
    texts = lw.tasks.corpus(n=4, tokens=48, model=smollm2)
    found = {}
    with untouched(smollm2):
        found[16] = float(lw.tasks.perplexity(smollm2, texts).perplexity)
        for bits in (8, 3, 2):
            with fake_quantized(smollm2, bits, 64) as q:
                result = lw.tasks.perplexity(q.model, texts)
                found[bits] = float(result.perplexity)
                assert result.attrs["model"] == q.model.name
    assert abs(math.log(found[8] / found[16])) < 0.02
    assert found[16] < found[3] < found[2]
    assert found[2] > 10 * found[16]
