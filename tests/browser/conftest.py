"""One JupyterLab and one Chromium for all browser tests; skipped where there is no browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from labdriver import LabDriver, Watched


def _missing(what: str) -> None:
    """Skip on a user's machine, fail in CI: there the browser belongs to the test."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium."""
    try:
        from labdriver import find_chromium
    except ModuleNotFoundError as e:
        _missing(f"browser tests need {e.name}: pip install 'lwlab[test]'")
    path = find_chromium()
    if path is None:
        _missing(
            "browser tests need Chromium: install it (e.g. apt-get install chromium) "
            "or name one in LWLAB_CHROMIUM"
        )
    return str(path)


# One browser a module, not a session: while Playwright runs, asyncio.run() fails in this thread,
# and tests elsewhere execute notebooks with it.
@pytest.fixture(scope="module")
def watched(chromium: str) -> Iterator[Watched]:
    """A page in headless Chromium that records what leaves the machine."""
    from labdriver import open_browser

    with open_browser(chromium) as page:
        yield page


@pytest.fixture(scope="session")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a JupyterLab and the folder it serves."""
    from labdriver import serve_lab

    root, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    with serve_lab(root, home) as base:
        yield base, root


@pytest.fixture
def lab(server: tuple[str, Path], watched: Watched) -> Iterator[LabDriver]:
    """JupyterLab, driven; each test ends with no request outside and no script error."""
    from labdriver import LabDriver

    driver = LabDriver(*server, watched)
    yield driver
    found = list(watched.outside), list(watched.errors)
    driver.close()
    assert found == ([], []), f"requests outside, script errors: {found}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep browser tests in one process: one JupyterLab, and not two browsers on two cores."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.xdist_group("browser"))
