"""The ledger holds what the notebooks claim, the atlas every paper; filters keep what they say."""

from __future__ import annotations

import pytest

from lwlab import catalog
from lwlab.errors import BadInput, UnknownName
from lwlab.runs import registry
from lwlab.runs.report import collect
from lwlab.widgets import atlas, ledger


@pytest.fixture(scope="module")
def claims():
    return ledger([registry.notebooks_dir()])


@pytest.fixture(autouse=True)
def fresh(claims):
    claims.where()
    claims.picked = -1


def test_every_claim_of_the_committed_notebooks_is_there_once(claims):
    entries = collect([registry.notebooks_dir()])
    expected = [(e.id, r["id"]) for e in entries for r in e.claims]
    assert [tuple(r["cells"][:2]) for r in claims.rows] == expected
    assert len(expected) > 5
    assert claims.shown == list(range(len(expected)))


def test_filters_keep_exactly_the_rows_that_say_so(claims):
    family, verdict = claims.options["family"][0], claims.options["verdict"][0]
    model = claims.options["model"][0]
    kept = claims.where(family=family, verdict=verdict, model=model).found
    assert kept == [
        r
        for r in claims.rows
        if r["family"] == family and verdict in r["verdicts"] and model in r["models"]
    ]
    name = claims.rows[0]["cells"][1]
    assert claims.rows[0] in claims.where(text=f" {name.upper()} ").found
    assert claims.where(text="no claim says this").found == []
    assert all(r["seconds"] <= 30 for r in claims.where(cost="30").found)


def test_a_filter_or_row_that_does_not_exist_is_refused(claims):
    with pytest.raises(UnknownName, match="family"):
        claims.where(famly="depth")
    with pytest.raises(UnknownName, match="no family is 'nowhere'"):
        claims.where(family="nowhere")
    with pytest.raises(BadInput, match="row 9999"):
        claims.picked = 9999
    with pytest.raises(BadInput, match="no folder"):
        ledger(["/no/such/folder"])


def test_a_picked_row_is_told(claims):
    claims.picked = 0
    assert "expected" in claims.detail
    claims.picked = -1
    assert claims.detail == ""


def test_the_atlas_has_every_paper_and_knows_which_have_a_notebook():
    index = atlas([registry.notebooks_dir()])
    assert [r["cells"][0] for r in index.rows] == [p.id for p in catalog.papers()]
    made = {t.header.id for t in registry.techniques()} & {p.id for p in catalog.papers()}
    assert {r["cells"][0] for r in index.rows if r["mark"] == "●"} == made
    costly = index.where(cost="600").found
    assert {r["cells"][0] for r in costly} <= made
    assert index.where(family="attribution").found


def test_static_twin_lists_the_shown_rows(claims):
    claims.where(text=claims.rows[0]["cells"][1])
    data, _ = claims._repr_mimebundle_()
    assert claims.rows[0]["cells"][1] in data["text/plain"]
    assert f"of {len(claims.rows)} claims" in data["text/plain"]
    assert claims.static_png().startswith(b"\x89PNG")


def test_nothing_to_show_is_an_empty_table(tmp_path):
    empty = ledger([tmp_path])
    assert empty.found == []
    assert "0 of 0 claims" in empty.static_text()
    assert empty.static_png().startswith(b"\x89PNG")
