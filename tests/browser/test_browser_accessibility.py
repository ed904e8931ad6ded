"""axe-core finds nothing to complain about in any instrument, shown alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from labdriver import Watched, mount

import lwlab as lw
from lwlab.models import handmade

sys.path.append(str(Path(__file__).parents[1] / "widgets"))
from test_bad_days import EVERY, fresh


def _map() -> Any:
    values = np.arange(12.0).reshape(3, 4)
    return lw.widgets.map(xr.DataArray(values, dims=("layer", "position"), name="effect"))


def _circuit() -> Any:
    made = handmade.build("induction")
    task = made.task(2)
    scores = lw.attribution.edges.scores(made.model, task, "eap")
    return lw.widgets.circuit(scores, made.model, task)


def _tokens() -> Any:
    words = [f" w{i}" for i in range(20)]
    return lw.widgets.tokens(np.linspace(-1, 1, 20), words)


def _training() -> Any:
    made = lw.widgets.training(
        lambda rate: iter([(i, {"loss": 1 / (i + rate)}) for i in range(5)]),
        {"Loss": ["loss"]}, total=4, knobs={"rate": [1, 2]},
    )  # fmt: skip
    made.order("start")
    return made


OTHERS = {
    "map": _map, "circuit": _circuit, "tokens": _tokens,
    "training": _training, "ledger": lambda: lw.widgets.ledger(),
    "atlas": lambda: lw.widgets.atlas(),
}  # fmt: skip


@pytest.mark.parametrize("name", [*EVERY, *OTHERS])
def test_axe_finds_no_violation(watched: Watched, name: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    widget = EVERY[name](fresh()) if name in EVERY else OTHERS[name]()
    try:
        if hasattr(widget, "wait"):
            assert widget.wait(60)
        watched.forget()
        mount(watched.page, widget)
        watched.page.wait_for_timeout(200)
        # that a page has a heading of level one is the notebook's business
        off = {"rules": {"page-has-heading-one": {"enabled": False}}}
        found = Axe().run(watched.page, options=off)
        said = [
            f"{v['id']}: {v['help']}: {[n['html'][:120] for n in v['nodes'][:3]]}"
            for v in found.response["violations"]
        ]
        assert said == []
        assert found.response["passes"], "axe looked at nothing"
        watched.assert_clean()
    finally:
        widget.close()
