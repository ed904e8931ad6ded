"""The two readings on the default model: they differ by nats."""

from __future__ import annotations

import pytest

import lwlab as lw
from lwlab.depth import activity, void_losses

pytestmark = pytest.mark.slow
TEXT = (
    "Water boils at a lower temperature on a mountain than at the sea, because the air above it is "
    "thinner and presses less. That is why cooks in high villages let their beans stay on the fire "
    "for longer."
)


def test_reading_out_and_skipping_differ_by_nats(smollm2: lw.Model) -> None:
    out = void_losses(smollm2, TEXT, [0.0, 0.3, 0.8]).isel(prompt=0)
    used = out.usage.sel(variant="readout").values
    assert used == pytest.approx([0.895, 0.521, 0.214], abs=0.08)  # the card's
    gap = out.nll.sel(variant="skip") - out.nll.sel(variant="readout")
    assert float(gap.sel(alpha=0.8)) > 2
    assert float(out.nll.sel(variant="readout", alpha=0.8)) > float(out.full) + 0.5


def test_layers_are_those_of_the_card(smollm2: lw.Model) -> None:
    out = activity(smollm2, TEXT).isel(prompt=0)
    rate = out.active.isel(position=slice(1, None)).mean("position")
    assert float(rate.sel(layer=[0, 1]).min()) == 1.0
    assert float(rate.sel(layer=slice(3, 18)).max()) < 0.25
    assert float(rate.sel(layer=27)) > 0.6
    first = out.isel(position=0)
    assert float(first.delta.sel(layer=11)) > 1e4  # the massive activation of position 0
    assert not bool(first.active.sel(layer=slice(12, None)).any())
