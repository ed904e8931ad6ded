"""Keys and values given to a run are read, not used up: a second pass gives the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import lwlab as lw
from lwlab.models.sites import Address
from lwlab.tracing import engine


def test_a_batch_with_keys_and_values_can_be_run_twice(toy: Callable[[str], lw.Model]) -> None:
    model = toy("llama")
    ids = model.tokens("the man went to the store").ids
    with torch.no_grad():
        whole = model.module(input_ids=ids).logits[:, -1]
        held = model.module(input_ids=ids[:, :3], use_cache=True).past_key_values
    data = engine.Batch({"input_ids": ids[:, 3:], "past_key_values": held, "use_cache": True}, None)
    for _ in range(2):
        z = engine.run(model, data).logits
        assert z is not None
        torch.testing.assert_close(z, whole)
        assert held.get_seq_length() == 3


def test_a_model_that_is_traced_twice_reads_its_past_once(
    toy: Callable[[str], lw.Model], monkeypatch: Any
) -> None:
    model, attempts = toy("llama"), []
    ids = model.tokens("the man went to the store").ids
    with torch.no_grad():
        held = model.module(input_ids=ids[:, :3], use_cache=True).past_key_values
        whole = model.module(input_ids=ids).logits[:, -1]

    def once(_how: Any, _values: Any) -> bool:
        attempts.append(1)
        return True  # as for a model that wrote into what was read: the engine traces again

    monkeypatch.setattr(engine, "_RESTLESS", set())
    monkeypatch.setattr(engine.Reading, "overwritten", once)
    data = engine.Batch({"input_ids": ids[:, 3:], "past_key_values": held, "use_cache": True}, None)
    trace = engine.run(model, data, [Address("q", 1)])
    assert attempts == [1]
    assert trace.logits is not None
    torch.testing.assert_close(trace.logits, whole)
