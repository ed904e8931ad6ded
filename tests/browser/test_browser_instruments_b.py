"""Depth board and its companions: their modules alone, then in JupyterLab with smollm2-135m."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture
def alone(watched):
    """Show a widget's module on an empty page with a fake model."""
    from labdriver import mount

    def show(widget):
        watched.forget()
        mount(watched.page, widget)
        return watched.page

    yield show
    watched.assert_clean()


def saved(page, name):
    """Return the value of a trait that was sent last."""
    return page.evaluate("n => window.saved.filter(s => n in s).map(s => s[n]).at(-1)", name)


MAKE = """
import lwlab as lw
model = lw.load("smollm2-135m")
board = lw.widgets.depth(model, "The capital of France is")
board
"""
TABLES = "from IPython.display import display\ndisplay(lw.widgets.ledger())\nlw.widgets.atlas()"
BITS = "rounded = lw.widgets.bits(model)\nrounded"
DIAL = """
streams = lw.cache(model, ["I love this film", "I hate this film"], "resid_post", layers=12)
last = streams.resid_post.isel(layer=0, position=-1)
dial = lw.widgets.steer(model, last[0] - last[1], 12, "I think that this film is", tokens=12)
dial
"""


def test_smollm2_answers_in_jupyterlab(lab):
    """One kernel, one model: a click, a drag, typing and keys in each instrument."""
    from playwright.sync_api import expect

    lab.page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    try:
        page = lab.run("instruments_b.ipynb", MAKE, BITS, DIAL, TABLES)
        depth_board(page)
        bit_board(page)
        steering_dial(page)
        claims_ledger(page)
        for theme in ("Light", "Dark"):
            lab.theme(f"JupyterLab {theme}")
            for name in ("depth", "bits", "steer", "ledger"):
                shown = page.locator(f".lw-{name}").first
                lab.shoot(f"{name}_{theme.lower()}", shown)
    finally:
        lab.theme("JupyterLab Light")
        lab.page.set_default_timeout(30_000)
        expect.set_options(timeout=5_000)


def fact(root, name):
    """Return the locator of a named number."""
    return root.locator(".lw-fact", has_text=name).locator("b")


def depth_board(page):
    """Switch, repeat, move and type; the answers are smollm2's."""
    from playwright.sync_api import expect

    root = page.locator(".lw-depth")
    first = root.locator("table").first.locator(".lw-token").first
    kl = fact(root, "KL to the full model")
    expect(first).to_have_text(" Paris")
    expect(kl).to_have_text("0 nats")
    root.get_by_role("button", name="layer 0", exact=True).click()
    expect(first).not_to_have_text(" Paris")  # without its first layer the model is lost
    expect(kl).not_to_have_text("0 nats")
    root.get_by_role("button", name="layer 0", exact=True).focus()
    page.keyboard.press("Space")
    expect(first).to_have_text(" Paris")
    a = root.locator(".lw-handle").nth(10).bounding_box()
    b = root.locator(".lw-row").nth(12).bounding_box()
    page.mouse.move(a["x"] + 5, a["y"] + 5)
    page.mouse.down()
    page.mouse.move(b["x"] + 5, b["y"] + b["height"] - 4, steps=4)
    page.mouse.up()
    order = root.locator(".lw-whole").all_inner_texts()
    assert order[10:13] == ["11", "12", "10"]
    expect(kl).not_to_have_text("0 nats")
    root.get_by_role("button", name="Whole model").click()
    expect(kl).to_have_text("0 nats")
    root.locator(".lw-prompt").fill("Two plus two equals")
    expect(first).not_to_have_text(" Paris")
    root.locator(".lw-prompt").fill("")
    expect(root.locator('[role="alert"]')).to_have_text("the prompt is empty: write something")
    root.locator(".lw-prompt").fill("The capital of Italy is")
    expect(first).to_have_text(" Rome")
    expect(root.locator('[role="alert"]')).to_be_empty()


