"""Every kind of chart is drawn by JupyterLab itself: offline, and in a notebook nobody trusts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
CHARTS = Path(__file__).parents[1] / "charts"
SETUP = f"import sys; sys.path.insert(0, {str(CHARTS)!r})\nfrom gallery import gallery"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.syspath_prepend(str(CHARTS))
    from gallery import gallery

    return list(gallery())


def _drawn(lab, count: int) -> list[str]:
    """Wait for `count` drawings; return the marks found in each, e.g. "rect path"."""
    page = lab.page
    page.wait_for_function(
        f"() => document.querySelectorAll('.vega-embed svg').length >= {count}", timeout=60_000
    )
    return page.evaluate(
        """() => [...document.querySelectorAll('.vega-embed')].map(e => {
            const groups = [...e.querySelectorAll('svg g[class*="mark-"]')];
            const kinds = ['rect', 'symbol', 'line', 'area'].filter(k => groups.some(g =>
                g.classList.contains(`mark-${k}`) && g.classList.contains('role-mark')
                && g.querySelector('path')?.getAttribute('d')));
            return kinds.join(' ');
        })"""
    )


EXPECTED = {
    "heatmap": "rect", "head": "rect", "profile": "symbol line", "scatter": "symbol",
    "heatmap_missing": "rect symbol", "heatmap_attention": "rect symbol",
    "profile_band_log": "symbol line area", "beside": "rect",
}  # fmt: skip


def _expected(name: str) -> str:
    return EXPECTED.get(name) or EXPECTED[name.split("_")[0]]


def _points_in_bands(page) -> list[list[bool]]:
    """For each interval band, say which points of its own colour lie inside it."""
    return page.evaluate(
        """() => {
            const all = mark => [...document.querySelectorAll(`.vega-embed .mark-${mark} path`)];
            const inside = (area, point) => {
                const m = area.getScreenCTM().inverse().multiply(point.getScreenCTM());
                return area.isPointInFill(new DOMPoint(m.e, m.f));
            };
            const alike = area => point =>
                point.closest('.vega-embed') === area.closest('.vega-embed')
                && point.closest('.role-mark')
                && point.getAttribute('fill') === area.getAttribute('fill');
            return all('area').map(a => all('symbol').filter(alike(a)).map(p => inside(a, p)));
        }"""
    )


def test_every_chart_is_drawn_offline(lab, names):
    page = lab.run("gallery.ipynb", SETUP, *(f"gallery()[{n!r}]()" for n in names))
    drawn = _drawn(lab, len(names))
    assert dict(zip(names, drawn, strict=True)) == {n: _expected(n) for n in names}
    bands = _points_in_bands(page)  # on a logarithm: Vega-Lite 5.6 is apt to stack it
    assert [len(band) for band in bands] == [30, 30]
    assert all(all(band[1:-1]) for band in bands)  # the ends lie on the band's own edge
    for name, box in zip(names, page.locator(".vega-embed").all(), strict=True):
        box.scroll_into_view_if_needed()
        lab.shoot(f"chart_{name}", box)


def test_a_saved_notebook_shows_its_charts_untrusted_and_stays_small(lab, names):
    from gallery import gallery
    from nbformat import v4

    from lwlab.charts._altair import render

    cells = [v4.new_code_cell(f"gallery()[{n!r}]()") for n in names]
    for cell, build in zip(cells, gallery().values(), strict=True):
        data, metadata = render(build().to_dict())
        cell.outputs = [v4.new_output("display_data", data=data, metadata=metadata)]
    lab.write("saved.ipynb", *cells)
    assert (lab.root / "saved.ipynb").stat().st_size < 1_000_000
    page = lab.open("saved.ipynb")
    trusted = page.evaluate(
        "() => [...jupyterapp.shell.currentWidget.content.model.cells].map(c => c.trusted)"
    )
    assert trusted == [False] * len(names)
    assert _drawn(lab, len(names)) == [_expected(n) for n in names]
    lab.shoot("charts_untrusted")
