"""Control vectors: the difference of mean states, added to the stream, and what answers become.

With H_l(P) the stream after layer l at the last token of a text P, three vectors for every layer:

* "reading":  c_l = mean_i H_l(P_i)
* "contrast": c_l = mean_i H_l(P_i+) - mean_i H_l(P_i-), the difference in means
* "pca":      the first principal direction of H_l(P_i+) - H_l(P_i-) (not centred, so of the pairs'
  second moments), of length 1 and with the sign that puts the positives higher

and at inference h_l <- h_l + alpha c_l at one layer, at every token. Hojer, Jarvis & Heinrich,
"Improving Reasoning Performance in Large Language Models via Representation Engineering"
(arXiv:2504.19483). The effect is read on the whole output: accuracy, divergence, entropy, and the
probability of right and wrong answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.models.sites import Address
from lwlab.results import label, provenance
from lwlab.steering.affine import check_texts
from lwlab.steering.effects import Edits
from lwlab.tracing import engine, lock
from lwlab.tracing.blocks import capture, together
from lwlab.tracing.write import kl

Kind = Literal["contrast", "reading", "pca"]
PAPER = "2504.19483"


def vectors(
    model: Model,
    positives: Sequence[str],
    negatives: Sequence[str] = (),
    kind: Kind = "contrast",
    *,
    batch: int = 16,
) -> xr.DataArray:
    """Return a vector for every layer, (layer, d_model), in units of the stream after it.

    "reading" needs positives only. Raises UnknownName for a kind; BadInput for an empty class,
    unequal numbers for "pca" (which takes pairs), texts that are in both classes, or a vector
    without length.
    """
    if kind not in get_args(Kind):
        raise UnknownName(f"kind={kind!r} is unknown{suggest(str(kind), get_args(Kind))}")
    model.anatomy.require("resid_post")
    texts = {"positives": list(positives)}
    if kind != "reading":
        texts["negatives"] = list(negatives)
    for what, some in texts.items():
        check_texts(model, some, what, 0)
    if both := set(texts["positives"]) & set(texts.get("negatives", [])):
        raise BadInput(f"{min(both)!r:.60} is in both classes")
    if kind == "pca" and len(positives) != len(negatives):
        raise BadInput(f"pca takes pairs: {len(positives)} positives, {len(negatives)} negatives")
    h = {what: _last(model, some, batch) for what, some in texts.items()}
    if kind == "reading":
        c = h["positives"].mean(1)
    elif kind == "contrast":
        c = h["positives"].mean(1) - h["negatives"].mean(1)
    else:
        gaps = h["positives"] - h["negatives"]  # [layers, pairs, d]
        c = torch.linalg.svd(gaps, full_matrices=False).Vh[:, 0]
        higher = (gaps @ c[..., None]).sum((1, 2))
        c = c * torch.where(higher < 0, -1.0, 1.0)[:, None]
    if not bool((c.norm(dim=-1) > 0).all()):
        raise BadInput(f"{kind}: the vector has no length at some layer; the classes do not differ")
    out = label(c, ("layer", "d_model"), {"layer": range(model.n_layers)}, name="vector")
    return out.assign_attrs(
        provenance(model, technique="repe-reasoning", paper=PAPER, kind=kind, n=len(positives))
    )


def _last(model: Model, texts: Sequence[str], batch: int) -> torch.Tensor:
    """Streams after every layer at each text's last own token: [layers, texts, d_model]."""
    at = [Address("resid_post", i) for i in range(model.n_layers)]
    parts = []
    for first in range(0, len(texts), batch):
        tokens = model.tokens(list(texts[first : first + batch]))
        read = engine.run(model, tokens, at, logits=None).values
        rows, columns = torch.arange(len(tokens)), tokens.columns(-1)
        parts.append(torch.stack([read[a][rows, columns].float().cpu() for a in at]))
    return torch.cat(parts, 1)


def edits(
    vector: xr.DataArray, layer: int, alpha: float = 1.0, *, normalise: bool = False
) -> Edits:
    """h_l + alpha c_l at every token, as what `lw.patch` and `lw.generate` take.

    With `normalise`, rescaled to the norm that h_l had. Raises BadInput for a layer the vector has
    no row of, or an alpha that is not finite.
    """
    return {Address("resid_post", layer): _push(vector, layer, alpha, normalise)}


def _push(
    vector: xr.DataArray, layer: int, alpha: float, normalise: bool = False
) -> Callable[[torch.Tensor], torch.Tensor]:
    rows = vector["layer"].values.tolist() if "layer" in vector.dims else []
    if layer not in rows or set(vector.dims) != {"layer", "d_model"}:
        raise BadInput(
            f"layer={layer} of a vector with dimensions {vector.dims} and layers {rows[:1]} to "
            f"{rows[-1:]}: give (layer, d_model) and a layer that is there"
        )
    if not np.isfinite(alpha):
        raise BadInput(f"alpha={alpha}: give a finite number")
    c = torch.as_tensor(vector.sel(layer=layer).values)

    def push(h: torch.Tensor) -> torch.Tensor:
        new = h + alpha * c.to(h)
        if normalise and alpha:
            new = new * (h.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True))
        return new

    return push