def bit_board(page):
    """A key on a slider, a budget, and a measurement with progress."""
    from labdriver import heard, listen
    from playwright.sync_api import expect

    root = page.locator(".lw-bits")
    size, now = fact(root, "blocks, packed"), fact(root, "perplexity, short text")
    expect(size).to_have_text("212.3 MB")
    before = float(now.inner_text())
    slider = root.get_by_role("slider", name="bits of layer 0", exact=True)
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "2 bits")
    expect(size).not_to_have_text("212.3 MB")
    expect(now).not_to_have_text("…")
    root.locator(".lw-budget").fill("60")
    root.get_by_role("button", name="Allocate").click()
    expect(size).to_have_text(re.compile(r"(59\.[5-9]|60\.0) MB"))
    expect(now).not_to_have_text("…")
    assert float(now.inner_text()) > before
    listen(root, ".lw-status")
    root.get_by_role("button", name="Measure properly").click()
    expect(root.locator(".lw-proper b")).to_be_visible()
    assert "the model as it is: text 1" in heard(root)
    assert "the rounded model: text 1" in heard(root)
    assert float(root.locator(".lw-proper b").inner_text()) > 1
    root.locator(".lw-budget").fill("1")
    root.get_by_role("button", name="Allocate").click()
    expect(root.locator('[role="alert"]')).to_contain_text("1 MB are too few")


def steering_dial(page):
    """The strongest push changes the text, token by token; no push gives it back."""
    from labdriver import click_when
    from playwright.sync_api import expect

    root = page.locator(".lw-steer")
    base, steered = root.locator(".lw-base .lw-text"), root.locator(".lw-steered .lw-text")
    expect(root.locator(".lw-activity")).to_have_class(re.compile("lw-idle"))
    plain = base.inner_text()
    assert len(plain.split()) >= 8
    assert steered.inner_text() == plain
    strength = root.get_by_role("slider", name="strength")
    strength.focus()
    page.keyboard.press("End")
    expect(steered).not_to_have_text(plain)
    expect(root.locator(".lw-activity")).to_have_class(re.compile("lw-idle"))
    assert base.inner_text() == plain
    root.get_by_role("button", name="No steering").click()
    expect(steered).to_have_text(plain)
    click_when(root, ".lw-status", "steered text", "Cancel")
    strength.focus()
    page.keyboard.press("Home")
    root.evaluate("root => root.clicked")
    expect(root.locator(".lw-activity")).to_have_class(re.compile("lw-idle"))
    expect(root.locator('[role="alert"]')).to_be_empty()
    root.locator(".lw-prompt").fill("The best thing about the sea is")
    expect(base).not_to_have_text(plain)
    expect(root.locator(".lw-activity")).to_have_class(re.compile("lw-idle"))
    assert steered.inner_text() not in ("", base.inner_text())


def claims_ledger(page):
    """Typing, a choice and keys narrow the claims and open one; the index knows the papers."""
    from playwright.sync_api import expect

    root = page.locator(".lw-ledger").nth(0)
    rows = root.locator("tbody tr:visible")
    every = rows.count()
    assert every > 5
    wanted = rows.nth(1).locator("td").first.inner_text()
    root.get_by_role("searchbox").fill(wanted.upper())
    expect(rows).not_to_have_count(every)
    assert wanted in rows.locator("td:nth-child(2)").all_inner_texts()
    root.get_by_role("searchbox").fill("")
    expect(rows).to_have_count(every)
    root.get_by_label("verdict").select_option("reproduced")
    expect(rows).not_to_have_count(every)
    assert set(rows.locator("td:nth-child(4)").all_inner_texts()) == {"reproduced"}
    rows.first.locator("button").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(root.locator(".lw-detail")).to_contain_text("expected")
    index = page.locator(".lw-ledger").nth(1)
    index.get_by_label("family").select_option("depth")
    expect(index.locator("tbody tr:visible").first).to_contain_text("depth")
    assert "●" in index.locator("tbody").inner_text()


@pytest.fixture
def board(toy):
    from lwlab.widgets import depth

    made = depth(toy("llama"), "the cat sat", "the cat sat")
    assert made.wait(60)
    yield made
    made.close()


def test_depth_alone_switches_repeats_and_moves_by_mouse_and_keyboard(alone, board):
    page = alone(board)
    n = board.model.n_layers
    rows = page.locator(".lw-row")
    assert rows.count() == n
    page.get_by_role("button", name="attention of layer 0").click()
    assert saved(page, "steps")[0] == {"layer": 0, "attn": False, "mlp": True, "times": 1}
    page.locator(".lw-times").first.fill("3")
    page.locator(".lw-times").first.press("Enter")
    assert saved(page, "steps")[0]["times"] == 3
    page.get_by_role("button", name="layer 0", exact=True).click()
    assert not saved(page, "steps")[0]["mlp"]
    page.get_by_role("button", name="layer 0", exact=True).focus()
    page.keyboard.press("Alt+ArrowDown")
    assert [r["layer"] for r in saved(page, "steps")][:2] == [1, 0]
    assert rows.nth(1).locator(".lw-whole").evaluate("e => e === document.activeElement")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert saved(page, "steps")[0] == {"layer": 1, "attn": False, "mlp": True, "times": 1}
    a, b = rows.nth(0).locator(".lw-handle").bounding_box(), rows.nth(n - 1).bounding_box()
    page.mouse.move(a["x"] + 5, a["y"] + 5)
    page.mouse.down()
    page.mouse.move(b["x"] + 5, b["y"] + b["height"] / 2, steps=4)
    page.mouse.up()
    assert saved(page, "steps")[-1]["layer"] == 1
    page.get_by_role("button", name="Whole model").click()
    assert saved(page, "steps") == [
        {"layer": i, "attn": True, "mlp": True, "times": 1} for i in range(n)
    ]


