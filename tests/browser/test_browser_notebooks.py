"""Real notebooks in a real JupyterLab: pictures without a run, instruments that run the model."""

from __future__ import annotations

import re
import shutil

import nbformat
import pytest

from lwlab.runs import registry

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RELP = """
import lwlab as lw
from lwlab.attribution import Pair, relp
from lwlab.attribution.panel import RulePanel
net = lw.load("smollm2-135m")
pair = Pair.of(net, lw.tasks.ioi(net, n=2))
maps = relp.study(net, pair, ["exact", "relp"])
panel = RulePanel(net, pair, maps, component="mlp_out")
panel
"""
DEPTH = """
import lwlab as lw
from lwlab.depth.explorer import SkipExplorer
net = lw.load("smollm2-135m")
text = "The capital of France is Paris, and that of Italy is Rome."
explorer = SkipExplorer(net, text, layers=[2, 20])
explorer
"""


def texts(page) -> str:
    return page.locator(".jp-OutputArea-output").all_inner_texts().__str__()


@pytest.mark.parametrize("source", registry.sources(), ids=lambda p: p.stem)
def test_a_fresh_clone_shows_every_picture_before_anything_is_run(lab, source):
    built = source.with_suffix(".ipynb")
    shutil.copy(built, lab.root / built.name)
    outputs = [o for c in nbformat.read(built, 4).cells for o in c.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert pictures
    page = lab.open(built.name)
    page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer')?.scrollTo(0, 1e6)")
    drawn = "img, .vega-embed svg, .vega-embed canvas"
    shown = page.locator(".jp-OutputArea-output").locator(drawn)
    shown.first.wait_for(timeout=20_000)
    lab.shoot(f"notebook_{source.stem}")


def test_a_rule_switch_runs_the_model_and_renews_the_numbers(lab):
    from playwright.sync_api import expect

    page = lab.run("relp_panel.ipynb", RELP, "panel.set(half=False); print(panel.numbers.value)")
    numbers = page.locator(".widget-html-content").filter(has_text="Pearson r").first
    half = page.get_by_role("button", name="Half", exact=True)
    without = numbers.inner_text()
    told = re.findall(r"<b>([\d.-]+)</b>", texts(page))
    assert told
    assert re.findall(r"-?\d\.\d{3}", without) == told, "what the panel shows is what Python has"
    half.click()
    expect(numbers).not_to_have_text(without, timeout=30_000)
    lab.shoot("relp_panel", page.locator(".jp-OutputArea-output").first)
    page.locator(".lw-over").first.click()
    output = page.locator(".jp-OutputArea-output").first
    expect(output).to_contain_text("of the effect", timeout=10_000)


def test_the_skip_explorer_runs_the_model_for_a_new_mode_and_t(lab):
    from playwright.sync_api import expect

    page = lab.run("depth_panel.ipynb", DEPTH)
    output = page.locator(".jp-OutputArea-output").first
    expect(output).to_contain_text("Skip, future")
    page.get_by_role("button", name="current", exact=True).click()
    expect(output).to_contain_text("Skip, current", timeout=30_000)
    page.get_by_role("button", name="future", exact=True).click()
    expect(output).to_contain_text("tokens before t =", timeout=30_000)
    before = int(re.search(r"tokens before t = (\d+)", output.inner_text()).group(1))
    slider = page.get_by_role("slider").first
    slider.focus()
    slider.press("ArrowRight")
    expect(output).to_contain_text(f"tokens before t = {before + 1}", timeout=30_000)
    lab.shoot("skip_explorer", output)


def test_the_door_says_what_is_wrong_with_a_model_name(lab):
    from playwright.sync_api import expect

    page = lab.run("door.ipynb", "from lwlab.runs import door\ndoor.launcher()")
    page.get_by_label("model").fill("smolm2-135m")
    page.get_by_label("model").press("Tab")
    page.locator(".jp-OutputArea-output").get_by_role("button", name="Run").click()
    expect(page.locator(".jp-OutputArea-output").first).to_contain_text(
        "did you mean 'smollm2-135m'", timeout=60_000
    )
