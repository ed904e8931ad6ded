from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import lwlab as lw
from lwlab.claims import ClaimTable, parse, read_claims, table
from lwlab.errors import BadInput, ClaimFailed, LwlabError


def paper(measured: object, expect: str, **kw: object) -> lw.claims.Claim:
    return lw.claim("test.claim", measured=measured, expect=expect, kind="paper", **kw)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expect", "inside", "outside"),
    [
        ("< 1e-3", [0.0009, -5], [0.001, 1]),
        ("<= 2", [2, 1.9], [2.0001]),
        ("> 0", [1e-9], [0, -1]),
        (">= .9", [0.9, 1], [0.899]),
        ("== 0", [0, 0.0, -0.0], [1e-30]),
        ("0.95 +- 0.03", [0.92, 0.98, 0.95], [0.9199, 0.981]),
        ("-1.5e2 ± 10", [-160, -140], [150]),
        ("in [0.2, 0.4]", [0.2, 0.4, 0.3], [0.19999, 0.41]),
        ("in[-1,-1]", [-1], [1]),
    ],
)
def test_an_expectation_is_met_exactly_inside_its_limits(
    expect: str, inside: list[float], outside: list[float]
) -> None:
    assert [parse(expect).holds(v) for v in inside] == [True] * len(inside)
    assert [parse(expect).holds(v) for v in outside] == [False] * len(outside)
    assert not parse(expect).holds(math.nan)


@pytest.mark.parametrize(
    "expect",
    [
        *("", "about 3", "<", "< x", "=< 3", "= 3", "!= 3", "< nan", "< inf", "1 +- -1", "TRUE"),
        *("in [0.4, 0.2]", "in (0, 1)", "in [0]", "0.2 to 0.4", "> 0 and < 1", "false", 3, None),
    ],
)
def test_a_malformed_expectation_is_refused_with_examples(expect: str) -> None:
    with pytest.raises(BadInput, match=r"'0\.95 \+- 0\.03'|lower end first"):
        parse(expect)


def test_a_bare_number_is_refused_with_the_spelling_that_works() -> None:
    with pytest.raises(BadInput, match=r"did you mean '== 5'\?"):
        parse("5")


def test_exact_claims_hold_or_raise_after_being_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert lw.claim("a.b-c", measured=0, expect="== 0", kind="exact").verdict == "holds"
    with pytest.raises(ClaimFailed, match=r"'a\.b-c' is broken: measured 1e-06, expected == 0"):
        lw.claim("a.b-c", measured=1e-6, expect="== 0", kind="exact")
    assert "✗ broken: a.b-c = 1e-06 (expected == 0)" in capsys.readouterr().out
    assert issubclass(ClaimFailed, AssertionError)


@pytest.mark.parametrize("expect", ["< 1", "> 1", "== 0", "0 +- 1e9", "in [-1e9, 1e9]"])
def test_nan_never_passes(expect: str) -> None:
    assert paper(math.nan, expect).verdict == "not reproduced"
    with pytest.raises(ClaimFailed):
        lw.claim("x", measured=np.float32("nan"), expect=expect, kind="exact")


@pytest.mark.parametrize(
    "value",
    [
        *(1, 1.0, np.float32(1), np.int64(1), np.array(1.0), np.array([1.0])),
        *(torch.tensor(1), torch.tensor([1.0], requires_grad=True), xr.DataArray(1.0)),
    ],
)
def test_scalars_of_every_library_are_numbers(value: object) -> None:
    claim = paper(value, "== 1")
    assert claim.ok
    assert type(claim.measured) in (int, float)
    json.dumps(claim.record(), allow_nan=False)


@pytest.mark.parametrize("value", [True, np.bool_(True), torch.tensor(True)])
def test_truth_is_claimed_with_true_and_nothing_else(value: object) -> None:
    assert paper(value, "true").verdict == "reproduced"
    assert paper(not value, "true").verdict == "not reproduced"
    with pytest.raises(BadInput, match="expect 'true' goes with"):
        paper(value, "== 1")
    with pytest.raises(BadInput, match="expect 'true' goes with"):
        paper(1, "true")


