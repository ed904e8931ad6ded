"""Whether every link of a site leads somewhere, as far as can be told without a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SHOWN = {("a", "href"), ("link", "href"), ("img", "src"), ("script", "src")}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif (tag, name) in _SHOWN and value:
                self.links.append((tag, value))


def broken(site: Path) -> list[str]:
    """List, as `page: link`, what the pages under `site` link to that is not there.

    Links inside the site must name a file, and an anchor of it where they name one. What a page
    needs to be shown (images, scripts, styles) must lie in the site: from the network it would be
    missing offline. Links of text to other sites must be well-formed `https`; they are not fetched.
    """
    pages = {p.resolve(): _read(p) for p in sorted(site.rglob("*.html"))}
    dead = []
    for page, content in pages.items():
        for tag, link in content.links:
            if _is_dead(site.resolve(), page, tag, link, pages):
                dead.append(f"{page.relative_to(site.resolve())}: {link[:120]}")
    return dead


def _read(page: Path) -> _Reader:
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def _is_dead(site: Path, page: Path, tag: str, link: str, pages: dict[Path, _Reader]) -> bool:
    parts = urlsplit(link)
    if parts.scheme in ("data", "mailto"):
        return False
    if parts.scheme or parts.netloc:
        good = parts.scheme in ("http", "https") and re.fullmatch(r"[\w.-]+\.\w+", parts.netloc)
        return tag != "a" or not good
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_relative_to(site) or not target.is_file():
        return True
    anchor = unquote(parts.fragment)
    return bool(anchor) and target in pages and anchor not in pages[target].anchors
