"""A circuit: some of a graph's edges, none of them dangling. Made from scores, kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lwlab.attribution.circuits.graph import Bools, Graph
from lwlab.attribution.circuits.select import Floats, random_edges, selector, trim
from lwlab.errors import BadInput
from lwlab.results import provenance

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "lwlab-circuit-1"
Edge = tuple[str, str]


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """Kept `edges` [sender, receiver] of a `graph`, their `scores` if known, and where from."""

    graph: Graph
    edges: Bools
    scores: Floats | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise BadInput for a table of another shape, edges that do not exist, or dangle."""
        shape = self.graph.exists.shape
        for what, table in (("edges", self.edges), ("scores", self.scores)):
            if table is not None and np.shape(table) != shape:
                raise BadInput(f"{what} have the shape {np.shape(table)}; the graph has {shape}")
        if self.edges.dtype != np.bool_ or bool((self.edges & ~self.graph.exists).any()):
            raise BadInput("edges must be bools, and True only where the graph has an edge")
        loose = self.edges & ~trim(self.graph, self.edges)
        if loose.any():
            some = ", ".join(f"{s}->{r}" for s, r in list(self.graph.edges(loose))[:3])
            raise BadInput(
                f"{int(loose.sum())} edges dangle ({some}): nothing reaches them or they reach no "
                "logits; Circuit.of(graph, edges) leaves them out"
            )

    @classmethod
    def of(cls, graph: Graph, edges: Bools | Iterable[Edge | str], **about: object) -> Circuit:
        """Return the circuit of a table or list of edges, less those that dangle."""
        table = edges if isinstance(edges, np.ndarray) else graph.mask(edges)
        return cls(graph, trim(graph, table), about=about)

    @classmethod
    def random(cls, graph: Graph, n: int, seed: int = 0) -> Circuit:
        """Return a random circuit of exactly n edges (`select.random_edges`)."""
        return cls(graph, random_edges(graph, n, seed), about={"technique": "random", "seed": seed})

    def __len__(self) -> int:
        """How many edges there are."""
        return int(self.edges.sum())

    def __repr__(self) -> str:
        share = len(self) / self.graph.n_edges
        by = f" by {self.about['technique']}" if self.about.get("technique") else ""
        return (
            f"<Circuit{by}: {len(self)} of {self.graph.n_edges} edges ({share:.2%}), "
            f"{len(self.heads)} heads, {sum(n.startswith('m') for n in self.nodes)} MLPs>"
        )

    @property
    def names(self) -> list[Edge]:
        """The edges (sender, receiver), in the order of the forward pass."""
        return list(self.graph.edges(self.edges))

    @property
    def nodes(self) -> list[str]:
        """Components that take part: senders of kept edges, and "logits"."""
        out = [self.graph.sender_names[i] for i in np.flatnonzero(self.edges.any(1))]
        return [*out, "logits"] if out else out

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Heads (layer, head) that take part."""
        on = np.flatnonzero(self.edges.any(1))
        return [(s.layer, s.head) for s in (self.graph.senders[i] for i in on) if s.kind == "head"]

    def without(self, edges: Bools | Iterable[Edge | str]) -> Circuit:
        """Return the circuit less some edges, and less what then dangles."""
        table = edges if isinstance(edges, np.ndarray) else self.graph.mask(edges)
        return replace(self, edges=trim(self.graph, self.edges & ~table))

    def to_frame(self) -> pd.DataFrame:
        """Return one row an edge: sender, receiver, score (NaN where unknown)."""
        import pandas as pd

        values = np.full(self.edges.shape, np.nan) if self.scores is None else self.scores
        rows = [(s, r, float(v)) for (s, r), v in zip(self.names, values[self.edges])]
        return pd.DataFrame(rows, columns=["sender", "receiver", "score"])

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the circuit as JSON, and write it to `path` where one is given.

        Keys: `format`, `graph` (sizes), `nodes` (names), `edges` (sender, receiver, score or
        null), `about` (model, task, technique, ...).
        """
        rows = [
            {"sender": s, "receiver": r, "score": None if np.isnan(v) else v}
            for s, r, v in self.to_frame().itertuples(index=False)
        ]
        sizes = {k: getattr(self.graph, k) for k in _SIZES}
        text = json.dumps(
            {"format": FORMAT, "graph": sizes, "nodes": self.nodes, "edges": rows,
             "about": dict(self.about)},
            indent=1, default=str,
        )  # fmt: skip
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> Circuit:
        """Read what `to_json` wrote, from its text or a file.

        Raises BadInput for what is no such JSON, UnknownName for nodes that are not in its graph.
        """
        text = str(source)
        if isinstance(source, Path) or not text.lstrip().startswith("{"):
            try:
                text = Path(source).read_text(encoding="utf-8")
            except OSError as error:
                raise BadInput(f"no circuit can be read from {source}: {error}") from None
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise BadInput(f"this JSON is in the format {found['format']!r}, not {FORMAT!r}")
            graph = Graph(**{k: found["graph"][k] for k in _SIZES})
            pairs = [(e["sender"], e["receiver"]) for e in found["edges"]]
            values = [e["score"] for e in found["edges"]]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(
                f"this is no circuit as to_json writes them: {type(error).__name__} {error}"
            ) from None
        table = np.full(graph.exists.shape, np.nan)
        for (s, r), value in zip(pairs, values):
            table[graph.sender(s), graph.receiver(r)] = np.nan if value is None else value
        scores = None if np.isnan(table).all() else table
        return cls(graph, graph.mask(pairs), scores, found.get("about", {}))