@pytest.mark.parametrize("value", [None, "0.9", 1j, [0.9], torch.ones(3), np.ones((2, 2)), {}])
def test_what_is_not_one_number_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match="a claim holds one number"):
        paper(value, "> 0")


@pytest.mark.parametrize("id", ["", "A", "a b", "a_b", ".a", "a.", "a..b", "é", None])
def test_ids_follow_one_spelling(id: str) -> None:
    with pytest.raises(BadInput, match="lower-case"):
        lw.claim(id, measured=1, expect="> 0", kind="exact")


def test_a_verdict_that_differs_from_its_pin_is_changed_and_loud() -> None:
    pins = {"smollm2-135m": "reproduced", "gpt2": "not reproduced"}
    same = paper(1, "> 0", model="smollm2-135m", pinned=pins)
    assert (same.pinned, same.changed, same.ok) == ("reproduced", False, True)
    other = paper(1, "> 0", model="gpt2", pinned=pins)
    assert (other.pinned, other.changed, other.ok) == ("not reproduced", True, False)
    bundle = other.bundle()
    for mime in ("text/plain", "text/html"):
        assert "CHANGED" in bundle[mime]
        assert "⚠" in bundle[mime]
        assert "gpt2" in bundle[mime]
    unknown = paper(1, "> 0", model="my-model", pinned=pins)
    assert (unknown.pinned, unknown.changed) == (None, False)


