"""Read titles, axes and token labels off a labelled result; shared by charts and widgets."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lwlab.errors import BadInput, UnknownName, suggest

if TYPE_CHECKING:
    import xarray as xr

_VISIBLE = {" ": "␣", "\n": "↵", "\r": "⏎", "\t": "⇥"}
_LONGEST_TOKEN = 14
_FIXED = ("layer", "position", "head", "site", "component", "prompt")  # worth a subtitle if scalar


def show_token(token: str, before: str = "", longest: int = _LONGEST_TOKEN) -> str:
    """Return `token`, which follows the token `before`, as it can be printed on an axis.

    A word's own leading space is left out, and a piece that continues the word before it is marked
    as BERT marks it: " Wash", "ington" print as "Wash", "##ington". All other white space becomes a
    visible sign, byte-level and SentencePiece marks are read as spaces, control characters become
    escapes, an empty token "∅", and long tokens end in "…".
    """
    text, before = _plain(token), _plain(before)
    joins = text[:1].isalnum() and before[-1:].isalnum()
    body = text[1:] if text[:1] == " " and text.strip() else text
    body = "".join(_VISIBLE.get(c, c if c.isprintable() else repr(c)[1:-1]) for c in body)
    if len(body) > longest:
        body = body[: longest - 1] + "…"
    return ("##" if joins else "") + (body or "∅")


def _plain(token: str) -> str:
    return token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")


def label_tokens(tokens: Sequence[str], positions: Sequence[Any]) -> list[str]:
    """Return "3: the" for token " the" at position 3: repeated tokens stay distinct."""
    before = ["", *tokens][: len(tokens)]
    triples = zip(positions, before, tokens, strict=True)
    return [f"{p}: {show_token(t, before=b)}" for p, b, t in triples]


@dataclass(frozen=True)
class Axis:
    """One dimension as a chart shows it: JSON-able `values`, printed `labels`, a `title`."""

    dim: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]
    title: str
    tokens: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """The title without what the labels add."""
        return self.title.removesuffix(": token")

    def __len__(self) -> int:
        return len(self.values)


def axis_of(da: xr.DataArray, dim: str, tokens: Sequence[str] | None = None) -> Axis:
    """Describe dimension `dim` of `da`; `tokens` overrides the token strings the result carries."""
    size = da.sizes[dim]
    raw = da.coords[dim].values if dim in da.coords else np.arange(size)
    values = tuple(v.item() if isinstance(v, np.generic) else v for v in raw)
    if not all(isinstance(v, int | float | str | bool) for v in values):
        values = tuple(str(v) for v in values)
    if len(set(values)) < size:
        raise BadInput(f"coordinate {dim!r} repeats a value; give each {dim} its own.")
    if tokens is not None and len(tokens) != size:
        raise BadInput(
            f"{len(tokens)} tokens given for {size} values of {dim!r}; one is needed each."
        )
    if tokens is None:
        tokens = _tokens_along(da, dim)
    title = _with_units(dim, da.coords[dim].attrs if dim in da.coords else {})
    if tokens is None:
        return Axis(dim, values, tuple(str(v) for v in values), title)
    kept = tuple(str(t) for t in tokens)
    return Axis(dim, values, tuple(label_tokens(kept, values)), f"{title}: token", kept)


def lookup(table: Mapping[str, str], field: str = "value") -> str:
    """Return a Vega expression that reads `table` at `datum.field`."""
    return f"({json.dumps(dict(table))})[datum.{field}]"


def add_tokens(chart: Any, axes: Sequence[Axis]) -> Any:
    """Give each row `<dim>_token`, the exact token in quotes, without storing it in each row."""
    for a in axes:
        if a.tokens is not None:
            table = {str(v): json.dumps(t, ensure_ascii=False) for v, t in zip(a.values, a.tokens)}
            chart = chart.transform_calculate(**{f"{a.dim}_token": lookup(table, a.dim)})
    return chart


def _tokens_along(da: xr.DataArray, dim: str) -> list[str] | None:
    """Find one string for each value of `dim`, also where equal prompts stand side by side.

    An attention pattern's queries are the same tokens as its keys, which are named by position.
    """
    like = [dim]
    if dim in ("query", "key") and da.sizes.get("position") == da.sizes[dim]:
        like.append("position")
    for along, name in ((a, n) for a in like for n in (f"{a}_token_str", f"{a}_str", "token_str")):
        if name not in da.coords or along not in da.coords[name].dims:
            continue
        found = da.coords[name].transpose(along, ...).values.reshape(da.sizes[dim], -1)
        if (found == found[:, :1]).all():
            return [str(t) for t in found[:, 0]]
    return None


def _words(name: Hashable) -> str:
    from lwlab.models.sites import SITES

    text = str(name).strip()
    if text.split(" ")[0] in SITES:  # the field's own terms stay as they are: mlp_out
        return text
    text = text.replace("_", " ")
    first = text.split(" ")[0]
    # "effect" becomes "Effect"; "log10(rank)", "kl" and "r" are notation and stay.
    return text[:1].upper() + text[1:] if first.isalpha() and len(first) > 2 else text


def _with_units(text: str, attrs: Mapping[Any, Any]) -> str:
    text = _words(attrs.get("long_name") or text)
    units = attrs.get("units") or attrs.get("unit")
    return f"{text} ({units})" if units else text


def value_title(da: xr.DataArray) -> str:
    """Return what the numbers are, with units: `long_name` or the array's name."""
    return _with_units(str(da.name) if da.name is not None else "value", da.attrs)


