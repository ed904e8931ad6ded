"""The token strip's Python side: rows, colours, white space, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lwlab.charts.palette import DIVERGING
from lwlab.errors import BadInput
from lwlab.widgets import TokenStrip

WORDS = ["The", " cat", "\n", " שלום", "😀"]


def test_rows_by_name_one_scale_and_visible_white_space():
    strip = TokenStrip({"exact": [1, -2, 0, 3, np.nan], "AtP": [0, 0, 0, 0, 4]}, tokens=WORDS)
    assert strip.rows == ["exact", "AtP"]
    assert strip.domain == (-4, 4)
    assert tuple(strip.stops) == DIVERGING
    assert strip.array().shape == (2, 5)
    assert strip.shown == ["The", " cat", "↵\n", " שלום", "😀"]
    assert "exact: strongest 3 at 3" in strip.static_text()
    assert strip.static_png()[:4] == b"\x89PNG"


def test_a_labelled_result_brings_its_tokens_and_rows():
    da = xr.DataArray(
        np.arange(10.0).reshape(5, 2), dims=("position", "technique"), name="score",
        coords={"technique": ["a", "b"], "token_str": ("position", WORDS)},
    )  # fmt: skip
    strip = TokenStrip(da)
    assert strip.tokens == WORDS
    np.testing.assert_array_equal(strip.array(), da.values.T)
    assert strip.rows == ["a", "b"]
    strip.update(-da)
    np.testing.assert_array_equal(strip.array(), -da.values.T)


def test_focus_and_picks_are_state():
    strip, heard = TokenStrip(np.arange(5.0), tokens=WORDS), []
    strip.on_pick(heard.append).on_pick(lambda k: f"token {k}")
    strip.pick(3)
    strip.picked = {"token": 3, "n": 2}
    strip.picked = {"token": 99, "n": 3}
    assert (heard, strip.focus, strip.answer) == ([3, 3], 3, "token 3")
    strip.on_pick(lambda k: 1 / (k - 2))
    strip.pick(2)
    assert strip.error == "ZeroDivisionError: division by zero"


def test_nothing_but_nan_is_said_so():
    strip = TokenStrip([np.nan] * 5, tokens=WORDS)
    assert "no value" in strip.static_text()
    strip.static_png()


def test_two_thousand_tokens_are_drawn():
    strip = TokenStrip(np.random.default_rng(0).normal(size=(3, 2000)), tokens=[" word"] * 2000)
    assert len(strip.static_png()) < 400_000
    assert "2000 tokens" in strip.static_text()


@pytest.mark.parametrize(
    ("values", "tokens", "words"),
    [
        ([1, 2], WORDS, "2 values for 5 tokens"),
        ([1, 2], None, "no token strings"),
        ([], [], "no values"),
        (np.zeros((2, 2, 2)), ["a", "b"], "values of shape"),
        (xr.DataArray(np.zeros((2, 2)), dims=("layer", "head")), ["a", "b"], "needs position"),
        ({"a": [1], "b": [1, 2]}, ["x"], "rows of one length"),
        (np.zeros((3, 10_000)), ["a"] * 10_000, "too many to read"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_words(values, tokens, words):
    with pytest.raises(BadInput, match=words):
        TokenStrip(values, tokens=tokens)