def random_like(vector: xr.DataArray, draws: int = 20, seed: int = 0) -> xr.DataArray:
    """Return the placebo: random directions as long as `vector` at each layer, (draw, layer, d)."""
    noise = np.random.default_rng(seed).standard_normal((draws, *vector.shape)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
    length = np.linalg.norm(vector.values, axis=-1, keepdims=True)
    coords = {"draw": range(draws), "layer": vector["layer"].values}
    return label(noise * length, ("draw", *map(str, vector.dims)), coords, name="random")


def sweep(
    model: Model,
    prompts: Sequence[str],
    answers: Sequence[str],
    choices: Sequence[str],
    vector: xr.DataArray,
    layer: int,
    alphas: Sequence[float],
) -> xr.Dataset:
    """Answers as a function of alpha; the answer is the likeliest of `choices`.

    `answers` (one a prompt) and `choices` are the words with their leading space, one token each.
    Returns over (alpha, prompt): `correct`; `kl` = KL(base || steered) and `reverse_kl`, in nats,
    over the whole vocabulary; `entropy` in nats; `right` and `wrong`, the probability of the right
    answer and of the other choices; `said`, the number of the choice. Raises BadInput for words of
    several tokens, answers that are no choice, numbers that differ, or a model whose blocks cannot
    be run one by one; and as `edits` does. A vector with the dimension `draw` (see `random_like`)
    gives results with it, from one opening of the prompts.
    """
    ids, gold = _choices(model, prompts, answers, choices)
    many = "draw" in vector.dims
    each = [vector.isel(draw=i) for i in range(vector.sizes["draw"])] if many else [vector]
    pushes = [_push(c, layer, float(alpha)) for c in each for alpha in alphas]
    if not pushes:
        raise BadInput("alphas is empty: give at least one strength")
    opened = _Opened(model, prompts, layer)
    base = opened.logits(lambda h: h)
    rows: dict[str, list[torch.Tensor]] = {}
    for push in pushes:
        z = opened.logits(push)
        log_p = z.log_softmax(-1)
        p = log_p[:, ids].exp()
        right = p.gather(1, gold[:, None])[:, 0]
        said = z[:, ids].argmax(1)
        found = {
            "correct": (said == gold).float(), "kl": kl(base, z), "reverse_kl": kl(z, base),
            "entropy": -(log_p.exp() * log_p).sum(-1), "right": right, "wrong": p.sum(1) - right,
            "said": said,
        }  # fmt: skip
        for key, value in found.items():
            rows.setdefault(key, []).append(value)
    shape = (len(each), len(alphas), len(prompts))
    coords = {"draw": range(len(each)), "alpha": list(map(float, alphas))}
    out = xr.Dataset(
        {
            k: label(torch.stack(v).view(shape), ("draw", "alpha", "prompt"), coords).drop_attrs()
            for k, v in rows.items()
        },
        coords={"choice": list(choices), "gold": ("prompt", gold.numpy())},
    )
    out = out if many else out.isel(draw=0, drop=True)
    return out.assign_attrs(
        provenance(model, technique="repe-reasoning", paper=PAPER, layer=layer, n=len(prompts))
    )


def _choices(
    model: Model, prompts: Sequence[str], answers: Sequence[str], choices: Sequence[str]
) -> tuple[list[int], torch.Tensor]:
    if len(prompts) != len(answers) or not prompts:
        raise BadInput(f"{len(prompts)} prompts, {len(answers)} answers: give one for each")
    if len(set(choices)) < max(2, len(choices)):
        raise BadInput(f"choices={list(choices)}: give two or more, all unlike")
    if strange := [a for a in answers if a not in choices]:
        raise BadInput(f"answer {strange[0]!r} is none of the choices")
    order = list(choices)
    return [model.token_id(c) for c in order], torch.tensor([order.index(a) for a in answers])


class _Opened:
    """Prompts opened after one layer, so that only the blocks above it run again."""

    def __init__(self, model: Model, prompts: Sequence[str], layer: int) -> None:
        self.model, self.layer = model, model.anatomy.layers(layer)[0]
        tokens = model.tokens(list(prompts))
        lengths = tokens.lengths.tolist()
        self.rows = [[i for i, k in enumerate(lengths) if k == n] for n in sorted(set(lengths))]
        self.groups = [capture(model, together(tokens, rows)) for rows in self.rows]

    def logits(self, push: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Logits at the last token of every prompt, [prompts, tokens], the stream pushed."""
        parts = []
        with torch.no_grad(), lock(self.model):
            for blocks in self.groups:
                h = push(blocks.streams[self.layer + 1].clone())
                for above in range(self.layer + 1, self.model.n_layers):
                    h = blocks.block(above, h)
                parts.append(self.model.unembed(h[:, -1]).float().cpu())
        order = torch.tensor([i for rows in self.rows for i in rows]).argsort()
        return torch.cat(parts)[order]


def gain(found: xr.Dataset, choose: Sequence[int], test: Sequence[int]) -> tuple[float, float]:
    """Return (alpha, gain): alpha best on the prompts `choose`, its gain over 0 on those in `test`.

    Choosing and testing on the same prompts would make a gain out of noise. Ties go to the smaller
    |alpha|. Raises BadInput where alpha = 0 was not measured, or prompts are in both.
    """
    alphas = found["alpha"].values
    if 0.0 not in alphas:
        raise BadInput("the sweep has no alpha=0 to compare with")
    if set(choose) & set(test) or not len(choose) or not len(test):
        raise BadInput("choose and test need prompts of their own, at least one each")
    right = found["correct"].values
    score = right[:, list(choose)].mean(1)
    best = min(range(len(alphas)), key=lambda i: (-score[i], abs(alphas[i])))
    zero = int(np.flatnonzero(alphas == 0)[0])
    held = right[:, list(test)].mean(1)
    return float(alphas[best]), float(held[best] - held[zero])
