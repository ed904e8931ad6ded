"""Clean and corrupt prompts made ready for attribution: what differs, where, and by how much.

In a causal model nothing at positions before the first differing token can differ, so all runs here
start at that token, with the keys and values of the shared prefix computed once. That is exact, and
for a fourteen-token prompt whose tenth token changes it costs a third of the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import xarray as xr

from lwlab.attribution.prefix import extend, inputs, select
from lwlab.errors import BadInput
from lwlab.models.model import Model
from lwlab.models.sites import SITES, Address
from lwlab.models.tokens import Tokens
from lwlab.results import label, provenance
from lwlab.tasks.base import Task
from lwlab.tracing import engine
from lwlab.tracing.edits import Edit
from lwlab.tracing.read import scores as measure

#: The components that the literature compares, at every layer and position.
COMPONENTS = ("resid_pre", "attn_out", "mlp_out")

Values = dict[Address, torch.Tensor]
Slopes = Callable[[torch.Tensor, list[Address]], Values]


@dataclass(frozen=True, eq=False, repr=False)
class Pair:
    """A task's clean prompts x and corrupt prompts x', aligned token by token; made by `Pair.of`.

    `begin` is the first position that runs compute (the first token that differs, or 0 in a model
    that keeps no keys and values). Techniques take a Pair wherever they take a task: what is
    computed once (activations of both runs, their metrics) is then shared between techniques.
    """

    model: Model
    task: Task
    clean: Tokens
    corrupt: Tokens
    begin: int
    prefix: Any
    _clean: Values = field(default_factory=dict)
    _corrupt: Values = field(default_factory=dict)
    _metrics: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model, task: Task | Pair) -> Pair:
        """Check that model and task fit, and return the pair.

        Raises BadInput for a model that does not predict the next token from the left, a task
        without corrupt prompts, or prompts of unequal length.
        """
        if isinstance(task, Pair):
            if task.model.module is not model.module:
                raise BadInput(f"this pair was made with {task.model.name}, not with {model.name}")
            return task
        _check(model, task)
        clean, corrupt = task.tokens(model, "clean"), task.tokens(model, "corrupt")
        width = clean.require_equal_length("attribution by position")
        if corrupt.require_equal_length("attribution by position") != width:
            raise BadInput(
                f"clean prompts have {width} tokens and corrupt prompts {corrupt.ids.shape[1]}; "
                "patching needs twins of equal length"
            )
        differ = (clean.ids != corrupt.ids).any(0).nonzero().flatten().tolist()
        begin = int(differ[0]) if differ else width - 1
        if "past_key_values" not in model.forward_names:
            begin = 0
        prefix = extend(model, None, clean.ids[:, :begin]) if begin else None
        return cls(model, task, clean, corrupt, begin, prefix)

    def from_the_start(self) -> Pair:
        """Return the same pair with every position computed, the shared prefix too."""
        return Pair(self.model, self.task, self.clean, self.corrupt, 0, None)

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        return f"<Pair of {self.model.name} and {self.task!r}, computed from token {self.begin}>"

    @property
    def width(self) -> int:
        """Tokens in a prompt."""
        return int(self.clean.ids.shape[1])

    def sites(self, components: str | Iterable[str]) -> list[str]:
        """Check component names: sites of the model with a value at each layer and position."""
        wanted = self.model.anatomy.require(components)
        for s in wanted:
            if SITES[s].scope != "layer" or SITES[s].dims[0] != "position":
                raise BadInput(f"component {s!r} has no value at each layer and position")
        return wanted

    def layers(self, layers: Iterable[int] | int | None) -> list[int]:
        """Check layer numbers; in order, each once."""
        return sorted(set(self.model.anatomy.layers(layers)))

    def chunks(self, size: int) -> Iterator[torch.Tensor]:
        """Prompt numbers, at most `size` at a time."""
        if size < 1:
            raise BadInput(f"batch_size={size}; at least one prompt must be run at a time")
        for first in range(0, len(self), size):
            yield torch.arange(first, min(first + size, len(self)))

    def batch(self, tokens: Tokens, rows: torch.Tensor) -> engine.Batch:
        """The inputs of prompts `rows`, from token `begin` on."""
        cache = None if self.prefix is None else select(self.prefix, [rows] * self.model.n_layers)
        return inputs(self.model, tokens, rows, self.begin, cache)

    def metric(self, rows: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
        """The task's metric for logits of prompts `rows` (repeats are fine)."""
        return measure(self.task.subset(rows).metric, logits)

    def read(self, at: Iterable[Address]) -> tuple[Values, Values]:
        """Activations [prompts, positions from `begin`, ...] of the clean and the corrupt run."""
        wanted = list(at)
        missing = [a for a in wanted if a not in self._clean]
        if missing or not self._metrics:
            self._metrics.clear()
            for tokens, kept in ((self.clean, self._clean), (self.corrupt, self._corrupt)):
                self._run(tokens, missing, kept)
        return {a: self._clean[a] for a in wanted}, {a: self._corrupt[a] for a in wanted}

    def metrics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """d(x) and d(x'), the metric of each clean and each corrupt prompt, [prompts]."""
        if not self._metrics:
            self.read([])
        clean, corrupt = self._metrics
        return clean, corrupt

    def know(self, clean: torch.Tensor, corrupt: torch.Tensor) -> None:
        """Keep d(x) and d(x') that were measured elsewhere, [prompts]."""
        if not self._metrics:
            self._metrics.extend((clean, corrupt))

    def _run(self, tokens: Tokens, at: list[Address], kept: Values, size: int = 64) -> None:
        parts: dict[Address, list[torch.Tensor]] = {a: [] for a in at}
        metric = []
        for rows in self.chunks(size):
            trace = engine.run(self.model, self.batch(tokens, rows), at)
            for a in at:
                parts[a].append(trace.values[a])
            metric.append(self.metric(rows, trace.logits))
        kept.update({a: torch.cat(v) for a, v in parts.items()})
        self._metrics.append(torch.cat(metric))

    def slopes(
        self,
        model: Model,
        rows: torch.Tensor,
        at: list[Address],
        edits: Sequence[Edit] = (),
    ) -> Values:
        """Gradients of the metric on the corrupt run of prompts `rows`, under `model`'s rules."""
        trace = engine.run(model, self.batch(self.corrupt, rows), at, edits, grad=True)
        total = self.metric(rows, trace.logits).sum()
        return dict(zip(at, torch.autograd.grad(total, [trace.values[a] for a in at])))

    def estimate(
        self,
        slopes: Slopes,
        components: str | Iterable[str],
        layers: Iterable[int] | int | None,
        *,
        normalise: bool,
        batch_size: int,
        **attrs: object,
    ) -> xr.DataArray:
        """First-order scores <a - a', slope>; `slopes(rows, addresses)` gives the gradients."""
        sites, chosen = self.sites(components), self.layers(layers)
        at = [Address(s, i) for s in sites for i in chosen]
        clean, corrupt = self.read(at)
        parts = []
        for rows in self.chunks(batch_size):
            c = slopes(rows, at)
            gaps = {a: clean[a][rows] - corrupt[a][rows] for a in at}
            dots = [(gaps[a] * c[a]).float().flatten(2).sum(2) for a in at]
            parts.append(torch.stack(dots).view(len(sites), len(chosen), len(rows), -1))
        out = torch.cat(parts, 2).transpose(1, 2)  # component, prompt, layer, position
        return self.label(out, sites, chosen, normalise=normalise, **attrs)

    def label(
        self,
        values: torch.Tensor,
        sites: list[str],
        layers: list[int],
        *,
        normalise: bool,
        **attrs: object,
    ) -> xr.DataArray:
        """Label scores [component, prompt, layer, position from `begin`]; zeros stand before.

        With `normalise`, scores are divided by mean d(x) - mean d(x'), so that a mean score of 1
        means "all of the effect". Raises BadInput where that is zero.
        """
        clean, corrupt = (float(d.mean()) for d in self.metrics())
        if normalise:
            if clean == corrupt:
                raise BadInput(
                    f"{self.task.name}: clean and corrupt prompts score the same ({clean:.3g}), so "
                    "there is no effect to take a share of; normalise=False gives raw differences"
                )
            values = values / (clean - corrupt)
        full = torch.zeros(*values.shape[:3], self.width)
        full[..., self.width - values.shape[3] :] = values.cpu()
        coords: dict[str, Any] = {
            "component": sites,
            "layer": layers,
            "position": list(range(self.width)),
            "position_str": (("position",), self.position_names()),
            "text": (("prompt",), list(self.clean.texts)),
            "group": (("prompt",), self.task.groups),
        }
        about = {
            **attrs, "normalised": normalise, "clean_metric": clean, "corrupt_metric": corrupt,
            "first_position": self.begin, "units": "" if normalise else self.task.metric.name,
            "long_name": "share of the effect" if normalise else "effect on the metric",
        }  # fmt: skip
        dims = ("component", "prompt", "layer", "position")
        named = label(full, dims, coords, name="score", **about)
        return named.assign_attrs(provenance(self.model, self.task) | named.attrs)

    def position_names(self) -> list[str]:
        """For each position the token all prompts share, else the names the task has for it."""
        names = []
        for p, column in enumerate(zip(*self.clean.strings)):
            roles = [k for k, at in self.task.positions.items() if bool((at == p).any())]
            shared = len(set(column)) == 1
            names.append(column[0] if shared else " " + ("/".join(roles) or "…"))
        return names


def _check(model: Model, task: Any) -> None:
    if not all(hasattr(task, k) for k in ("clean", "corrupt", "metric", "subset")):
        raise BadInput(
            "attribution needs a task with clean and corrupt prompts, such as lw.tasks.ioi(model), "
            f"not {type(task).__name__}"
        )
    if model.kind != "decoder" or not model.anatomy.causal or "logits" not in model.anatomy.taps:
        raise BadInput(
            f"{model.name} is no causal language model ({model.kind}); patching between prompts "
            "needs one that predicts the next token, such as smollm2-135m or gpt2"
        )
    if len(task.clean) != len(task.corrupt) or not task.corrupt:
        raise BadInput(
            f"{task.name} has {len(task.clean)} clean and {len(task.corrupt)} corrupt prompts; "
            "each clean prompt needs its corrupt twin"
        )
