"""The map's Python side, with no browser: it can be driven headless and says what went wrong."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import xarray as xr

from lwlab.charts.palette import DIVERGING, SEQUENTIAL
from lwlab.errors import BadInput, UnknownName
from lwlab.widgets import HeatMap, Pick


def result(rows: int = 4, columns: int = 5, **attrs: object) -> xr.DataArray:
    values = 10.0 * np.arange(rows)[:, None] + np.arange(columns)
    return xr.DataArray(
        np.stack([values, -0.5 * values]),
        dims=("estimate", "layer", "position"),
        coords={
            "estimate": ["exact", "AtP"],
            "layer": 10 + np.arange(rows),
            "token_str": ("position", [f" t{j}" for j in range(columns)]),
        },
        name="effect",
        attrs={"long_name": "recovered logit difference", **attrs},
    )


def test_state_holds_every_map_on_one_scale():
    hm = HeatMap.from_result(result())
    assert hm.array().shape == (2, 4, 5)
    np.testing.assert_array_equal(hm.array(), result().values)
    assert hm.maps == ["exact", "AtP"]
    assert hm.domain == (-34, 34)
    assert tuple(hm.stops) == DIVERGING
    assert hm.row_labels == ["10", "11", "12", "13"]
    assert hm.column_labels == ["0: t0", "1: t1", "2: t2", "3: t3", "4: t4"]
    assert hm.lower  # layers rise
    assert hm.title == hm.value_title == "Recovered logit difference"


def test_a_pick_reaches_every_callback_with_labels_and_value():
    hm, seen = HeatMap(result()), []
    hm.on_pick(seen.append).on_pick(lambda pick: f"layer {pick['layer']}")
    hm.show("AtP")
    hm.pick(2, 3)
    assert seen == [Pick(2, 3, "AtP", -11.5, {"layer": 12, "position": 3})]
    assert hm.answer == "layer 12"
    assert hm.handled == hm.picked["n"] == 1


def test_picking_the_same_cell_again_calls_again():
    hm, seen = HeatMap(result()), []
    hm.on_pick(seen.append)
    hm.pick(1, 1)
    hm.pick(1, 1)
    hm.picked = {"row": 1, "column": 1, "n": 7}  # as a front end sets it
    assert len(seen) == 3
    assert hm.handled == 7


def test_a_failing_callback_becomes_the_visible_error_and_the_next_pick_clears_it():
    hm = HeatMap(result()).on_pick(lambda pick: 1 / pick.row)
    hm.pick(0, 0)
    assert hm.error == "ZeroDivisionError: division by zero"
    assert "1 / pick.row" in hm.failure
    assert hm.handled == 1  # the front end stops saying "working"
    hm.pick(1, 0)
    assert hm.error == hm.failure == ""


def test_our_own_errors_are_shown_without_their_class_name():
    hm = HeatMap(result())
    assert hm.guard(hm.show, "RelP") is None
    assert hm.error.startswith("no map 'RelP'")


def test_a_front_end_that_sends_nonsense_is_ignored():
    hm, seen = HeatMap(result()), []
    hm.on_pick(seen.append)
    for junk in ({}, {"row": 99, "column": 0, "n": 1}, {"row": 0, "n": 2}):
        hm.picked = junk
    assert seen == []
    assert hm.error == ""


def test_update_keeps_options_pick_and_answer():
    hm = HeatMap(result(), tokens=list("abcde"), domain=(-50, 50), title="mine")
    hm.on_pick(lambda pick: "said")
    hm.pick(0, 0)
    hm.shown = 1
    hm.update(2 * result())
    assert hm.domain == (-50, 50)
    assert hm.title == "mine"
    assert hm.column_labels[0] == "0: a"
    assert hm.shown == 1
    assert hm.answer == "said"
    np.testing.assert_array_equal(hm.array(), 2 * result().values)
    hm.update(result().sel(estimate="exact"))  # one map now
    assert (hm.shown, hm.maps) == (0, [""])
    assert tuple(hm.stops) == DIVERGING  # the chosen domain straddles zero


def test_a_smaller_result_drops_a_pick_that_it_does_not_contain():
    hm = HeatMap(result())
    hm.pick(3, 4)
    hm.update(result(2, 2))
    assert hm.picked == {}
    hm.static_png()


def test_one_map_of_one_sign_and_a_dataset_of_maps():
    hm = HeatMap(result().sel(estimate="exact"))
    assert tuple(hm.stops) == SEQUENTIAL
    both = HeatMap(result().to_dataset("estimate"))
    assert both.maps == ["exact", "AtP"]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: HeatMap(np.ones((2, 2))), BadInput, "labelled result"),
        (lambda: HeatMap(result().expand_dims(prompt=3)), BadInput, "average first"),
        (lambda: HeatMap(result().isel(layer=0, estimate=0)), BadInput, "two dimensions"),
        (lambda: HeatMap(result(), x="layers"), UnknownName, "did you mean 'layer'"),
        (lambda: HeatMap(result()).pick(4, 0), BadInput, "outside the 4 x 5 map"),
        (lambda: HeatMap(result()).show("RelP"), UnknownName, "no map 'RelP'"),
        (lambda: HeatMap(result(), domain=(1, 0)), BadInput, "rise"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_saved_form_is_a_picture_and_a_sentence_and_no_html():
    hm = HeatMap(result())
    hm.pick(1, 2)
    data, _ = hm._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "text/html" not in data
    assert "largest 34 at layer 13, position 4: t4 (exact)" in data["text/plain"]
    png = base64.b64decode(data["image/png"])
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(png) < 150_000


def test_the_picture_paints_each_cell_in_its_own_colour():
    """A cell map of known values, drawn and read back pixel by pixel."""
    from lwlab.charts.palette import colour_map

    image = pytest.importorskip("PIL.Image")
    import io

    hm = HeatMap(result().isel(estimate=0).where(result().layer != 11))
    picture = np.asarray(image.open(io.BytesIO(hm.static_png())).convert("RGB"))
    expected = colour_map(hm.array()[0].astype(float), hm.domain, tuple(hm.stops))
    high, wide = round(24 * 1.5), round(28 * 1.5)  # cells of 28 x 24 points at one and a half
    # Find the top left corner of the map: the first pixel of the top layer's first colour.
    top = np.argwhere((picture == expected[3, 0]).all(-1))[0]
    for row in (0, 2, 3):
        for column in range(5):
            y, x = top[0] + (3 - row) * high + high // 2, top[1] + column * wide + wide // 2
            np.testing.assert_allclose(picture[y, x], expected[row, column], atol=2)
    y, x = top[0] + 2 * high, top[1]
    patch = picture[y + 4 : y + high - 4, x + 4 : x + 5 * wide - 4].reshape(-1, 3)
    assert len(np.unique(patch, axis=0)) >= 2  # hatched
    assert (np.ptp(patch.astype(int), axis=1) == 0).all()  # in grey


def test_a_large_map_is_drawn_quickly_enough_to_display():
    import time

    hm = HeatMap(result(30, 1024))
    hm.static_png()
    start = time.process_time()
    assert len(hm.static_png()) < 400_000
    assert time.process_time() - start < 3
