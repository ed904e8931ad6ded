"""Serve JupyterLab on 127.0.0.1 and drive it in headless Chromium, watching every request."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import v4
from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb",
)  # fmt: skip
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # Autosave races a test that writes notebooks: a "File Changed" dialog would cover the page.
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def find_chromium() -> str | None:
    """Return the path of a Chromium to drive: $LWLAB_CHROMIUM, else one on the PATH."""
    asked = os.environ.get("LWLAB_CHROMIUM")
    return asked or next((p for p in map(shutil.which, BROWSERS) if p), None)


def shots_dir() -> Path:
    """Return the folder for screenshots: $LWLAB_SHOTS, else tests/browser/_shots."""
    folder = Path(os.environ.get("LWLAB_SHOTS") or Path(__file__).parent / "_shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def serve_lab(root: Path, home: Path) -> Iterator[str]:
    """Run JupyterLab over the folder `root`, with every setting of its own under `home`."""
    for name, value in SETTINGS.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    folders = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "run",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "ws",
        "IPYTHONDIR": "ipython",
    }  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(home / v) for k, v in folders.items()}}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}",
        "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
        "--ServerApp.password=", "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={root}", "--ServerApp.terminals_enabled=False",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    log = home / "lab.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
        try:
            base, start = f"http://127.0.0.1:{port}", time.monotonic()
            while not _answers(base):
                if server.poll() is not None or time.monotonic() - start > 90:
                    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield base
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _answers(base: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base}/api/status", timeout=1):
            return True
    except OSError:
        return False


class Watched:
    """A page and what happened on it: requests that left the machine, errors of scripts."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.outside: list[str] = []
        self.errors: list[str] = []
        page.on("request", self._request)
        page.on("pageerror", lambda e: self.errors.append(str(e)[:400]))

    def _request(self, request: Any) -> None:
        if not request.url.startswith(
            ("http://127.0.0.1", "ws://127.0.0.1", "file:", "data:", "blob:", "about:")
        ):
            self.outside.append(request.url)

    def assert_clean(self) -> None:
        """Fail if anything was asked of another machine, or a script failed."""
        assert self.outside == [], f"requests left the machine: {self.outside}"
        assert self.errors == [], f"errors in the page: {self.errors}"

    def forget(self) -> None:
        """Forget what happened so far."""
        self.outside.clear()
        self.errors.clear()


@contextlib.contextmanager
def open_browser(executable: str, size: tuple[int, int] = (1100, 1400)) -> Iterator[Watched]:
    """Start Chromium and yield a watched page of `size` pixels, every other host unreachable."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=executable, headless=True, args=[
            *ARGS, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])  # fmt: skip
        page = browser.new_page(
            viewport={"width": size[0], "height": size[1]}, device_scale_factor=1.5
        )
        page.set_default_timeout(30_000)
        try:
            yield Watched(page)
        finally:
            browser.close()


class LabDriver:
    """Open notebooks in JupyterLab's single-document mode, run them and photograph them."""

    def __init__(self, base: str, root: Path, watched: Watched) -> None:
        self.base, self.root, self.watched, self.page = base, root, watched, watched.page

    def write(self, name: str, *cells: str | nbformat.NotebookNode) -> None:
        """Write a notebook of code cells (source text, or cells that already have outputs)."""
        made = [v4.new_code_cell(c) if isinstance(c, str) else c for c in cells]
        book = v4.new_notebook(cells=made, metadata={"kernelspec": KERNEL})
        nbformat.write(book, self.root / name)

    def open(self, name: str) -> Page:
        """Open a notebook and wait until its cells and its kernel are there."""
        self.watched.forget()
        self.page.goto(f"{self.base}/doc/tree/{name}?reset", wait_until="domcontentloaded")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        self._wait("kernel => kernel && kernel.status === 'idle'", 90)
        return self.page

    def run_all(self, timeout: float = 180) -> Page:
        """Run all cells and wait for the last; fail with the traceback if a cell failed."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self._wait(
            """(kernel, cells) => kernel && kernel.status === 'idle' && cells.every(c =>
               c.type !== 'code' || !c.sharedModel.source.trim() || c.executionCount != null)""",
            timeout,
        )
        failed = self.page.locator('[data-mime-type="application/vnd.jupyter.stderr"] pre').all()
        errors = [t for e in failed if "Traceback" in (t := e.inner_text())]
        assert not errors, "\n".join(errors)
        return self.page

    def run(self, name: str, *cells: str) -> Page:
        """Write a notebook of `cells`, open it and run it."""
        self.write(name, *cells)
        self.open(name)
        return self.run_all()

    def _wait(self, test: str, seconds: float) -> None:
        self.page.wait_for_function(
            f"""() => {{
                const doc = window.jupyterapp?.shell.currentWidget;
                if (!doc?.content?.model) return false;
                return ({test})(doc.sessionContext.session?.kernel, [...doc.content.model.cells]);
            }}""",
            timeout=seconds * 1000,
        )

    def theme(self, name: str) -> None:
        """Switch JupyterLab's theme: "JupyterLab Light" or "JupyterLab Dark"."""
        light = str("Dark" not in name).lower()
        self.page.evaluate(
            "t => window.jupyterapp.commands.execute('apputils:change-theme', { theme: t })", name
        )
        self.page.wait_for_selector(
            f"body[data-jp-theme-light='{light}']", state="attached", timeout=20_000
        )
        self.page.wait_for_timeout(700)  # the theme's style sheet and one redraw

    def shoot(self, name: str, element: Any = None) -> Path:
        """Save a screenshot of the page or of one element, and return its path."""
        path = shots_dir() / f"{name}.png"
        (element or self.page).screenshot(path=str(path))
        return path

    def close(self) -> None:
        """Leave the notebook and stop every kernel."""
        self.page.goto("about:blank")
        with urllib.request.urlopen(f"{self.base}/api/kernels") as answer:
            kernels = json.load(answer)
        for kernel in kernels:
            url = f"{self.base}/api/kernels/{kernel['id']}"
            urllib.request.urlopen(urllib.request.Request(url, method="DELETE")).close()


