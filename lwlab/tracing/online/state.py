"""What is known of a corpus so far: statistics by site and layer, which prompts are in, on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lwlab.errors import BadInput, LwlabError
from lwlab.paths import write_atomic
from lwlab.tracing.online.moments import Moments
from lwlab.tracing.online.sketch import Quantiles, bins
from lwlab.tracing.online.tops import Tops


@dataclass(frozen=True)
class Settings:
    """What two partial results must share to be joined."""

    model: str
    sites: tuple[str, ...]
    layers: tuple[int, ...]
    front: int
    quantile_error: float
    top: int
    context: int


class Unit:
    """Moments, quantiles and tops of one site at one layer; `shape` is that of its units."""

    def __init__(self, shape: tuple[int, ...], settings: Settings) -> None:
        self.shape = shape
        units = int(np.prod(shape))
        self.moments = Moments(units)
        self.quantiles = Quantiles(units, settings.quantile_error)
        self.tops = Tops(units, settings.top) if settings.top else None

    def add(self, rows: torch.Tensor, prompt: torch.Tensor, position: torch.Tensor) -> None:
        """Add rows [n, units] and the places they were read at."""
        self.moments.add(rows)
        self.quantiles.add(rows)
        if self.tops is not None:
            self.tops.add(rows, prompt, position)

    def merge(self, other: Unit) -> None:
        """Add what another part of the corpus gave."""
        self.moments.merge(other.moments)
        self.quantiles.merge(other.quantiles)
        if self.tops is not None and other.tops is not None:
            self.tops.merge(other.tops)


def bytes_of(units: int, settings: Settings) -> int:
    """What one site at one layer will take."""
    return units * (8 * 6 + 4 * (2 * bins(settings.quantile_error) + 1) + 8 * settings.top)


class Online:
    """Statistics of a corpus so far.

    `units[site, layer]`, `prompts` (the numbers of those that are in), `tokens` (positions counted)
    and `strings` (the token strings of the prompts that a top refers to). No activation is kept.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.units: dict[tuple[str, int | None], Unit] = {}
        self.prompts: set[int] = set()
        self.tokens = 0
        self.strings: dict[int, tuple[str, ...]] = {}

    def merge(self, other: Online) -> Online:
        """Add another part of the same corpus, in place; returns self.

        Raises BadInput when the settings differ or a prompt is in both.
        """
        mine, theirs = asdict(self.settings), asdict(other.settings)
        for name in mine:
            if mine[name] != theirs[name]:
                raise BadInput(f"these parts differ in {name}: {mine[name]!r} and {theirs[name]!r}")
        both = sorted(self.prompts & other.prompts)
        if both:
            raise BadInput(
                f"prompts {both[:5]} are in both parts: number parts apart with first=, so that "
                "nothing counts twice"
            )
        for key, unit in other.units.items():
            if key not in self.units:
                self.units[key] = Unit(unit.shape, self.settings)
            self.units[key].merge(unit)
        self.prompts |= other.prompts
        self.tokens += other.tokens
        self.strings |= other.strings
        self.prune()
        return self

    def prune(self) -> None:
        """Forget the strings of prompts that no top refers to any more."""
        kept: set[int] = set()
        for unit in self.units.values():
            if unit.tops is not None:
                kept |= set(unit.tops.results()[1].flatten().tolist())
        self.strings = {i: s for i, s in self.strings.items() if i in kept}

    def save(self, path: str | Path) -> Path:
        """Write everything to one file, atomically."""
        path = Path(path)
        arrays: dict[str, Any] = {}
        shapes = []
        for i, ((site, layer), unit) in enumerate(self.units.items()):
            shapes.append([site, layer, list(unit.shape), unit.moments.n])
            for field in Moments.FIELDS:
                arrays[f"{i}.{field}"] = getattr(unit.moments, field).numpy()
            arrays[f"{i}.counts"] = unit.quantiles.counts.numpy()
            if unit.tops is not None:
                arrays[f"{i}.keys"] = unit.tops.keys.numpy()
        about = {
            "lwlab": "online", "settings": asdict(self.settings), "units": shapes,
            "prompts": sorted(self.prompts), "tokens": self.tokens,
            "strings": {str(k): v for k, v in self.strings.items()},
        }  # fmt: skip
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomic(path, buffer.getvalue())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Online:
        """Read what `save` wrote. Raises BadInput when the file is none of these."""
        try:
            with np.load(Path(path)) as file:
                about = json.loads(file["about"].tobytes())
                arrays = {k: torch.from_numpy(file[k]) for k in file.files if k != "about"}
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"{path} is no saved corpus statistics: {error}") from None
        kept = about["settings"]
        tuples = {k: tuple(kept[k]) for k in ("sites", "layers")}
        self = cls(Settings(**(kept | tuples)))
        for i, (site, layer, shape, n) in enumerate(about["units"]):
            unit = Unit(tuple(shape), self.settings)
            unit.moments.n = unit.quantiles.n = n
            for field in Moments.FIELDS:
                setattr(unit.moments, field, arrays[f"{i}.{field}"])
            unit.quantiles.counts = arrays[f"{i}.counts"]
            if unit.tops is not None:
                unit.tops.keys = arrays[f"{i}.keys"]
            self.units[site, layer] = unit
        self.prompts, self.tokens = set(about["prompts"]), about["tokens"]
        self.strings = {int(k): tuple(v) for k, v in about["strings"].items()}
        return self


def add(
    state: Online, values: Mapping[tuple[str, int | None], torch.Tensor], keep: torch.Tensor,
    numbers: Iterable[int], strings: Iterable[tuple[str, ...]], position: torch.Tensor,
) -> None:  # fmt: skip
    """Add one batch: values [prompts, columns, ...] by site and layer, `keep` [prompts, columns].

    Raises LwlabError, and counts nothing of the batch, when a value is NaN or infinite.
    """
    for (site, layer), value in values.items():
        if not bool(torch.isfinite(value[keep.to(value.device)]).all()):
            at = site if layer is None else f"{site}.{layer}"
            raise LwlabError(f"{at} holds NaN or infinity: there are no statistics of that")
    number = torch.tensor(list(numbers))
    prompt = number[:, None].expand(keep.shape)[keep]
    for key, value in values.items():
        rows = value[keep.to(value.device)].cpu()
        if key not in state.units:
            state.units[key] = Unit(tuple(rows.shape[1:]), state.settings)
        state.units[key].add(rows.flatten(1), prompt, position[keep])
    state.prompts |= set(number.tolist())
    state.tokens += int(keep.sum())
    if state.settings.top:
        state.strings |= dict(zip(number.tolist(), strings))
        if len(state.strings) > 256:
            state.prune()
