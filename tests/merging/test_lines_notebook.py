"""The notebook takes another start and other fine-tunes; its exact claims hold there too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lwlab.models import toys
from lwlab.runs import NotebookFailed, execute

pytestmark = [pytest.mark.notebook, pytest.mark.slow]


def folders(path: Path) -> dict[str, str]:
    """A random GPT-2 and two neighbours of it."""
    module, _ = toys.tiny("gpt2")
    for i, name in enumerate(("start", "upper", "code")):
        generator = torch.Generator().manual_seed(i)
        for p in module.parameters():
            p.data += 0.02 * i * torch.randn(p.shape, generator=generator)
        module.save_pretrained(path / name)
        toys.characters(64).save_pretrained(path / name)
    return {name: str(path / name) for name in ("start", "upper", "code")}


def test_exact_claims_hold_on_another_architecture(tmp_path: Path) -> None:
    at = folders(tmp_path)
    tuned = f"upper={at['upper']},code={at['code']}"
    parameters = {"model": at["start"], "tuned": tuned, "n": 4, "steps": 2}
    run = execute("lines", parameters, tmp_path / "out", html=False, timeout=300)
    exact = {c["id"]: c["verdict"] for c in run.claims if c["kind"] == "exact"}
    assert len(exact) == 7
    assert set(exact.values()) == {"holds"}
    assert not any(c["changed"] for c in run.claims)  # verdicts are pinned for one start only


def test_models_of_different_shapes_stop_with_the_reason(tmp_path: Path) -> None:
    at = folders(tmp_path)
    toys.tiny("llama")[0].save_pretrained(tmp_path / "other")
    toys.characters(64).save_pretrained(tmp_path / "other")
    parameters = {"model": at["start"], "tuned": f"upper={tmp_path / 'other'}"}
    with pytest.raises(NotebookFailed, match="'upper' is no fine-tune of"):
        execute("lines", parameters, tmp_path / "out", html=False)
