"""The circuit graph answers to mouse and keyboard: its module alone, and in JupyterLab."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.browser

MAKE = """
import lwlab as lw
from lwlab.models import handmade
made = handmade.build("duplicate")
net, task = made.model, made.task(4)
scores = lw.attribution.edges.scores(net, task, "eap")
true = lw.attribution.circuits.Circuit.of(lw.attribution.circuits.Graph.of(net), made.circuit())
graph = lw.widgets.circuit(scores, net, task, keep=20)
for keep in (6, 12):
    found = lw.attribution.circuits.faithfulness(net, task, lw.circuit(scores, keep))
    print(f"{float(found.faithfulness[0]):.3f}", int(found.edges[0]))
graph
"""


def set_range(page, selector: str, value: float) -> None:
    """Drag a slider's value as a mouse would set it."""
    page.locator(selector).evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })); }", value
    )


def test_slider_node_and_button_in_jupyterlab(lab):
    from playwright.sync_api import expect

    page = lab.run("circuit.ipynb", MAKE, "graph.picked, graph.keep, graph.measured")
    said = page.locator('[data-mime-type="application/vnd.jupyter.stdout"] pre').inner_text()
    (six, n6), (twelve, n12) = (line.split() for line in said.split("\n") if line)
    root = page.locator(".lw-circuit")
    edges, note = root.locator(".lw-edge"), root.locator(".lw-note")
    assert six != twelve
    before = edges.count()
    set_range(page, ".lw-slide", 6)
    expect(note).to_contain_text(f"{n6} edges, ")
    assert 0 < edges.count() < before

    node = root.locator('.lw-node[data-id="a0.h0"]')
    node.hover()
    expect(root.locator(".lw-readout")).to_contain_text("layer 0 head 0: reads input")
    on = root.locator(".lw-edge.lw-on")
    assert 0 < on.count() < edges.count()
    node.click()
    expect(node).to_have_attribute("aria-pressed", "true")
    root.locator(".lw-title").hover()
    expect(root.locator(".lw-readout")).to_contain_text("layer 0 head 0")

    root.get_by_role("button", name="Measure what is left").click()
    expect(root.locator(".lw-answer")).to_contain_text(
        f"Measured: {n6} edges keep {six} of the effect", timeout=30_000
    )
    expect(root.locator(".lw-answers tbody tr")).to_have_count(1)

    root.locator(".lw-keep").fill("12")
    expect(note).to_contain_text(f"{n12} edges, ")
    expect(root.locator(".lw-answer")).to_be_empty()
    root.locator(".lw-measure").focus()
    page.keyboard.press("Enter")
    expect(root.locator(".lw-answer")).to_contain_text(f"keep {twelve} of", timeout=30_000)

    lab.shoot("circuit_light", root)
    try:
        lab.theme("JupyterLab Dark")
        lab.shoot("circuit_dark", root)
    finally:
        lab.theme("JupyterLab Light")

    root.locator(".lw-keep").fill("0")
    expect(note).to_contain_text("no edges left")
    root.get_by_role("button", name="Measure what is left").click()
    expect(root.get_by_role("alert")).to_contain_text("no edges left to measure")


def test_a_moved_slider_is_redrawn_quickly(lab):
    page = lab.run("circuit_quick.ipynb", MAKE)
    times = page.evaluate(
        """async () => {
            const root = document.querySelector('.lw-circuit'), times = [];
            const slide = root.querySelector('.lw-slide');
            for (let k = 0; k < 12; k++) {
                const rev = root.dataset.rev, start = performance.now();
                slide.value = k % 2 ? 20 : 8;
                slide.dispatchEvent(new Event('input', { bubbles: true }));
                while (root.dataset.rev === rev) await new Promise(requestAnimationFrame);
                times.push(performance.now() - start);
            }
            return times.sort((a, b) => a - b);
        }"""
    )
    print(f"slider to redraw ms (60 of them debounce): median {times[6]:.0f}, last {times[-1]:.0f}")
    assert times[6] < 1000


@pytest.fixture
def alone(watched):
    """The widget's module on an empty page, with a fake model."""
    from labdriver import mount

    import lwlab as lw
    from lwlab.models import handmade
    from lwlab.widgets import CircuitGraph

    made = handmade.build("induction", groups=2)
    scores = lw.attribution.edges.scores(made.model, made.task(4), "eap")

    def show(**options):
        options = {"model": made.model, "task": made.task(4), "keep": 20} | options
        watched.forget()
        mount(watched.page, CircuitGraph(scores, **options))
        return watched.page

    yield show
    watched.assert_clean()


def saved(page, name):
    """Return every value of a trait that was sent."""
    return page.evaluate("n => window.saved.filter(s => n in s).map(s => s[n])", name)


def test_module_alone_walks_the_graph_by_keyboard(alone):
    page = alone()
    assert page.locator('.lw-node[tabindex="0"]').count() == 1
    page.locator('.lw-node[tabindex="0"]').focus()
    at = "document.activeElement.getAttribute('data-id')"
    assert page.evaluate(at) == "input"
    seen = ["input"]
    for _ in range(8):
        page.keyboard.press("ArrowUp")
        seen.append(page.evaluate(at))
    assert seen[-1] == "logits"
    assert [n[0] for n in seen[:2]] == ["i", "a"]
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert saved(page, "picked") == ["logits", ""]
    page.keyboard.press("ArrowDown")
    focused = page.evaluate(at)
    on = page.locator(".lw-edge.lw-on").evaluate_all(
        "ps => ps.map(p => [p.getAttribute('data-a'), p.getAttribute('data-b')])"
    )
    assert on
    assert all(focused in pair for pair in on)
    assert page.locator(".lw-readout").inner_text().startswith("layer 1")


def test_module_alone_counts_edges_one_by_one_and_asks_once_a_rest(alone):
    page = alone()
    page.locator(".lw-slide").focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("window.saved.some(s => s.keep === 15)")
    assert len(saved(page, "keep")) < 5
    page.get_by_role("button", name="Measure what is left").click()
    assert saved(page, "asked") == [1]


def test_module_alone_says_progress_and_cancels(alone):
    page = alone()
    page.evaluate("model.set('progress', 0.5); model.set('status', '6 of 12 prompts')")
    page.evaluate("model.set('busy', true)")
    assert page.locator(".lw-status").inner_text() == "6 of 12 prompts"
    page.get_by_role("button", name="Cancel").click()
    assert saved(page, "cancel") == [1]


def test_module_alone_offers_nothing_that_cannot_be_done(alone):
    page = alone(task=None)
    assert page.get_by_role("button", name="Measure what is left").is_disabled()
    assert "give the task too" in page.get_by_role("alert").inner_text()


def test_module_alone_shows_markup_as_text_and_leaves_nothing_behind(alone):
    page = alone(title="<b>x</b>")
    assert page.locator(".lw-title").inner_text() == "<b>x</b>"
    assert re.match(r"Circuit|<b>x", page.locator("svg").get_attribute("aria-label"))
    assert page.evaluate("model.listeners()") > 0
    page.evaluate("cleanup()")
    assert page.evaluate("model.listeners()") == 0
    assert page.locator("#el").inner_html() == ""
