"""The map answers to mouse and keyboard: in JupyterLab with a kernel, and its module alone."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

pytestmark = pytest.mark.browser

MAKE = """
import numpy as np, xarray as xr
from lwlab.widgets import HeatMap
rng = np.random.default_rng(0)
exact = np.exp(-((np.arange(30)[:, None] - 14) / 5) ** 2) * rng.normal(0.6, 0.4, 14)
result = xr.DataArray(
    np.stack([exact, 0.5 * exact + 0.1 * rng.standard_normal((30, 14)), 0.9 * exact]),
    dims=("estimate", "layer", "position"), name="effect",
    coords={"estimate": ["exact", "AtP", "RelP"], "layer": np.arange(30),
            "token_str": ("position", ["When", " Mary", " and", " John", " went", " to", " the",
                                       " store", ",", " John", " gave", " a", " drink", " to"])},
    attrs={"long_name": "recovered logit difference", "model": "smollm2-135m", "task": "ioi"})
result[:, 3, 2] = np.nan
hm = HeatMap.from_result(result)
"""


def result(rows: int = 4, columns: int = 5) -> xr.DataArray:
    """A small map whose value at (row, column) is 10 row + column, and its negative beside it."""
    values = 10.0 * np.arange(rows)[:, None] + np.arange(columns)
    return xr.DataArray(
        np.stack([values, -values]),
        dims=("estimate", "layer", "position"),
        coords={
            "estimate": ["up", "down"],
            "layer": np.arange(rows),
            "position": np.arange(columns),
            "token_str": ("position", [f" t{j}" for j in range(columns)]),
        },
        name="score",
    )


def cell_at(page, row: int, column: int, rows: int, columns: int) -> dict[str, float]:
    """Return where in the canvas a cell lies; layers rise from the bottom."""
    box = page.locator(".lw-over").bounding_box()
    return {
        "x": (column + 0.5) * box["width"] / columns,
        "y": (rows - row - 0.5) * box["height"] / rows,
    }


def test_click_and_keyboard_reach_python_and_show_its_answer(lab):
    page = lab.run(
        "answer.ipynb",
        MAKE + "hm.on_pick(lambda p: f\"python saw layer {p['layer']}, position "
        "{p['position']}, {p.map} {p.value:.3f}\")\nhm",
        "print('value', *(f'{v:.3f}' for v in result.values[[0, 2], [20, 21], [4, 4]]))",
    )
    from playwright.sync_api import expect

    printed = page.locator('[data-mime-type="application/vnd.jupyter.stdout"] pre').inner_text()
    exact, relp = printed.split()[1:]
    over, answer = page.locator(".lw-heatmap .lw-over"), page.locator(".lw-heatmap .lw-answer")
    over.hover(position=cell_at(page, 20, 4, 30, 14))
    expect(page.locator(".lw-readout")).to_contain_text("Layer 20, Position 4: went — exact")
    over.click(position=cell_at(page, 20, 4, 30, 14))
    expect(answer).to_have_text(f"python saw layer 20, position 4, exact {exact}")
    page.get_by_role("radio", name="RelP").check(force=True)
    over.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(answer).to_have_text(f"python saw layer 21, position 4, RelP {relp}")
    lab.shoot("heatmap_light", page.locator(".lw-heatmap"))
    try:
        lab.theme("JupyterLab Dark")
        lab.shoot("heatmap_dark", page.locator(".lw-heatmap"))
    finally:
        lab.theme("JupyterLab Light")


def test_a_failing_callback_is_seen_in_the_widget_and_the_next_click_recovers(lab):
    page = lab.run(
        "failing.ipynb",
        MAKE + "hm.on_pick(lambda p: f'reciprocal {1 / (p.row - 3):.2f}')\nhm",
    )
    from playwright.sync_api import expect

    over, alert = page.locator(".lw-over"), page.locator('.lw-heatmap [role="alert"]')
    over.click(position=cell_at(page, 3, 6, 30, 14))
    expect(alert).to_have_text("ZeroDivisionError: division by zero")
    lab.shoot("heatmap_error", page.locator(".lw-heatmap"))
    over.click(position=cell_at(page, 5, 6, 30, 14))
    expect(page.locator(".lw-answer")).to_have_text("reciprocal 0.50")
    expect(alert).to_be_empty()


def test_toggles_recolour_the_map_on_its_own_scale(lab):
    """The composite of a notebook: ipywidgets toggles drive `update`, and errors stay visible."""
    page = lab.run(
        "toggles.ipynb",
        MAKE
        + """
import ipywidgets as w
half = w.ToggleButton(description="Half rule")
def redraw(change):
    if change["new"]:
        hm.update(result * 0.5)
    else:
        raise ValueError("no way back")