def test_a_model_object_is_known_by_its_name() -> None:
    class Model:
        name = "gpt2"

    assert paper(1, "> 0", model=Model(), pinned={"gpt2": "reproduced"}).model == "gpt2"
    with pytest.raises(BadInput, match="neither a Model nor"):
        paper(1, "> 0", model=3)


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"pinned": "reproducd"}, "did you mean 'reproduced'"),
        ({"pinned": {"gpt2": "holds"}, "model": "gpt2"}, "pinned to 'holds'"),
        ({"pinned": {"gpt2": "reproduced"}}, "pass model="),
        ({"interval": (2, 1)}, "low <= high"),
        ({"interval": (1, 2, 3)}, r"must be \(low, high\)"),
        ({"n": 2.5}, "not a whole number"),
        ({"kind": "papers"}, "did you mean 'paper'"),
    ],
)
def test_bad_arguments_say_what_would_work(kw: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        lw.claim("x", **{"measured": 1, "expect": "> 0", "kind": "paper", **kw})  # type: ignore[arg-type]


def test_exact_claims_take_no_pin() -> None:
    with pytest.raises(BadInput, match="takes no pin"):
        lw.claim("x", measured=1, expect="> 0", kind="exact", pinned="reproduced")


def test_the_record_carries_everything_a_reader_needs() -> None:
    claim = lw.claim(
        "relp.beats-atp", measured=np.float64(0.935), expect="> 0.9", kind="paper",
        statement="RelP agrees with patching", paper="table 1", n=np.int64(16), seed=0,
        interval=(torch.tensor(0.89), 0.96), model="smollm2-135m", unit="r", note="8 pairs",
        pinned="reproduced",
    )  # fmt: skip
    record = claim.record()
    assert record["interval"] == pytest.approx([0.89, 0.96])
    del record["interval"]
    assert record == {
        "id": "relp.beats-atp", "statement": "RelP agrees with patching", "paper": "table 1",
        "measured": 0.935, "expect": "> 0.9", "kind": "paper", "verdict": "reproduced",
        "pinned": "reproduced", "changed": False, "n": 16, "seed": 0, "borderline": True,
        "unit": "r", "note": "8 pairs", "model": "smollm2-135m", "lwlab_version": lw.__version__,
    }  # fmt: skip
    shown = str(claim)
    for part in ("0.935 r [0.89, 0.96]", "n=16", "seed 0", "table 1", "interval crosses"):
        assert part in shown


def test_an_interval_that_stays_on_one_side_is_not_borderline() -> None:
    assert not paper(0.95, "> 0.9", interval=(0.91, 0.99)).borderline
    assert paper(0.85, "> 0.9", interval=(0.8, 0.99)).borderline
    assert not paper(0.5, "> 0.9", interval=(0.4, 0.6)).borderline


def test_infinite_numbers_stay_valid_json() -> None:
    record = paper(math.inf, "> 0", interval=(0, math.inf)).record()
    assert (record["measured"], record["interval"]) == ("inf", [0.0, "inf"])
    assert "inf" in ClaimTable([record])._repr_html_()
    assert paper(math.nan, "> 0").record()["measured"] == "nan"


def test_html_is_escaped_and_needs_no_script_or_theme() -> None:
    html = paper(1, "> 0", statement="a < b <script>x</script>", note="<b>").bundle()["text/html"]
    assert "<script" not in html
    assert "<b>" not in html
    assert "a &lt; b" in html
    colours = [part.split(";")[0] for part in html.split("color:")[1:]]
    assert colours == []  # text and background stay the theme's; only an edge is coloured


def test_square_brackets_survive_the_terminal_table() -> None:
    shown = str(table([paper(0.3, "in [0.2, 0.4]", statement="[red]x[/red]", interval=(0.2, 0.4))]))
    assert "in [0.2, 0.4]" in shown
    assert "[red]x[/red]" in shown


def test_the_table_counts_verdicts_and_knows_whether_all_is_well() -> None:
    good = lw.claim("a", measured=0, expect="== 0", kind="exact")
    bad = paper(1, "< 0", pinned="reproduced")
    assert table([good]).summary() == "1 claim: 1 holds"
    assert table([good, bad]).summary() == "2 claims: 1 holds, 1 not reproduced, 1 CHANGED"
    assert table([good]).ok
    assert not table([good, bad]).ok
    assert table([]).summary() == "no claims"


def test_the_table_of_a_session_holds_the_last_of_each_claim() -> None:
    lw.claim("session.x", measured=1, expect="> 5", kind="paper")
    lw.claim("session.x", measured=9, expect="> 5", kind="paper")
    mine = [r for r in table().records if r["id"] == "session.x"]
    assert [r["measured"] for r in mine] == [9]


def notebook(*ids: str) -> dict[str, object]:
    def cell(id: str) -> dict[str, object]:
        data = lw.claim(id, measured=1, expect="> 0", kind="paper").bundle()
        outputs = [
            {"output_type": "stream", "name": "stdout", "text": "x"},
            {"output_type": "display_data", "data": data, "metadata": {}},
        ]
        return {"cell_type": "code", "outputs": outputs, "source": ""}

    return {"cells": [{"cell_type": "markdown", "source": ""}, *map(cell, ids)], "metadata": {}}


def test_claims_are_read_back_from_a_notebook_in_order(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps(notebook("b", "a")))
    assert [(c["id"], c["cell"]) for c in read_claims(path)] == [("b", 1), ("a", 2)]
    assert read_claims(path) == read_claims(notebook("b", "a"))
    assert table(path).summary() == "2 claims: 2 reproduced"


def test_a_claim_made_twice_in_one_notebook_is_an_error() -> None:
    with pytest.raises(BadInput, match="'a' is made twice, in cells 1 and 3"):
        read_claims(notebook("a", "b", "a"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"cells": 3}'])
def test_what_is_not_a_notebook_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(content)
    with pytest.raises(BadInput, match="notebook"):
        read_claims(path)
    with pytest.raises(LwlabError):
        read_claims(path.with_name("missing.ipynb"))


def test_claims_import_nothing_heavy() -> None:
    code = (
        "import sys, lwlab; lwlab.claim('a', measured=1, expect='> 0', kind='exact');"
        "heavy = {'torch', 'numpy', 'IPython', 'nbformat', 'rich', 'xarray'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
