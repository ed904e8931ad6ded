"""The gallery in a browser, from a folder: its filters filter, nothing comes from a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from labdriver import Watched, shots_dir

from lwlab import catalog
from lwlab.gallery import build
from lwlab.runs import registry


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("site"), execute=False).index


def test_the_atlas_filters_by_family_model_verdict_cost_and_words(
    watched: Watched, site: Path
) -> None:
    page = watched.page
    watched.forget()
    page.goto(site.as_uri())
    rows = page.locator("#atlas tbody tr:visible")
    known = registry.techniques()
    every = len({t.header.id for t in known} | {p.id for p in catalog.papers()})
    assert rows.count() == every

    page.get_by_label("family", exact=False).first.select_option("depth")
    depth = {t.header.id for t in known if t.header.family == "depth"}
    depth |= {p.id for p in catalog.papers() if p.family == "depth"}
    assert rows.count() == len(depth)
    page.get_by_label("only papers with a notebook").check()
    assert rows.count() == sum(t.header.family == "depth" for t in known)
    page.get_by_label("family", exact=False).first.select_option("")
    assert rows.count() == len(known)
    page.locator("[data-filter=model]").select_option("smollm2-135m")
    page.locator("[data-filter=verdict]").select_option("not reproduced")
    page.locator("[data-filter=cost]").select_option("60")
    page.locator("[data-filter=text]").fill("relevance patching")
    assert rows.locator("td:first-child").all_inner_texts() == ["relp"]
    assert page.locator("#atlas .count").inner_text().startswith("1 of ")
    page.screenshot(path=str(shots_dir() / "gallery-atlas.png"))

    rows.locator("a").first.click()
    page.wait_for_url("**/attribution/relp.html")
    assert page.locator("math").count() > 0
    assert page.locator("#claims-by-model table tr").count() > 10
    page.locator("#claims-by-model").scroll_into_view_if_needed()
    page.screenshot(path=str(shots_dir() / "gallery-relp.png"))
    watched.assert_clean()
