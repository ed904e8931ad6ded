"""The training monitor in a browser: buttons, knobs, growing lines, and a real run in the lab."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser

CELL = """
import lwlab as lw
from lwlab.dynamics import Run, addition, stream
monitor = lw.widgets.training(
    lambda fraction: stream(Run(addition(23, fraction)), 5000, every=10),
    {"Accuracy": ["train_accuracy", "test_accuracy"], "Purity": ["purity"]}, 5000,
    knobs={"fraction": [0.3, 0.75]}, values={"fraction": 0.75},
)
monitor
"""


def test_alone_it_draws_and_sends(watched):
    from labdriver import mount

    import lwlab as lw

    made = lw.widgets.training(
        lambda rate: iter([(i, {"loss": i / 4, "other": 0.5}) for i in range(5)]),
        {"Loss": ["loss", "other"]}, 4, knobs={"rate": [1, 2]},
    )  # fmt: skip
    made.order("start")
    assert made.wait(10)
    watched.forget()
    mount(watched.page, made)
    page = watched.page
    lines = page.locator(".lw-training polyline")
    assert lines.count() == 2
    assert lines.nth(0).get_attribute("points") == "0,100 25,75 50,50 75,25 100,0"
    assert page.locator(".lw-key span").all_inner_texts() == ["loss 1", "other 0.5"]
    page.get_by_label("rate").select_option("2")
    assert page.evaluate("window.saved.at(-1).values") == {"rate": 2}
    page.get_by_role("button", name="Start anew").click()
    assert page.evaluate("window.saved.at(-1).orders.do") == "start"
    assert page.get_by_role("button", name="Go on").is_disabled()
    assert page.get_by_role("button", name="Pause").is_disabled()
    page.evaluate("model.set('paused', true)")
    page.get_by_role("button", name="Go on").click()
    assert page.evaluate("window.saved.at(-1).orders.do") == "go on"
    page.evaluate("cleanup()")
    assert page.locator("#el").inner_html() == ""
    watched.assert_clean()
    made.close()


def test_a_real_training_starts_pauses_and_goes_on_in_jupyterlab(lab):
    from playwright.sync_api import expect

    page = lab.run("training.ipynb", CELL)
    root = page.locator(".lw-training")
    start, pause, on = (
        root.get_by_role("button", name=name) for name in ("Start anew", "Pause", "Go on")
    )
    key = root.locator(".lw-key span").first
    start.click()
    expect(key).to_have_text("train accuracy 1", timeout=60_000)
    pause.click()
    expect(on).to_be_enabled(timeout=10_000)
    held = root.locator("polyline").first.get_attribute("points")
    page.wait_for_timeout(600)
    assert root.locator("polyline").first.get_attribute("points") == held, "it stands still"
    lab.shoot("training_paused", root)
    on.click()
    expect(root.locator("polyline").first).not_to_have_attribute("points", held, timeout=20_000)
    grown = root.locator("polyline").first.get_attribute("points")
    assert grown.startswith(held), "it went on from where it was"
    pause.click()
    expect(on).to_be_enabled(timeout=10_000)
    root.get_by_label("fraction").select_option("0.3")
    start.click()
    expect(pause).to_be_enabled(timeout=10_000)
    pause.click()
    expect(on).to_be_enabled(timeout=10_000)
    expect(root.locator('[role="alert"]')).to_be_empty()
