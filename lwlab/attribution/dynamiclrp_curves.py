"""Does an attribution point at what the model used? Take it away piece by piece and see.

Perturbation curves and the area between them (ABPC), and the simple attributions to compare with.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional as F

from lwlab.attribution.dynamiclrp_ask import Asked, Target, ask
from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.tasks.base import Task
from lwlab.tracing import labels
from lwlab.tracing.edits import Edit
from lwlab.tracing.engine import Trace

PAPER = "2512.07010"
BASELINES = ("gradient", "input x gradient", "ig", "random")
_EMBED = Address("embed")


def baseline(
    model: Model,
    prompts: Prompts | Task,
    technique: str,
    target: Target = None,
    *,
    contrast: bool = False,
    steps: int = 5,
    seed: int = 0,
) -> xr.DataArray:
    """Attribute by a technique that needs no rules, in the shape of `dynamiclrp.scores`.

    With x the embedding of a token (the picture), x0 the reference that takes its place when it is
    removed (see `removed`) and f the number asked for: "gradient" |df/dx| (Euclidean length);
    "input x gradient" <x, df/dx>; "ig" <x - x0, mean df/dx at x0 + (s - 1/2)/S (x - x0)>, S =
    `steps`; "random" a standard normal number a token, a placebo. Raises UnknownName for another
    technique, BadInput for steps below 1, and as `dynamiclrp.scores` does.
    """
    if technique not in BASELINES:
        raise UnknownName(f"no technique {technique!r}{suggest(technique, BASELINES)}")
    if steps < 1:
        raise BadInput(f"steps={steps}: integrated gradients take 1 or more")
    key, first, x = _read(model, prompts, target, contrast)
    target = _settled(prompts, target, first)
    if technique == "random":
        found = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x.device)
        found = found * 0 + found.mean(-1 if key is not None else 1, keepdim=True)
    elif technique == "ig":
        x0 = removed(model, x.detach(), key is not None)
        total = torch.zeros_like(x)
        for s in range(steps):
            point = torch.lerp(x0, x.detach(), (s + 0.5) / steps)
            total += _slope(model, prompts, target, contrast, point, key)
        found = (x.detach() - x0) * total / steps
    else:
        g = torch.autograd.grad(first.value.sum(), x)[0]
        found = x.detach() * g if technique == "input x gradient" else g
    axis = "d_model" if key is not None else "channel"
    if key is None:
        array = label(found, ("prompt", *labels.loose_dims(found.ndim)))
    else:
        array = labels.dataset(model, Trace({key: found}, None, first.data), ["embed"], [], None)[
            "embed"
        ]
    if technique == "gradient":
        out = (array**2).sum(axis, skipna=False) ** 0.5
    else:
        out = array.sum(axis, skipna=False)
    task = prompts if isinstance(prompts, Task) else None
    about = provenance(model, task, technique=technique, long_name="attribution")
    return out.assign_attrs(about)


def removed(model: Model, x: Tensor, tokens: bool) -> Tensor:
    """What takes the place of a removed token (the mean embedding of all) or pixel (a blur)."""
    if tokens:
        return x.mean((0, 1), keepdim=True).expand_as(x)
    side = torch.arange(-24.0, 25.0, device=x.device)
    kernel = torch.exp(-(side**2) / (2 * 8.0**2))
    kernel = (kernel / kernel.sum()).to(x.dtype).expand(x.shape[1], 1, 1, -1)
    wide = F.pad(x, (24, 24, 24, 24), mode="reflect")
    across = F.conv2d(wide, kernel, groups=x.shape[1])
    return F.conv2d(across, kernel.mT, groups=x.shape[1])


def curves(
    model: Model,
    prompts: Prompts | Task,
    scores: xr.DataArray,
    target: Target = None,
    *,
    points: int = 5,
    patches: int = 14,
) -> xr.Dataset:
    """Remove tokens (or patches of a picture) in the order of `scores` and measure what is left.

    scores: (technique, prompt, position), or (technique, prompt, height, width), which are summed
    over a grid of `patches` by `patches`. A removed token's embedding becomes the mean embedding,
    a removed patch its blur. order "morf": most relevant first; "lerf": least relevant first.
    `points`: how many shares of removed pieces are measured, from 0 to 1.

    Returns `curve` (measure, technique, order, prompt, removed) and `abpc` (measure, technique,
    prompt) = area under lerf minus area under morf (trapezoid rule over the share removed, 0 to 1),
    in the unit of the measure: "asked", the number asked for, and for a task's answers also
    "contrast", answer minus foil (a logit alone moves with all others when tokens go). A random
    order has ABPC 0 on average. Costs
    (points - 2) x 2 x techniques + 2 forward passes. Raises BadInput for scores of another shape or
    with NaN inside a prompt, and for fewer than 3 points.
    """
    if points < 3:
        raise BadInput(f"points={points}: a curve takes at least 3, its two ends and one between")
    if "technique" not in scores.dims:
        raise BadInput(f"scores have dimensions {scores.dims}: put a `technique` first (xr.concat)")
    key, asked, x = _read(model, prompts, target, False, grad=False)
    both = isinstance(prompts, Task) and target is None
    target = _settled(prompts, target, asked)
    x0 = removed(model, x, key is not None)
    pieces = _pieces(scores, x, asked, patches)
    lengths = (~pieces[0].isnan()).sum(1)
    names = [str(t) for t in scores.technique.values]
    shares = np.linspace(0, 1, points)

    def left(order: Tensor, share: float) -> Tensor:
        """The measures [n, measures] with the first `share` of an order removed."""
        gone = order < (share * lengths).round()[:, None]
        if key is None:
            gone = gone.view(-1, 1, patches, patches)
            gone = F.interpolate(gone.float(), x.shape[2:], mode="nearest") > 0
        else:
            gone = _columns(gone, asked)[..., None]
        there = _at(model, prompts, target, False, torch.where(gone, x0, x), key, False)
        if not both:
            return there.value[:, None]
        assert isinstance(prompts, Task)
        foil = there.output.gather(1, prompts.foil_ids.to(x.device)[:, None])[:, 0]
        return torch.stack([there.value, there.value - foil], 1)

    # NaN (after a prompt's end) sorts last either way, behind everything that can be removed.
    orders = [(_order(-p, lengths), _order(p, lengths)) for p in pieces]
    ends = left(orders[0][0], 0.0), left(orders[0][0], 1.0)
    measures = ["asked", "contrast"] if both else ["asked"]
    curve = np.zeros((len(names), 2, len(lengths), len(measures), points), np.float32)
    for i, pair in enumerate(orders):
        for j, order in enumerate(pair):
            inner = [left(order, float(share)) for share in shares[1:-1]]
            curve[i, j] = torch.stack([ends[0], *inner, ends[1]], 2).float().cpu().numpy()
    curve = np.moveaxis(curve, 3, 0)
    area = np.asarray(np.trapezoid(curve, shares, axis=-1))
    task = prompts if isinstance(prompts, Task) else None
    coords = {"measure": measures, "technique": names, "order": ["morf", "lerf"], "removed": shares}
    groups = {} if task is None else {"group": ("prompt", task.groups.numpy())}
    return xr.Dataset(
        {
            "curve": label(
                curve, ("measure", "technique", "order", "prompt", "removed"), {**coords, **groups},
                long_name="the number asked for",
            ),
            "abpc": label(
                area[:, :, 1] - area[:, :, 0], ("measure", "technique", "prompt"),
                {"measure": measures, "technique": names, **groups},
                long_name="area between the curves",
            ),
        },
        attrs=provenance(model, task, technique="DynamicLRP", paper=PAPER),
    )  # fmt: skip


def _pieces(scores: xr.DataArray, x: Tensor, asked: Asked, patches: int) -> list[Tensor]:
    """What is ranked, one tensor [prompts, pieces] a technique, NaN after a prompt's end."""
    n, tokens = len(x), asked.data.tokens
    wanted = (
        "technique",
        "prompt",
        *(("position",) if tokens is not None else ("height", "width")),
    )
    if set(scores.dims) != set(wanted):
        raise BadInput(f"scores have dimensions {scores.dims}; here they must be {wanted}")
    data = torch.as_tensor(scores.transpose(*wanted).values.copy()).to(x.device)
    if data.shape[1] != n:
        raise BadInput(f"scores are of {data.shape[1]} prompts, and there are {n}")
    if tokens is None:
        if data.shape[2:] != x.shape[2:] or any(d % patches for d in x.shape[2:]):
            raise BadInput(
                f"scores of {tuple(data.shape[2:])} pixels for pictures of {tuple(x.shape[2:])}, "
                f"in {patches} x {patches} patches: sizes must be equal, and multiples"
            )
        tall, wide = (d // patches for d in x.shape[2:])
        summed = data.view(*data.shape[:2], patches, tall, patches, wide).sum((3, 5))
        data = summed.flatten(2)
    lengths = torch.full((n,), data.shape[2]) if tokens is None else tokens.lengths
    inside = torch.arange(data.shape[2], device=x.device) < lengths.to(x.device)[:, None]
    if data.shape[2] < int(lengths.max()) or bool((data.isnan() & inside).any()):
        raise BadInput("scores must hold a number for every token of every prompt")
    return [d.masked_fill(~inside, float("nan")) for d in data]


def _order(keys: Tensor, lengths: Tensor) -> Tensor:
    """Rank of each piece, 0 for the smallest key; NaN ranks behind all."""
    ranks = keys.argsort(dim=1, stable=True).argsort(dim=1)
    return torch.where(keys.isnan(), lengths.max() + 1, ranks)


def _columns(gone: Tensor, asked: Asked) -> Tensor:
    """From each prompt's own positions to the columns of the batch."""
    tokens = asked.data.tokens
    assert tokens is not None
    out = torch.zeros(tokens.ids.shape, dtype=torch.bool, device=gone.device)
    for row, (start, length) in enumerate(zip(tokens.offsets.tolist(), tokens.lengths.tolist())):
        out[row, start : start + length] = gone[row, :length]
    return out


def _settled(prompts: Prompts | Task, target: Target, asked: Asked) -> Target:
    """What was asked of the whole input is asked of the others too: the top logit may change."""
    return asked.weights.argmax(1) if target is None and not isinstance(prompts, Task) else target


def _read(
    model: Model, prompts: Prompts | Task, target: Target, contrast: bool, grad: bool = True
) -> tuple[Address | None, Asked, Tensor]:
    key = _EMBED if "embed" in model.anatomy.taps else None
    asked = ask(model, prompts, target, [] if key is None else [key], contrast=contrast, grad=grad)
    if key not in asked.reads:
        raise BadInput(f"{model.name} reads neither tokens nor pictures")
    return key, asked, asked.reads[key]


def _at(
    model: Model, prompts: Prompts | Task, target: Target, contrast: bool, x: Tensor,
    key: Address | None, grad: bool,
) -> Asked:  # fmt: skip
    """Run the model from other embeddings, or on other pictures."""
    if key is None:
        return ask(model, x, target, contrast=contrast, grad=grad)
    edits = [Edit(key, x)]
    return ask(model, prompts, target, [key], contrast=contrast, edits=edits, grad=grad)


def _slope(
    model: Model, prompts: Prompts | Task, target: Target, contrast: bool, x: Tensor,
    key: Address | None,
) -> Tensor:  # fmt: skip
    there = _at(model, prompts, target, contrast, x, key, True)
    return torch.autograd.grad(there.value.sum(), there.reads[key])[0]