half.observe(lambda change: hm.guard(redraw, change), "value")
w.VBox([half, hm])
""",
    )
    from playwright.sync_api import expect

    page.locator(".lw-over").hover(position=cell_at(page, 10, 1, 30, 14))
    before = page.locator(".lw-readout b").inner_text()
    page.get_by_role("button", name="Half rule").click()
    page.locator(".lw-over").hover(position=cell_at(page, 10, 1, 30, 14))
    expect(page.locator(".lw-readout b")).not_to_have_text(before)
    old, new = (float(t.split()[-1].replace("−", "-")) for t in
                (before, page.locator(".lw-readout b").inner_text()))  # fmt: skip
    assert new == pytest.approx(old / 2, rel=0.02)
    page.get_by_role("button", name="Half rule").click()
    expect(page.locator('.lw-heatmap [role="alert"]')).to_have_text("ValueError: no way back")


@pytest.fixture
def alone(watched):
    """The widget's module on an empty page, with a fake model."""
    from labdriver import mount

    from lwlab.widgets import HeatMap

    def show(**options):
        widget = HeatMap(result(), **options)
        watched.forget()
        mount(watched.page, widget)
        return watched.page

    yield show
    watched.assert_clean()


def test_module_alone_picks_by_keyboard_and_mouse(alone):
    page = alone()
    page.locator(".lw-over").focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    assert page.evaluate("saved") == [{"picked": {"row": 2, "column": 1, "n": 1}}]
    page.locator(".lw-over").click(position=cell_at(page, 3, 4, 4, 5))
    assert page.evaluate("saved.at(-1)") == {"picked": {"row": 3, "column": 4, "n": 2}}
    page.keyboard.press("Home")
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowDown")  # the edge holds
    assert page.locator(".lw-readout").inner_text() == "Layer 0, Position 0: t0 — up 0 (down 0)"


def test_module_alone_switches_maps_and_reads_every_one(alone):
    page = alone()
    page.get_by_role("radio", name="down").check(force=True)
    assert page.evaluate("saved") == [{"shown": 1}]
    page.locator(".lw-over").hover(position=cell_at(page, 2, 3, 4, 5))
    assert page.locator(".lw-readout").inner_text() == "Layer 2, Position 3: t3 — down −23 (up 23)"


def test_module_alone_paints_the_colours_of_the_palette(alone):
    from lwlab.charts.palette import DIVERGING

    page = alone()
    pixel = """([x, y]) => {
        const c = document.querySelector('.lw-cells'), r = window.devicePixelRatio;
        const d = c.getContext('2d').getImageData(Math.round(x * r), Math.round(y * r), 1, 1).data;
        return '#' + [...d.slice(0, 3)].map(v => v.toString(16).padStart(2, '0')).join('');
    }"""

    def colour(row: int, column: int) -> str:
        at = cell_at(page, row, column, 4, 5)
        return page.evaluate(pixel, [at["x"], at["y"]])

    assert colour(3, 4) == DIVERGING[-1]  # the largest value, +34 on a scale of (-34, 34)
    zero = [int(colour(0, 0)[i : i + 2], 16) for i in (1, 3, 5)]
    assert max(abs(v - 0xF7) for v in zero) <= 2
    page.evaluate("model.set('shown', 1)")
    page.wait_for_function("document.querySelector('.lw-heatmap').dataset.rev >= 1")
    page.wait_for_timeout(50)
    assert colour(3, 4) == DIVERGING[0]


def test_module_alone_says_it_is_working_until_python_has_answered(alone):
    page = alone()
    page.evaluate("model.set('listening', true)")
    page.locator(".lw-over").click(position=cell_at(page, 1, 1, 4, 5))
    assert page.locator(".lw-answer").inner_text() == "working…"
    assert page.locator(".lw-answer").get_attribute("aria-busy") == "true"
    page.evaluate("model.set('answer', 'done'); model.set('handled', 1)")
    assert page.locator(".lw-answer").inner_text() == "done"


def test_module_alone_leaves_nothing_behind(alone):
    page = alone()
    assert page.evaluate("model.listeners()") > 0
    page.evaluate("cleanup()")
    assert page.evaluate("model.listeners()") == 0
    assert page.locator("#el").inner_html() == ""


def test_redraw_of_a_30_by_128_map_is_quick(watched):
    from labdriver import mount

    from lwlab.widgets import HeatMap

    mount(watched.page, HeatMap(result(30, 128)))
    times = watched.page.evaluate(
        """async () => {
            const root = document.querySelector('.lw-heatmap'), times = [];
            for (let k = 0; k < 15; k++) {
                const rev = root.dataset.rev, start = performance.now();
                model.set('shown', 1 - model.get('shown'));
                while (root.dataset.rev === rev) await new Promise(requestAnimationFrame);
                times.push(performance.now() - start);
            }
            return times.sort((a, b) => a - b);
        }"""
    )
    print(f"redraw ms: median {times[7]:.0f}, largest {times[-1]:.0f}")
    assert times[7] < 1000  # about 16 ms, and tests may share the machine
