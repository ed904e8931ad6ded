"""Integrated gradients by depth: how much each layer's write at each token makes the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
import xarray as xr

from lwlab.depth.erasure import answer_positions, token_coords
from lwlab.depth.skips import PAPER, require_writes
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.results import label, provenance
from lwlab.tracing._nnsight import lock
from lwlab.tracing.blocks import Blocks, capture, check_replayable

Part = Literal["layer", "attention", "mlp"]
# Gauss-Lobatto nodes and weights on [0, 1]: they hold both ends, so one pass gives F there too.
_X = torch.tensor([0.0, (1 - (3 / 7) ** 0.5) / 2, 0.5, (1 + (3 / 7) ** 0.5) / 2, 1.0])
_W = torch.tensor([1 / 20, 49 / 180, 16 / 45, 49 / 180, 1 / 20])
_NODES = len(_X)


def integrated_gradients(
    model: Model,
    prompt: str,
    answer: str,
    *,
    parts: Part | Sequence[Part] = ("attention", "mlp"),
    layers: Iterable[int] | int | None = None,
    steps: int | None = None,
    max_steps: int = 64,
    max_rows: int = 8,
) -> xr.Dataset:
    """Integrated gradients of the answer's probability with respect to single components.

    F = sum of the probabilities of the answer's tokens, each given the text before it. For a
    component with output x [positions, d_model] (`parts`: the stream y_l that a whole layer
    leaves, its attention output a_l, its MLP output m_l) and the baseline b, the mean of x over the
    positions,

    attribution[l, t] = sum_d (x - b)_td  integral_0^1 dF/dx_td (b + r (x - b)) dr.

    `steps` = N takes the paper's left Riemann sum, r = i / N (N = 256 there). By default the
    integral is adaptive: a Gauss-Lobatto sum of five nodes over [0, 1], which is halved and halved
    again where the sum over a piece misses the change of F over that piece (completeness, piece by
    piece), until all pieces together miss less than 0.01 + 0.02 |F(x) - F(b)| or `max_steps`
    gradients were taken. Paths of some layers have a peak that no fixed small number of steps sees.

    Returns `attribution` (part, layer, position), and (part, layer): `difference` = F(x) - F(b),
    `total` = sum over positions, `gap` = total - difference, the numerical error, and `steps`, the
    gradients taken. `max_rows` of them are computed at once. arXiv:2505.13898;
    Sundararajan et al. 2017 for completeness.

    Raises BadInput for an empty answer, a layer or a number of steps out of range; UnknownName for
    a part, MissingSite for a model without it.
    """
    wanted = [parts] if isinstance(parts, str) else list(parts)
    for part in wanted:
        if part not in get_args(Part):
            raise UnknownName(f"part {part!r} is unknown{suggest(str(part), get_args(Part))}")
    if not wanted or not answer:
        raise BadInput(f"parts={wanted}, answer={answer!r}: neither may be empty")
    if min(1 if steps is None else steps, max_steps // _NODES, max_rows) < 1:
        raise BadInput(
            f"steps={steps}, max_steps={max_steps}, max_rows={max_rows}: at least 1, {_NODES} and 1"
        )
    check_replayable(model)
    if set(wanted) - {"layer"}:
        require_writes(model, f"parts={wanted}")
    chosen = model.anatomy.layers(layers)
    read = answer_positions(model, prompt, answer)
    blocks = capture(model, prompt + answer)
    n = blocks.n_positions
    attribution = torch.zeros(len(wanted), len(chosen), n)
    difference, taken = torch.zeros(2, len(wanted), len(chosen))
    with lock(model):
        for j, layer in enumerate(chosen):
            for i, part in enumerate(wanted):
                path = Path(blocks, part, layer, read, max_rows)
                found = path.adaptive(max_steps) if steps is None else path.left(steps)
                attribution[i, j], difference[i, j] = found
                taken[i, j] = path.taken
    dims = ("part", "layer", "position")
    short = {"part": wanted, "layer": chosen}
    coords = {**short, **token_coords(blocks.tokens)}
    total = attribution.sum(-1)
    arrays = {
        "attribution": label(attribution, dims, coords),
        "difference": label(difference, dims[:2], short),
        "total": label(total, dims[:2], short),
        "gap": label(total - difference, dims[:2], short),
        "steps": label(taken.int(), dims[:2], short),
    }
    out = xr.Dataset({k: v.drop_attrs() for k, v in arrays.items()})
    out["attribution"].attrs["long_name"] = "attribution to the answer's probability"
    return out.assign_attrs(
        provenance(
            model, technique="integrated gradients", paper=PAPER, prompt=prompt, answer=answer,
            rule="left Riemann" if steps else "adaptive Gauss-Lobatto",
            max_steps=steps or max_steps,
        )
    )  # fmt: skip


class Path:
    """The line from a component's baseline (r = 0) to its output (r = 1), and F along it."""

    def __init__(
        self, blocks: Blocks, part: Part, layer: int, read: torch.Tensor, max_rows: int = 8
    ) -> None:
        self.blocks, self.part, self.layer, self.read = blocks, part, layer, read
        self.max_rows, self.taken = max_rows, 0
        self.answer = blocks.tokens.ids[0, read + 1]
        self.end = self._output()
        self.start = self.end.mean(0, keepdim=True).expand_as(self.end)

    def left(self, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Left Riemann sum: the attribution of each position, and F(x) - F(b)."""
        slopes, _ = self.slopes(torch.arange(steps) / steps)
        with torch.no_grad():
            end, start = self.value(torch.stack([self.end, self.start])).float().cpu()
        return slopes.mean(0), end - start

    def adaptive(self, max_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same over pieces of [0, 1], each halved until it accounts for its change of F."""
        done, missing = torch.zeros(0, self.blocks.n_positions), torch.zeros(0)
        pieces, width, difference = torch.zeros(1), 1.0, torch.tensor(torch.nan)
        while len(pieces):
            slopes, f = self.slopes((pieces[:, None] + width * _X).flatten())
            slopes, f = slopes.view(len(pieces), _NODES, -1), f.view(len(pieces), _NODES)
            found = width * torch.einsum("k,skt->st", _W, slopes)
            gap = (found.sum(-1) - (f[:, -1] - f[:, 0])).abs()
            if width == 1.0:
                difference = f[0, -1] - f[0, 0]
            tolerance = 0.01 + 0.02 * float(difference.abs())
            split = gap > tolerance * width
            if float(gap.sum() + missing.sum()) <= tolerance:
                split[:] = False
            affordable = (max_steps - self.taken) // (2 * _NODES)
            split[gap.argsort(descending=True)[affordable:]] = False
            done, missing = torch.cat([done, found[~split]]), torch.cat([missing, gap[~split]])
            width /= 2
            pieces = torch.stack([pieces[split], pieces[split] + width], 1).flatten()
        return done.sum(0), difference

    def slopes(self, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x - b) . dF/dx by position [r, positions], whose sum is dF/dr, and F [r]."""
        slopes, values = [], []
        for part in torch.split(r, self.max_rows):
            x = torch.lerp(self.start, self.end, part.to(self.end)[:, None, None])
            x.requires_grad_(True)
            with torch.enable_grad():
                f = self.value(x)
                (grad,) = torch.autograd.grad(f.sum(), x)
            slopes.append(((self.end - self.start) * grad).sum(-1).float().cpu())
            values.append(f.detach().float().cpu())
        self.taken += len(r)
        return torch.cat(slopes), torch.cat(values)

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """F with the component's output replaced by each row of x [k, positions, d_model]: [k]."""
        rows = x if self.part == "layer" else self._leaving(x)
        for layer, live, _ in self.blocks.run({self.layer + 1: rows}):
            if layer == self.blocks.model.n_layers:
                p = self.blocks.probabilities(live, self.read)
                return p[:, torch.arange(len(self.read)), self.answer].sum(-1)
        raise AssertionError("run always ends at the last stream")

    def _leaving(self, x: torch.Tensor) -> torch.Tensor:
        h = self.blocks.streams[self.layer].expand(len(x), -1, -1)
        return self.blocks.block(self.layer, h, {self._site: lambda _: x})

    @property
    def _site(self) -> str:
        return "attn_out" if self.part == "attention" else "mlp_out"

    @torch.no_grad()
    def _output(self) -> torch.Tensor:
        if self.part == "layer":
            return self.blocks.streams[self.layer + 1][0]
        seen: list[torch.Tensor] = []

        def keep(out: torch.Tensor) -> torch.Tensor:
            seen.append(out[0].clone())
            return out

        self.blocks.block(self.layer, self.blocks.streams[self.layer], {self._site: keep})
        return seen[0]
