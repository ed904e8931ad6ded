"""A model that does not fit is refused with numbers before its weights are read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import lwlab as lw
from lwlab.errors import BadInput
from lwlab.models import loading, memory, toys


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy")
    module, _ = toys.tiny("llama")
    module.save_pretrained(path)
    toys.tokenizer().save_pretrained(path)
    return path


def test_the_headers_count_every_weight(folder: Path) -> None:
    module, _ = toys.tiny("llama")
    stored = {p.data_ptr(): p.numel() for p in module.parameters()}  # tied weights once
    assert memory.weights(folder) == sum(stored.values())


def test_too_large_is_refused_with_numbers_before_reading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_a: Any, **_k: Any) -> Any:
        raise AssertionError("the weights were read")

    count = memory.weights(folder)
    free = count * 4 * 1.1  # more than the bare weights, less than weights and what comes with them
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(loading, "_transformers", never)
    with pytest.raises(BadInput, match=r"needs .* GB in float32; there are .* GB of memory free"):
        lw.load(folder)
    with pytest.raises(BadInput, match=r"bfloat16 needs .* device_map=.*remote=True"):
        lw.load(folder)
    monkeypatch.undo()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert lw.load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_device_map_spreads_and_bfloat16_keeps_its_identities(folder: Path) -> None:
    model = lw.load(folder, device_map="auto", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.checks["logits"] <= 1e-2
    plain = lw.load(folder, dtype=torch.bfloat16)
    a, b = (lw.cache(m, "hello world", "logits").logits.values for m in (model, plain))
    assert (a == b).all()
