"""Gather executed notebooks, execute the stale ones, and let Sphinx make pages of them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwlab import __version__
from lwlab.errors import BadInput, RunError
from lwlab.gallery.links import broken
from lwlab.gallery.pages import Page, write_sources
from lwlab.paths import publish_dir
from lwlab.runs import registry

_STATIC = Path(__file__).parent / "static"
_MARK = ".lwlab-gallery"  # so that a rebuild replaces nothing else
_NEEDS = ("sphinx", "myst_nb", "furo")


@dataclass(frozen=True)
class Gallery:
    """What was built: the front page, the notebooks shown, and those that were executed for it."""

    index: Path
    pages: tuple[Page, ...]
    executed: tuple[str, ...]


def build(
    out: Path | None = None,
    runs: Iterable[Path] = (),
    *,
    execute: bool = True,
    progress: Callable[[str], None] = lambda _text: None,
) -> Gallery:
    """Build the site into `out` (by default `./lwlab-gallery`), replacing an earlier one.

    Each technique's page is its committed notebook. A notebook whose source changed since is
    executed first (into `./lwlab-runs`), unless `execute` is False: then its page says that it is
    stale. Claims measured on other models are taken from executed notebooks under `runs` (by
    default `./lwlab-runs`, where there is one).

    Raises
    ------
    BadInput
        Before anything is executed: Sphinx, MyST-NB or the theme is missing, a folder of `runs`
        does not exist, or `out` holds something that is not a gallery.
    RunError
        If a stale notebook fails when executed, Sphinx fails, or a page links to what is not there.
        An earlier site is then left as it was.
    """
    missing = [n for n in _NEEDS if importlib.util.find_spec(n) is None]
    if missing:
        raise BadInput(
            f"the gallery needs {', '.join(missing)}: python -m pip install 'lwlab[gallery]'"
        )
    out = (out or Path.cwd() / "lwlab-gallery").resolve()
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / _MARK).is_file())):
        raise BadInput(f"{out} exists and is not a gallery; name another folder with --out.")
    folders = [Path(p) for p in runs]
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(f"there is no folder {folder}.")
    here = Path.cwd() / "lwlab-runs"
    executed = _refresh(progress) if execute else {}
    if not folders and here.is_dir():
        folders = [here]
    with tempfile.TemporaryDirectory() as tmp, publish_dir(out) as html:
        source = Path(tmp) / "source"
        pages = write_sources(source, folders, executed)
        progress(f"{len(pages)} pages")
        _sphinx(source, html, Path(tmp) / "doctrees")
        dead = broken(html)
        if dead:
            raise RunError("the gallery has dead links: " + "; ".join(dead[:10]))
        (html / _MARK).write_text(f"{__version__}\n")
    return Gallery(out / "index.html", tuple(pages), tuple(executed))


def _refresh(progress: Callable[[str], None]) -> dict[str, Path]:
    """Execute the techniques whose committed notebook is older than its source."""
    from lwlab import notebook
    from lwlab.runs import execute

    done = {}
    for t in registry.techniques():
        if notebook.is_stale(t.source):
            progress(f"executing {t.header.id}")
            done[t.header.id] = execute(t.header.id).notebook
    return done


def _sphinx(source: Path, html: Path, doctrees: Path) -> None:
    settings: dict[str, Any] = {
        "project": "lwlab", "author": "The lwlab authors", "release": __version__,
        "extensions": ["myst_nb", "lwlab.gallery.equations"],
        "nb_execution_mode": "off", "nb_merge_streams": True,
        "nb_mime_priority_overrides": [("html", "image/png", 0), ("html", "text/html", 1)],
        "myst_enable_extensions": ["dollarmath", "amsmath", "html_image", "colon_fence"],
        "html_theme": "furo", "html_title": "lwlab", "html_static_path": [str(_STATIC)],
        "html_css_files": ["gallery.css"], "html_copy_source": False, "html_show_sphinx": False,
        "html_math_renderer": "mathml",
        # headings of notebooks start where their authors like; dead links are found on the pages
        "suppress_warnings": ["myst.header", "myst.xref_missing", "mystnb.unknown_mime_type"],
    }  # fmt: skip
    conf = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
    (source / "conf.py").write_text(conf, encoding="utf-8")
    # A process of its own: Sphinx and docutils keep what an extension registers for good.
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going"]
    done = subprocess.run(
        [*command, "-d", str(doctrees), str(source), str(html)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RunError(f"Sphinx could not make the gallery: {done.stderr.strip()[-2000:]}")
