"""`chain` against the model itself, blocks skipped by hooks, and a hand-written loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from reference import DECODERS, ENCODERS, forward

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.models.sites import Address
from lwlab.tracing import engine

Toy = Callable[[str], lw.Model]
CHAINED = [*DECODERS, *ENCODERS, "vit"]
each = pytest.mark.parametrize("name", CHAINED)


def inputs(model: lw.Model) -> Any:
    if model.kind == "vision":
        return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return torch.randint(4, 90, (2, 7), generator=torch.Generator().manual_seed(3))


def naive(model: lw.Model, x: Any, layers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace each block's forward for one run: the first runs the sequence, the others nothing.

    Returns the stream after the sequence and the model's output.
    """
    blocks = [model.module.get_submodule(model.anatomy.taps["resid_pre"].at(i))
              for i in range(model.n_layers)]  # fmt: skip
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    streams: list[torch.Tensor] = []
    run = [type(block).forward for block in blocks]

    def hook(i: int) -> Any:
        def swallow(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            calls[i] = args, kwargs
            first = args[0] if args else kwargs["hidden_states"]
            if i == 0:
                streams.append(first)
            stream = streams[0]
            if i == len(blocks) - 1:
                for layer in layers:
                    a, k = calls[layer % len(blocks)]
                    out = run[layer](blocks[layer], stream, *a[1:], **k)
                    stream = engine.tensor_of(out)
                streams.append(stream)
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return swallow

    handles = [b.register_forward_hook(hook(i), with_kwargs=True) for i, b in enumerate(blocks)]
    try:
        with torch.no_grad():
            z, _ = forward(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return streams[-1], z


def last(z: torch.Tensor) -> torch.Tensor:
    return z if z.ndim == 2 else z[:, -1]


@each
def test_all_blocks_in_order_are_the_model_bit_for_bit(name: str, toy: Toy) -> None:
    model, x = toy(name), inputs(toy(name))
    got = lw.chain(model, x, range(model.n_layers), streams=True)
    base = lw.cache(model, x, ["resid_pre", "resid_post"])
    steps = [base.resid_pre[:, 0], *(base.resid_post[:, i] for i in range(model.n_layers))]
    for step, want in enumerate(steps):
        np.testing.assert_array_equal(got.resid[step], want)
    if "logits" in model.sites():
        np.testing.assert_array_equal(got.logits, got.base_logits)
        assert float(abs(got.moved).max()) == 0.0


@each
@pytest.mark.parametrize(
    "layers", [[0, 2], [0, 1, 1, 2], [2, 1, 0], [1], [-1, 0], [0, 1, 1, 1, 2, 0]]
)
def test_any_sequence_is_the_naive_loop(name: str, layers: list[int], toy: Toy) -> None:
    model, x = toy(name), inputs(toy(name))
    got = lw.chain(model, x, layers, streams=True)
    stream, z = naive(model, x, layers)
    np.testing.assert_allclose(got.resid[-1], stream, atol=1e-5)
    assert got.component.values.tolist() == ["embed", *(f"block.{i % 3}" for i in layers)]
    if "logits" in model.sites():
        np.testing.assert_allclose(got.logits, last(z), atol=1e-5)


@each
def test_a_skipped_block_hands_its_input_on(name: str, toy: Toy) -> None:
    model, x = toy(name), inputs(toy(name))
    stream: list[torch.Tensor] = []
    block = model.module.get_submodule(model.anatomy.taps["resid_pre"].at(1))

    def before(module: Any, args: Any, kwargs: Any) -> None:
        stream[:] = [args[0] if args else kwargs["hidden_states"]]

    def after(module: Any, args: Any, output: Any) -> Any:
        return (stream[0], *output[1:]) if isinstance(output, tuple) else stream[0]

    handles = [
        block.register_forward_pre_hook(before, with_kwargs=True),
        block.register_forward_hook(after),
    ]
    at = Address("resid_post", 2)
    with torch.no_grad():
        z, want = forward(model, x, [at])
    for handle in handles:
        handle.remove()
    got = lw.chain(model, x, [0, 2], streams=True)
    np.testing.assert_array_equal(got.resid[-1], want[at])
    if "logits" in model.sites():
        np.testing.assert_allclose(got.logits, last(z), atol=1e-5)


@each
def test_a_sublayer_alone_writes_alone(name: str, toy: Toy) -> None:
    """attn.1 in place of block 1 is the model whose other sublayers of block 1 write zero."""
    model, x = toy(name), inputs(toy(name))
    for kind in ("attn", "mlp"):
        layers = [0, f"{kind}.1", 2]
        if model.anatomy.stream_norms or f"{kind}_out" not in model.sites():
            with pytest.raises(BadInput, match=r"post-norm|has no"):
                lw.chain(model, x, layers)
            continue
        others = [f"{s}.1" for s in model.anatomy.writes if s != f"{kind}_out"]
        got, want = lw.chain(model, x, layers), lw.ablate(model, x, others)
        np.testing.assert_allclose(got.logits, want.logits, atol=1e-5)
        assert float(abs(got.logits - got.base_logits).max()) > 1e-4


def test_both_sublayers_in_turn_are_the_serial_block_and_not_the_parallel_one(toy: Toy) -> None:
    x = inputs(toy("llama"))
    serial = lw.chain(toy("llama"), x, [0, "attn.1", "mlp.1", 2])
    assert float(serial.moved.max()) < 1e-9
    parallel = lw.chain(toy("gpt_neox"), x, [0, "attn.1", "mlp.1", 2])
    assert float(parallel.moved.min()) > 1e-6


def test_the_stream_of_each_step_is_labelled(toy: Toy) -> None:
    got = lw.chain(toy("gpt2"), ["Mary went home", "the dog"], [0, "attn.2", 1], streams=True)
    assert got.resid.dims == ("step", "prompt", "position", "d_model")
    assert got.component.values.tolist() == ["embed", "block.0", "attn.2", "block.1"]
    assert got.resid[:, 1, 2].isnull().all()
    assert got.attrs["layers"] == ["0", "attn.2", "1"]
    alone = lw.chain(toy("gpt2"), "Mary", [0], compare=False)
    assert set(alone.data_vars) == {"logits"}


@pytest.mark.parametrize(
    ("name", "layers", "says"),
    [
        ("gpt2", [], "layers is empty"),
        ("gpt2", [3], "layer is 0..2"),
        ("gpt2", [0, "head.3"], "'head.3' is not understood; write 3, 'attn.3' or 'mlp.3'"),
        ("gpt2", [0, "attn"], "is not understood"),
        ("gpt2", [0.5], "is not understood"),
        ("gpt2", "attn.0", "give a list"),
        ("mamba", ["mlp.0"], "has no mlp_out"),
        ("bert_mlm", ["attn.0"], "post-norm"),
        ("t5:decoder", [0], "does not run encoder-decoder models"),
        ("bert", [0], "ask for streams=True"),
    ],
)
def test_a_sequence_that_cannot_run_is_refused_before_the_run(
    name: str, layers: Any, says: str, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy(name)
    monkeypatch.setattr(engine, "batch", None)
    with pytest.raises(BadInput, match=says):
        lw.chain(model, "the dog", layers)


def test_chain_of_the_default_model_is_the_model(smollm2: lw.Model) -> None:
    got = lw.chain(smollm2, "The capital of France is", range(30))
    np.testing.assert_array_equal(got.logits, got.base_logits)
    skipped = lw.chain(smollm2, "The capital of France is", [i for i in range(30) if i != 12])
    assert 0 < skipped.moved.item() < 5