def title_of(da: xr.DataArray) -> str:
    """Return the chart's title: `attrs["title"]`, else what the numbers are (without units)."""
    named = da.attrs.get("title") or da.attrs.get("long_name") or da.name
    return _words(named) if named is not None else ""


def subtitle_of(da: xr.DataArray) -> str:
    """Return the provenance in one line: "smollm2-135m · ioi · n = 8 · seed 0"."""
    parts = [str(da.attrs[k]) for k in ("technique", "model", "task") if da.attrs.get(k)]
    parts += [f"{k} = {da.attrs[k]}" for k in ("n", "seed") if da.attrs.get(k) is not None]
    fixed = [
        f"{_words(k).lower()} {c.values.item()}"
        for k, c in da.coords.items()
        if c.ndim == 0 and k in _FIXED
    ]
    return " · ".join(parts + fixed)


def as_array(data: object, what: str) -> xr.DataArray:
    """Return `data` as a real-valued DataArray; a Dataset of like variables gains a `variable` dim.

    Raises BadInput for anything that carries no labels, and for numbers that are not real.
    """
    import xarray as xr

    if isinstance(data, xr.Dataset):
        shapes = {name: v.dims for name, v in data.data_vars.items()}
        if not shapes or len(set(shapes.values())) > 1:
            raise BadInput(f"{what} needs variables of like dimensions, got {shapes}; choose one.")
        if len(shapes) == 1:
            data = next(iter(data.data_vars.values())).assign_attrs(data.attrs)
        else:
            data = data.to_dataarray("variable")
    if not isinstance(data, xr.DataArray):
        kind, shape = type(data).__name__, tuple(getattr(data, "shape", ()))
        raise BadInput(
            f"{what} needs a labelled result (xarray.DataArray), got {kind} of shape {shape}; "
            'label it first: lw.results.label(data, ("layer", "position")).'
        )
    if data.dtype.kind not in "fiub":
        raise BadInput(f"{what} needs real numbers, got dtype {data.dtype}.")
    if data.size == 0:
        raise BadInput(f"{what} was given an empty result of sizes {dict(data.sizes)}.")
    return data


def squeeze(da: xr.DataArray, keep: Sequence[str | None]) -> xr.DataArray:
    """Drop dimensions of size one, except those named in `keep`; their coordinates stay."""
    return da.squeeze([d for d in da.dims if da.sizes[d] == 1 and d not in keep])


def require_dims(da: xr.DataArray, what: str, **named: str | None) -> None:
    """Raise UnknownName where an argument names a dimension that `da` does not have."""
    for argument, dim in named.items():
        if dim is not None and dim not in da.dims:
            hint = suggest(dim, [str(d) for d in da.dims])
            raise UnknownName(f"{what}: {argument}={dim!r} is no dimension of this result{hint}")


def too_many(da: xr.DataArray, what: str, extra: Sequence[str]) -> BadInput:
    """Build the error for dimensions that a chart has no place for."""
    sizes = ", ".join(f"{d} ({da.sizes[d]})" for d in extra)
    d = "prompt" if "prompt" in extra else extra[-1]
    return BadInput(
        f"{what} has no place for {sizes}; average first, .mean({d!r}), "
        f"or select one, .isel({d}=0)."
    )
