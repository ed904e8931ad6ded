"""Model folders on disk: what they hold, whether they are whole, and their checksum."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwlab import paths
from lwlab.errors import BadInput
from lwlab.models.fetch import sha256_file

MANIFEST = "lwlab.json"
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
SHORT = 16
log = logging.getLogger(__name__)


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write `lwlab.json` into `folder`: `facts`, and the size and SHA-256 of every file there."""
    files = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    hashes = {name: str(about["sha256"]) for name, about in files.items() if _is_weights(name)}
    manifest = {"format": 1, **facts, "checksum": _combine(hashes), "files": files}
    paths.write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest in `folder`, or None where there is none that can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "files" in found else None


def damage(folder: Path, *, full: bool = False) -> str:
    """Say what is wrong with a folder that has a manifest; "" when nothing is.

    Sizes are always compared; with `full` every file is read and its SHA-256 compared too.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or unreadable"
    for name, about in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != about["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {about['size']}"
        if full and sha256_file(path) != about["sha256"]:
            return f"the contents of {name} have changed"
    return ""


def checksum(folder: Path) -> str:
    """Return 16 hexadecimal digits of SHA-256 over the weights in `folder` (or the file `folder`).

    From the manifest where there is one. Else the files are read, once: the answer is kept in the
    cache under their paths, sizes and times of change.
    """
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is not None:
        return str(manifest["checksum"])
    files = weights(folder) if folder.is_dir() else [folder]
    if not files:
        raise BadInput(f"{folder} holds no weights ({', '.join(WEIGHTS)}), so it has no checksum")
    stamps = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:32]
    memo = paths.cache_dir() / "checksums" / key
    try:
        return memo.read_text()
    except OSError:
        pass
    value = _combine({path.name: sha256_file(path) for path in files})
    try:
        paths.write_atomic(memo, value)
    except OSError as error:  # a cache that cannot be written only costs time
        log.debug("checksum not kept: %s", error)
    return value


def weights(folder: Path) -> list[Path]:
    """Return the weights files of a folder: its safetensors, else those in other formats."""
    found = sorted(p for p in folder.iterdir() if p.is_file() and _is_weights(p.name))
    return [p for p in found if p.suffix == ".safetensors"] or found


def missing_shards(folder: Path) -> list[str]:
    """Return the files that a sharded model's index names and the folder lacks."""
    lacking: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        shards: Mapping[str, str] = json.loads(index.read_text()).get("weight_map", {})
        lacking |= {name for name in shards.values() if not (folder / name).exists()}
    return sorted(lacking)


def _is_weights(name: str) -> bool:
    return name.endswith(WEIGHTS)


def _combine(hashes: Mapping[str, str]) -> str:
    lines = "".join(f"{name}:{value}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:SHORT]
