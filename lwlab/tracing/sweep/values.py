"""What an edit puts in place of each cell, and which cells that leaves as they were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lwlab.errors import BadInput
from lwlab.models.sites import Address
from lwlab.tracing.batch import batch
from lwlab.tracing.sweep.cost import LOCAL
from lwlab.tracing.sweep.observe import Seen, Values, observe
from lwlab.tracing.sweep.request import Request, Spec
from lwlab.tracing.write import _donors


class Replacements:
    """The new values of a sweep's cells, computed from the runs before it.

    One cell is edited at a time, so what stands there is what the unedited run has, and every
    edit, a function too, is a table of values: `new(spec, layer)` is [tokens, ...] like the site.
    """

    def __init__(self, request: Request) -> None:
        """Run the reference prompts where the edit needs them."""
        self.request = request
        self.table: Values = {}
        self.changed = not callable(request.edit)  # a function may leave all as it was
        edit, r = request.edit, request
        if edit not in ("mean", "resample"):
            return
        tokens = r.prompts.tokens
        if r.reference is not None:
            given = batch(r.model, r.reference).tokens
            if given is None:
                raise BadInput("reference= must be prompts made of tokens")
            tokens = given
        seen = observe(r.model, tokens, r.addresses())
        for a, v in seen.values.items():
            if edit == "mean":
                self.table[a] = v.mean(0, keepdim=True)
            else:
                n, same = len(r.prompts.tokens), r.reference is None
                donors = _donors(n, len(tokens), same, r.seed).numpy()
                self.table[a] = seen.rows(donors, a)

    def new(
        self, spec: Spec, layer: int, base: Seen, donor: Seen | None, prompts: NDArray[np.int64]
    ) -> torch.Tensor:
        """New values of one site and layer for `prompts` (numbers in the task), [tokens, ...]."""
        r, a = self.request, Address(spec.site, layer)
        old = base.values[a]
        if donor is not None:
            return donor.values[a]
        if r.edit == "zero":
            return torch.zeros_like(old)
        if r.edit == "mean":
            return self.table[a].expand_as(old)
        if r.edit == "resample":
            return self.table[a][torch.from_numpy(prompts)].flatten(0, 1)
        out = old.clone()
        for u in range(len(spec.units)):
            part = spec.read(old, u)
            new = self._noisy(spec, layer, u, part, base, prompts) if r.edit == "noise" else (
                self._called(a, part)
            )  # fmt: skip
            spec.read(out, u).copy_(new)
        return out

    def _noisy(
        self,
        spec: Spec,
        layer: int,
        u: int,
        old: torch.Tensor,
        base: Seen,
        prompts: NDArray[np.int64],
    ) -> torch.Tensor:
        # Drawn for each prompt by its own number, so that chunks of prompts do not matter.
        r, width = self.request, old[0].numel()
        site = sum(map(ord, spec.site))
        draws = []
        for i, t in zip(prompts.tolist(), base.lengths.tolist()):
            key = np.random.SeedSequence([r.seed, site, layer, spec.units[u], i])
            g = np.random.Generator(np.random.Philox(key))
            draws.append(g.standard_normal((t, width), dtype=np.float32))
        noise = torch.from_numpy(np.concatenate(draws)).to(old.device, old.dtype).view_as(old)
        flat = old.flatten(1)
        size = flat.float().std(1, unbiased=False).to(old.dtype)
        return old + r.scale * noise * size.view(-1, *[1] * (old.ndim - 1))

    def _called(self, a: Address, old: torch.Tensor) -> torch.Tensor:
        edit = self.request.edit
        assert callable(edit)
        new = edit(old.clone())
        if not isinstance(new, torch.Tensor) or new.shape != old.shape:
            got = tuple(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
            raise BadInput(
                f"the edit of {a} returned {got}; it gets cells [cells, features] = "
                f"{tuple(old.shape)} and must return new values of that shape"
            )
        if not bool(torch.isfinite(new).all()):
            raise BadInput(f"the edit of {a} gave NaN or infinity")
        self.changed = self.changed or not torch.equal(new, old)
        return new


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of a sweep, one array entry each: what is edited, and where its result goes.

    spec, unit, at_position, layer (number and index), prompt (number within the chunk) and
    position (its own token).
    """

    spec: NDArray[np.int64]
    layer: NDArray[np.int64]
    layer_index: NDArray[np.int64]
    prompt: NDArray[np.int64]
    position: NDArray[np.int64]
    at_position: NDArray[np.int64]
    unit: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.spec)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Cells:
        """Some of the cells."""
        return Cells(**{k: v[index] for k, v in vars(self).items()})


def cells_of(request: Request, prompts: NDArray[np.int64]) -> Cells:
    """Every cell of some prompts, ordered by layer, site, prompt, position and unit."""
    wanted = request.prompts.wanted[prompts]
    parts = []
    for j, spec in enumerate(request.specs):
        shape = (len(request.layers), *wanted.shape, len(spec.units))
        li, i, pi, u = (x.ravel() for x in np.indices(shape))
        keep = wanted[i, pi] >= 0
        li, i, pi, u = li[keep], i[keep], pi[keep], u[keep]
        layer = np.asarray(request.layers)[li]
        parts.append((np.full(len(li), j), layer, li, i, wanted[i, pi], pi, u))
    whole = [np.concatenate(c).astype(np.int64) for c in zip(*parts)]
    order = np.argsort(whole[1], kind="stable")
    return Cells(*(c[order] for c in whole))


def same(
    request: Request,
    cells: Cells,
    base: Seen,
    news: dict[Address, torch.Tensor],
    first: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which cells provably change nothing: [cells].

    The new value is bit for bit the old one; or (`first` [prompts], the first token that differs
    from the twin) a causal model has computed the same there; or the site is local, the layer the
    last one, and the token not the last: nobody reads it.
    """  # fmt: skip
    out = np.zeros(len(cells), bool)
    token = base.offsets[cells.prompt] + cells.position
    for j, spec in enumerate(request.specs):
        for layer in request.layers:
            a = Address(spec.site, layer)
            for u in range(len(spec.units)):
                here = np.flatnonzero(
                    (cells.spec == j) & (cells.layer == layer) & (cells.unit == u)
                )
                old, new = spec.read(base.values[a], u), spec.read(news[a], u)
                equal = (old == new).flatten(1).all(1).cpu().numpy()
                out[here] = equal[token[here]]
    if request.model.anatomy.causal:
        out |= cells.position < first[cells.prompt]
        last = request.model.n_layers - 1
        local = np.array([s.site in LOCAL for s in request.specs])[cells.spec]
        ends = cells.position == base.lengths[cells.prompt] - 1
        out |= local & (cells.layer == last) & ~ends
    return out