_SIZES = ("n_layers", "n_heads", "n_kv_heads", "parallel", "mlps")


def circuit(
    scores: xr.DataArray,
    keep: float | None = None,
    *,
    above: float | None = None,
    select: str = "greedy",
    absolute: bool = True,
) -> Circuit:
    """Select the edges of a circuit by their scores, without dangling edges.

    `scores` (sender, receiver), averaged over `prompt` where it has one: what
    `lw.attribution.edges.scores` returns for one technique. `keep`: a number of edges (an int) or a
    fraction of all (a float up to 1). "greedy" grows them from the logits downwards; "threshold"
    takes the largest ones wherever they are; in both, edges that nothing reaches or that reach
    nothing are then dropped, so the circuit may have fewer. `above` in place of `keep` takes all
    edges beyond that score. `absolute` goes by size (an edge that works against the answer is part
    of the mechanism); without it by signed value.

    Raises BadInput for scores of another kind, NaN, or a `keep` out of range; UnknownName for
    another `select`.
    """
    graph, values = mean_scores(scores)
    rank = np.abs(values) if absolute else values
    if (keep is None) == (above is None):
        raise BadInput("say either how many edges to keep, or above which score")
    if above is not None:
        edges = trim(graph, graph.exists & (rank > above))
    else:
        assert keep is not None
        edges = selector(select)(graph, rank, count(graph, keep))
    about = provenance(select=select if above is None else f"above {above}", absolute=absolute)
    about["technique"] = technique_of(scores)
    return Circuit(graph, edges, values, {**scores.attrs, **about})


def count(graph: Graph, keep: float) -> int:
    """Return how many edges `keep` means; raise BadInput for a number that is out of range."""
    whole = isinstance(keep, int | np.integer) and not isinstance(keep, bool)
    limit = graph.n_edges if whole else 1
    if isinstance(keep, bool) or not 0 <= keep <= limit:
        raise BadInput(
            f"keep={keep!r}: give a number of edges, 0 to {graph.n_edges} (an int), or a fraction "
            "of them, 0.0 to 1.0 (a float)"
        )
    return int(keep) if whole else int(keep * graph.n_edges)


def mean_scores(scores: xr.DataArray) -> tuple[Graph, Floats]:
    """Return the graph of edge scores and their mean over prompts, [sender, receiver].

    Raises BadInput where the dimensions, the names or the numbers are not those of edge scores.
    """
    if not isinstance(scores, xr.DataArray) or not {"sender", "receiver"} <= set(scores.dims):
        raise BadInput(
            "a circuit is made from edge scores (sender, receiver), as "
            "lw.attribution.edges.scores returns them"
        )
    values = scores.mean("prompt") if "prompt" in scores.dims else scores
    values = values.squeeze(drop=True) if "technique" in values.dims else values
    if set(values.dims) != {"sender", "receiver"}:
        raise BadInput(
            f"scores have the dimensions {scores.dims}: pick one of each but sender and receiver, "
            "as in scores.sel(technique='relp')"
        )
    table = values.transpose("sender", "receiver").values
    if not np.isfinite(table).all():
        raise BadInput(f"{int((~np.isfinite(table)).sum())} scores are NaN or infinite")
    return graph_of(scores), table


def technique_of(scores: xr.DataArray) -> str:
    """Return which technique made the scores, "" where they do not say."""
    if scores.coords.get("technique") is not None and scores.technique.size == 1:
        return str(scores.technique.values.item())
    return str(scores.attrs.get("technique", ""))


def graph_of(scores: xr.DataArray) -> Graph:
    """Rebuild the graph from the names of senders and receivers."""
    senders = [str(s) for s in scores.sender.values]
    receivers = [str(r) for r in scores.receiver.values]
    layers = 1 + max((int(s[1:].split(".")[0]) for s in senders if s[0] in "am"), default=-1)
    heads = sum(s.startswith("a0.h") for s in senders)
    groups = sum(r.startswith("a0.kv") and r.endswith("<k>") for r in receivers)
    if layers and heads and groups:
        graph = Graph(layers, heads, groups, bool(scores.attrs.get("parallel")), "m0" in senders)
        if (list(graph.sender_names), list(graph.receiver_names)) == (senders, receivers):
            return graph
    raise BadInput(
        "the names of senders and receivers are not those of a model's graph (see "
        "lw.attribution.circuits.Graph); scores of some edges only cannot make a circuit"
    )
