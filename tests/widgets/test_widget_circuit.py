"""The circuit graph's Python side: what is drawn is the circuit, what is measured is the library's.

On models written by hand, whose circuit is known.
"""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr

import lwlab as lw
from lwlab.attribution import circuits
from lwlab.errors import BadInput, UnknownName
from lwlab.models import handmade
from lwlab.widgets import CircuitGraph


@pytest.fixture(scope="module")
def made() -> handmade.Handmade:
    return handmade.build("induction")


@pytest.fixture(scope="module")
def scores(made: handmade.Handmade) -> xr.DataArray:
    return lw.attribution.edges.scores(made.model, made.task(4), "eap")


@pytest.fixture
def graph(made: handmade.Handmade, scores: xr.DataArray) -> Iterator[CircuitGraph]:
    widget = CircuitGraph(scores, made.model, made.task(4), keep=12)
    yield widget
    widget.close()


def drawn(widget: CircuitGraph) -> tuple[set[str], set[tuple[str, str]]]:
    """Components and lines of the picture, read from its SVG."""
    parts = list(ET.fromstring(widget.svg).iter())
    nodes = {p.attrib["data-id"] for p in parts if "data-id" in p.attrib}
    return nodes, {(p.attrib["data-a"], p.attrib["data-b"]) for p in parts if "data-a" in p.attrib}


def component(receiver: str) -> str:
    """The component of a receiver where no head shares its keys."""
    return re.sub(r"\.kv(\d+)<.>", r".h\1", receiver).removesuffix("<q>")


@pytest.mark.parametrize("keep", [1, 3, 5, 9, 46])
def test_the_picture_is_the_librarys_circuit(keep):
    made = handmade.build("induction", groups=2)
    found = lw.attribution.edges.scores(made.model, made.task(4), "eap")
    widget = CircuitGraph(found, keep=keep)
    want = lw.circuit(found, keep)
    nodes, lines = drawn(widget)
    assert nodes == set(want.nodes)
    assert lines == {(s, component(r)) for s, r in want.names}
    said = f"{len(want)} edges, {len(want.nodes)} components" if len(want) else "no edges left"
    assert widget.note.startswith(said)


def test_a_key_shared_by_heads_leads_to_those_that_take_part(made):
    true = circuits.Circuit.of(circuits.Graph.of(made.model), made.circuit())
    widget = CircuitGraph(true)
    _, lines = drawn(widget)
    assert lines == {
        ("input", "a0.h0"), ("input", "a1.h0"), ("a0.h0", "a1.h0"), ("a1.h0", "logits")
    }  # fmt: skip
    assert "layer 1 head 0: reads input, layer 0 head 0 and feeds logits" in widget.svg


def test_every_component_can_be_reached_and_is_named(graph):
    root = ET.fromstring(graph.svg)
    nodes = [p for p in root.iter() if "data-id" in p.attrib]
    assert all(n.attrib["role"] == "button" and n.attrib["aria-label"] for n in nodes)
    assert root.attrib["aria-label"].startswith("Circuit:")


def test_lines_run_upwards_and_components_do_not_overlap(graph):
    graph.keep = graph.most
    root = ET.fromstring(graph.svg)
    at = {p.attrib["data-id"]: (float(p.attrib["data-x"]), float(p.attrib["data-y"]))
          for p in root.iter() if "data-id" in p.attrib}  # fmt: skip
    assert len(set(at.values())) == len(at)
    for a, b in drawn(graph)[1]:
        assert at[a][1] > at[b][1]


def test_the_signs_differ_in_colour_and_dash():
    made = handmade.build("duplicate")
    found = lw.attribution.edges.scores(made.model, made.task(4), "eap")
    signed = abs(found) * xr.where(found.sender == "input", -1.0, 1.0)
    signed = signed.transpose(*found.dims)
    svg = ET.fromstring(CircuitGraph(signed, keep=8).svg)
    for p in svg.iter():
        if "data-a" in p.attrib:
            negative = p.attrib["data-a"] == "input"
            assert ("stroke-dasharray" in p.attrib) == negative
            assert p.attrib["class"].endswith("hinders" if negative else "helps")


def test_what_is_measured_is_the_librarys_faithfulness(made, scores, graph):
    for keep in (2, 8):
        graph.keep = keep
        graph.measure()
        assert graph.wait(60)
        assert graph.error == ""
        task = made.task(4)
        want = circuits.faithfulness(made.model, task, lw.circuit(scores, keep))
        got = graph.measured
        assert got["faithfulness"] == pytest.approx(float(want.faithfulness[0]), abs=1e-6)
        assert (got["low"], got["high"]) == pytest.approx(
            (float(want.low[0]), float(want.high[0])), abs=1e-6
        )
        assert got["circuit"] == pytest.approx(float(want.metric.mean()), abs=1e-5)
        assert f"keep {got['faithfulness']:.3f} of the effect" in graph.answer
    assert [r[0] for r in graph.table["rows"]] == [str(len(lw.circuit(scores, k))) for k in (2, 8)]


def test_the_whole_circuit_keeps_all_and_without_an_edge_of_it_little(made):
    true = circuits.Circuit.of(circuits.Graph.of(made.model), made.circuit())
    shares = []
    for c in (true, true.without([made.circuit()[2]])):
        widget = CircuitGraph(c, made.model, made.task(4))
        widget.measure()
        assert widget.wait(60)
        shares.append(widget.measured["faithfulness"])
        widget.close()
    assert shares[0] == pytest.approx(1, abs=1e-4)
    assert shares[1] < 0.9


