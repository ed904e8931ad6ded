"""One JupyterLab and one Chromium for all browser tests; skipped where there is no browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from labdriver import LabDriver, Watched


def _missing(what: str) -> None:
    """Skip on a user's machine, fail in CI: there the browser belongs to the test."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


# Package scope, not session: while Playwright runs, asyncio.run() fails in this thread, and other
# packages' tests execute notebooks with it.
@pytest.fixture(scope="package")
def watched() -> Iterator[Watched]:
    """A page in headless Chromium that records what leaves the machine."""
    try:
        from labdriver import find_chromium, open_browser
    except ModuleNotFoundError as e:
        _missing(f"browser tests need {e.name}: pip install 'lwlab[test]'")
    path = find_chromium()
    if path is None:
        _missing(
            "browser tests need Chromium: install it (e.g. apt-get install chromium) "
            "or name one in LWLAB_CHROMIUM"
        )
    with open_browser(str(path)) as page:
        yield page


@pytest.fixture(scope="package")
def _server(
    watched: Watched, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, object]]:
    from labdriver import serve_lab

    root, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    with serve_lab(root, home) as base:
        yield base, root


@pytest.fixture
def lab(_server: tuple[str, object], watched: Watched) -> Iterator[LabDriver]:
    """JupyterLab, driven; each test ends with no request outside and no script error."""
    from labdriver import LabDriver

    driver = LabDriver(_server[0], _server[1], watched)
    yield driver
    found = list(watched.outside), list(watched.errors)
    driver.close()
    assert found == ([], []), f"requests outside, script errors: {found}"