def test_depth_alone_shows_markup_as_text_and_leaves_nothing_behind(alone, board):
    board.answer = {**board.answer, "top": [{"id": 1, "token": "<b>x", "p": 0.5, "other": 0.1}]}
    page = alone(board)
    assert page.locator(".lw-token").first.inner_text() == "<b>x"
    page.evaluate("model.set('error', '<i>no</i>')")
    assert page.locator('[role="alert"]').inner_text() == "<i>no</i>"
    assert page.evaluate("model.listeners()") > 0
    page.evaluate("cleanup()")
    assert page.evaluate("model.listeners()") == 0
    assert page.locator("#el").inner_html() == ""


@pytest.fixture
def rounded(toy):
    from lwlab.widgets import bits

    made = bits(toy("llama"), "the cat sat", group=8)
    assert made.wait(60)
    yield made
    made.close()


def test_bits_alone_sends_sliders_budget_and_measurement(alone, rounded):
    page = alone(rounded)
    n = rounded.model.n_layers
    page.get_by_role("slider", name="bits of layer 1", exact=True).focus()
    page.keyboard.press("Home")
    page.wait_for_function("window.saved.length > 0")
    assert saved(page, "bits") == [16, 2, *[16] * (n - 2)]
    page.get_by_role("slider", name="bits of all layers").fill("4")
    page.wait_for_function("window.saved.length > 1")
    assert saved(page, "bits") == [4] * n
    page.locator(".lw-budget").fill("0.5")
    page.locator(".lw-how").select_option("uniform")
    page.get_by_role("button", name="Allocate").click()
    assert saved(page, "wish") == {"megabytes": 0.5, "technique": "uniform", "n": 1}
    page.get_by_role("button", name="Measure properly").click()
    assert saved(page, "measures") == 1
    page.evaluate("cleanup()")
    assert page.evaluate("model.listeners()") == 0
    assert page.locator("#el").inner_html() == ""


@pytest.fixture
def dial(toy):
    from lwlab.widgets import steer

    model = toy("llama")
    made = steer(model, [1.0] * model.d_model, 0, "the cat sat", tokens=4, limit=8)
    assert made.wait(60)
    yield made
    made.close()


def test_steer_alone_sends_both_dials_and_the_prompt(alone, dial):
    page = alone(dial)
    page.get_by_role("slider", name="layer").focus()
    page.keyboard.press("End")
    page.get_by_role("slider", name="strength").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("window.saved.length > 0")
    assert saved(page, "layer") == dial.n_layers - 1
    assert saved(page, "strength") == pytest.approx(0.2)
    page.locator(".lw-prompt").fill("a dog")
    page.wait_for_function("window.saved.some(s => s.prompt === 'a dog')")
    page.evaluate("model.set('steered', '<b>x')")
    assert page.locator(".lw-steered .lw-text").inner_text() == "<b>x"
    page.evaluate("cleanup()")
    assert page.evaluate("model.listeners()") == 0
    assert page.locator("#el").inner_html() == ""


def test_ledger_alone_filters_and_opens_rows_by_keyboard(alone):
    from lwlab.widgets import ledger

    made = ledger()
    page = alone(made)
    page.locator(".lw-open").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert saved(page, "picked") == 1
    page.get_by_role("searchbox").fill("x")
    page.wait_for_function("window.saved.some(s => s.filters)")
    assert saved(page, "filters")["text"] == "x"
    page.evaluate("model.set('shown', [2])")
    assert page.locator("tbody tr:visible").count() == 1
    assert page.locator(".lw-count").inner_text() == f"1 of {len(made.rows)} claims"
    page.evaluate("cleanup()")
    assert page.evaluate("model.listeners()") == 0
    assert page.locator("#el").inner_html() == ""