def test_a_measured_size_is_remembered_and_another_shows_no_old_number(graph):
    graph.keep = 8
    graph.measure()
    assert graph.wait(60)
    first = graph.measured
    graph.keep = 3
    assert graph.measured == {}
    assert graph.answer == ""
    graph.keep = 8
    assert graph.measured == first
    assert "Measured" in graph.answer


def test_the_button_counts_and_progress_is_told(graph):
    seen: list[tuple[float, str]] = []
    graph.observe(lambda _: seen.append((graph.progress, graph.status)), ["progress", "status"])
    graph.asked += 1
    assert graph.wait(60)
    assert graph.measured["edges"] == len(graph.circuit)
    done = [f for f, _ in seen if f >= 0]
    assert done == sorted(done[:-1]) + done[-1:] or done == sorted(done)
    assert max(done) == 1.0
    assert any("of 12 prompts" in s for _, s in seen)  # three circuits on four prompts


def test_cancel_leaves_nothing_and_the_next_one_answers(graph, monkeypatch):
    from lwlab.attribution.answers import Reader

    plain, calls = Reader.run, []

    def slow(self, *args):
        calls.append(1)
        if len(calls) == 1:
            graph.cancel += 1
        return plain(self, *args)

    monkeypatch.setattr(Reader, "run", slow)
    graph.measure()
    assert graph.wait(60)
    assert graph.measured == {}
    assert not graph.busy
    graph.measure()
    assert graph.wait(60)
    assert graph.measured["faithfulness"] == pytest.approx(1, abs=0.05)


def test_ten_fast_clicks_end_with_the_last(graph):
    for keep in range(1, 11):
        graph.keep = keep
        graph.measure()
    assert graph.wait(60)
    assert graph.error == ""
    assert graph.measured["keep"] == 10


def test_picked_is_a_component_and_goes_with_it(graph):
    graph.picked = "a0.h0"
    with pytest.raises(UnknownName, match="a7"):
        graph.picked = "a7.h7"
    assert graph.picked == "a0.h0"
    graph.keep = 1
    assert graph.picked == ""


@pytest.mark.parametrize("keep", [-1, 10_000])
def test_keep_beyond_the_edges_is_refused(graph, keep):
    with pytest.raises(BadInput, match="edges to choose from"):
        graph.keep = keep


def test_no_edges_left_is_a_message(graph):
    graph.keep = 0
    assert graph.note == "no edges left: keep more of them"
    graph.measure()
    assert "no edges left to measure" in graph.error
    assert graph.static_png().startswith(b"\x89PNG")
    graph.keep = 8
    graph.measure()
    assert graph.wait(60)
    assert graph.error == ""


def test_bad_input_is_said_in_the_widget(made, scores):
    broken = scores.copy(deep=True)
    broken[0, 1, 9] = np.nan
    cases = {
        "1 scores are NaN": CircuitGraph(broken),
        "edge scores (sender, receiver)": CircuitGraph(scores.isel(sender=0)),
        "no edge": CircuitGraph(circuits.Circuit.of(circuits.Graph.of(made.model), [])),
        "give the task too": CircuitGraph(scores, made.model),
        "no selection 'best'": CircuitGraph(scores, select="best"),
    }
    for said, widget in cases.items():
        assert said in widget.error
        assert not widget.measures
        assert said in widget.static_text() or widget.circuit is not None
        assert widget.static_png().startswith(b"\x89PNG")
        widget.measure()
        assert said in widget.error
        assert widget.wait(5)


def test_another_models_edges_are_refused_and_still_drawn(scores, toy):
    made = handmade.build("induction")
    widget = CircuitGraph(scores, toy("llama"), made.task(4))
    assert "another graph than llama's" in widget.error
    assert len(drawn(widget)[0]) > 2
    assert not widget.measures


def test_a_model_made_by_chance_and_many_edges_are_cut_and_said_so(toy):
    model = toy("llama")
    graph = circuits.Graph.of(model)
    rng = np.random.default_rng(0)
    values = rng.normal(size=graph.exists.shape)
    made = xr.DataArray(values, dims=("sender", "receiver"), coords=graph.coords())
    widget = CircuitGraph(made, keep=graph.n_edges)
    _, lines = drawn(widget)
    assert len(lines) <= 150
    assert ("drawn: the 150 strongest" in widget.note) == (widget._shown.total > 150)
    wide = circuits.Graph(12, 12, 12)
    values = rng.normal(size=wide.exists.shape)
    big = xr.DataArray(values, dims=("sender", "receiver"), coords=wide.coords())
    widget = CircuitGraph(big, keep=2000)
    assert len(drawn(widget)[1]) == 150
    assert re.search(r"drawn: the 150 strongest of \d+ lines", widget.note)
    assert len(widget.static_png()) < 400_000


def test_a_circuit_without_scores_has_no_slider_and_can_be_measured(made):
    true = circuits.Circuit.of(circuits.Graph.of(made.model), made.circuit())
    widget = CircuitGraph(true, made.model, made.task(2))
    assert widget.fixed
    with pytest.raises(BadInput, match="no scores"):
        widget.keep = 2
    widget.measure()
    assert widget.wait(60)
    assert widget.measured["faithfulness"] == pytest.approx(1, abs=1e-4)


def test_names_with_markup_cannot_reach_the_page(scores):
    widget = CircuitGraph(scores, title='<img src=x onerror="alert(1)">')
    assert "<img" not in widget.svg
    assert 'onerror="' not in widget.svg


def test_the_static_twin_says_the_number(graph):
    graph.measure()
    assert graph.wait(60)
    data, _ = graph._repr_mimebundle_()
    assert f"{graph.measured['faithfulness']:.3f} of the effect" in data["text/plain"]
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def test_a_closed_graph_stays_quiet(graph):
    graph.close()
    graph.measure()
    assert graph.wait(10)
    assert graph.measured == {}