FAKE_MODEL = """({state, buffers}) => {
  for (const [k, v] of Object.entries(buffers)) {
    const bytes = Uint8Array.from(atob(v), c => c.charCodeAt(0));
    const shifted = new Uint8Array(bytes.length + 1);      // an offset no float may start at
    shifted.set(bytes, 1);
    state[k] = new DataView(shifted.buffer, 1);
  }
  const heard = {}, pending = {};
  window.saved = [];
  window.model = {
    get: k => state[k],
    set: (k, v) => {
      state[k] = pending[k] = v;
      (heard[`change:${k}`] ?? []).forEach(f => f());
    },
    save_changes: () => {
      window.saved.push({...pending});
      for (const k in pending) delete pending[k];
    },
    on: (e, f) => { (heard[e] ??= []).push(f); },
    off: (e, f) => { heard[e] = (heard[e] ?? []).filter(g => g !== f); },
    send: () => {},
    listeners: () => Object.values(heard).flat().length,
  };
}"""


def mount(page: Page, widget: Any) -> None:
    """Show a widget's front end alone: module and style sheet on an empty page, a fake model."""
    synced = {k: getattr(widget, k) for k in widget.keys if not k.startswith("_")}
    skip = {"layout", "tabbable", "tooltip"}
    state = {k: v for k, v in synced.items() if not isinstance(v, bytes) and k not in skip}
    buffers = {k: base64.b64encode(v).decode() for k, v in synced.items() if isinstance(v, bytes)}
    page.goto("about:blank")
    page.set_content(
        f"<!doctype html><html lang=en><title>t</title><style>{widget._css}</style>"
        "<body><main id=el style='width: 900px'></main></body></html>"
    )
    page.evaluate(FAKE_MODEL, {"state": state, "buffers": buffers})
    page.evaluate(
        """async source => {
            const url = URL.createObjectURL(new Blob([source], {type: 'text/javascript'}));
            const widget = (await import(url)).default;
            window.cleanup = await widget.render({model, el: document.getElementById('el')});
        }""",
        str(widget._esm),
    )


def listen(root: Any, selector: str) -> None:
    """Write down, in the page, every text that `selector` inside `root` shows from now on.

    What passes by in a few milliseconds is not seen by looking a few times a second.
    """
    root.evaluate(
        """(root, selector) => {
            root.heard = [];
            const note = () => root.heard.push(root.querySelector(selector)?.textContent);
            new MutationObserver(note).observe(root,
                { childList: true, characterData: true, subtree: true });
        }""",
        selector,
    )


def heard(root: Any) -> list[str]:
    """Return the texts that `listen` has written down, one a change, without repeats in a row."""
    texts: list[str] = root.evaluate("root => root.heard")
    return [t for i, t in enumerate(texts) if t and (i == 0 or t != texts[i - 1])]


def click_when(root: Any, selector: str, text: str, button: str) -> None:
    """Click `button` the moment that `selector` shows `text`; `root.clicked` is when it did."""
    root.evaluate(
        """(root, [selector, text, button]) => { root.clicked = new Promise((done) => {
            const look = new MutationObserver(() => {
                if (!root.querySelector(selector)?.textContent.includes(text)) return;
                look.disconnect();
                [...root.querySelectorAll("button")].find((b) => b.textContent === button).click();
                done();
            });
            look.observe(root, { childList: true, characterData: true, subtree: true });
        }); }""",
        [selector, text, button],
    )
