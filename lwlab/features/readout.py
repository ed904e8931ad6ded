"""What a feature is: where it is found, which neurons make it, which words it calls for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from lwlab import stats
from lwlab.errors import BadInput, MissingSite
from lwlab.features.dictionaries import classes
from lwlab.features.matrix import matrix
from lwlab.results import label

if TYPE_CHECKING:
    from lwlab.models import Model


def cosine(activations: xr.DataArray, directions: xr.DataArray) -> xr.DataArray:
    """Cosine of every activation with every direction: (sample, feature), in [-1, 1].

    Raises BadInput for NaN or other widths; where either is zero, so is the cosine.
    """
    x, z = matrix(activations, "cosine"), matrix(directions, "cosine", rows="feature")
    if x.shape[1] != z.shape[1]:
        raise BadInput(f"directions of {z.shape[1]} neurons for activations of {x.shape[1]}")
    z = z.to(x.dtype)
    sizes = x.norm(dim=1)[:, None] * z.norm(dim=1)
    kept = {str(k): v for k, v in activations.coords.items() if "sample" in v.dims}
    kept |= {str(k): v for k, v in directions.coords.items() if "feature" in v.dims}
    out = (x @ z.T) / torch.where(sizes > 0, sizes, torch.ones_like(sizes))
    return label(out, ("sample", "feature"), kept, name="cosine", **activations.attrs)


def auc(scores: xr.DataArray, labels: xr.DataArray | None = None) -> xr.DataArray:
    """Area under the ROC curve of every feature for every concept: (concept, feature).

    The chance that a sample of the concept has a higher score than a sample of another (ties
    half): 1 finds the concept, 0.5 knows nothing of it. `scores` (sample, feature) as of `cosine`;
    `labels` [samples], `scores.concept` by default. Raises BadInput for one class only.
    """
    names, member = classes(scores, labels)
    s = scores.transpose("feature", "sample").values
    out = np.stack([stats.auc(s, inside) for inside in member])
    return label(
        out, ("concept", "feature"), {"concept": names, "feature": scores["feature"].values},
        name="AUC", **scores.attrs,
    )  # fmt: skip


def purity(
    coefficient: xr.DataArray, labels: xr.DataArray | None = None, top: int = 12
) -> xr.DataArray:
    """Share of the commonest concept among the `top` samples of each feature: (feature,).

    `coefficient` (sample, feature), larger is more of it; coordinate `concept` (feature) names the
    commonest. Raises BadInput for one class only, or fewer samples than `top`.
    """
    names, member = classes(coefficient, labels)
    if not 1 <= top <= coefficient.sizes["sample"]:
        raise BadInput(f"top={top} of {coefficient.sizes['sample']} samples")
    y = coefficient.transpose("sample", "feature").values
    first = np.argsort(-y, axis=0, kind="stable")[:top]
    counts = member[:, first].sum(1)
    coords = {
        "feature": coefficient["feature"].values,
        "concept": ("feature", np.array(names)[counts.argmax(0)]),
    }
    return label(counts.max(0) / top, ("feature",), coords, name="purity", top=top)


def top_contexts(coefficient: xr.DataArray, feature: int, n: int = 8) -> xr.Dataset:
    """The n samples that have most of a feature: `value` and the sample's coordinates (rank,)."""
    one = coefficient.sel(feature=_known(coefficient, feature)).drop_vars("feature")
    best = np.argsort(-one.values, kind="stable")[:n]
    found = one.isel(sample=best).rename(sample="rank")
    return found.rename("value").to_dataset().assign_coords(rank=range(len(best)))


def top_neurons(directions: xr.DataArray, feature: int, n: int = 8) -> xr.DataArray:
    """The n neurons of largest weight in a feature, with their numbers: (rank,), signed weights.

    Weights are of the direction scaled to length 1.
    """
    z = directions.sel(feature=_known(directions, feature)).values
    z = z / max(float(np.linalg.norm(z)), 1e-30)
    best = np.argsort(-np.abs(z), kind="stable")[:n]
    coords = {"rank": range(len(best)), directions.dims[1]: ("rank", best)}
    return label(z[best], ("rank",), {str(k): v for k, v in coords.items()}, name="weight")


def written(model: Model, directions: xr.DataArray, layer: int) -> xr.DataArray:
    """What directions of neurons write: W_down z (feature, d_model), biases left out.

    Raises MissingSite for a model whose neurons are not read by one matrix, BadInput for another
    width.
    """
    path = model.anatomy.down
    model.anatomy.require("neurons")
    if path is None:
        raise MissingSite(f"{model.name}: no one matrix reads the neurons here")
    at = model.anatomy.layers(layer)[0]
    module = model.module.get_submodule(path.replace("{}", str(at)))
    weight = module.get_parameter("weight").detach().float().cpu()
    z = matrix(directions, "written", rows="feature").float()
    # GPT-2 keeps its matrices the other way round, [in, out].
    down = weight if type(module).__name__ == "Conv1D" else weight.T
    if z.shape[1] != down.shape[0]:
        raise BadInput(f"directions of {z.shape[1]} neurons; layer {at} has {down.shape[0]}")
    coords = {str(k): v for k, v in directions.coords.items() if "feature" in v.dims}
    return label(z @ down, ("feature", "d_model"), coords, name="written", layer=at)


def reaches_stream(model: Model) -> bool:
    """Whether W_down z is added to the stream as it is (no norm after the MLP, none after the sum).

    Then adding z to the neurons is adding W_down z to resid_post.
    """
    a = model.anatomy
    tap = a.taps.get("mlp_out")
    if a.down is None or tap is None or tap.end != "output" or a.stream_norms:
        return False
    return "mlp_out" in a.writes and tap.path in (a.down, a.down.rpartition(".")[0])


def vocabulary(model: Model, directions: xr.DataArray, layer: int, n: int = 8) -> xr.Dataset:
    """The n tokens a feature's direction raises most: W_U (gamma * W_down z), the logit lens of it.

    Returns `token_str` and `score` (feature, rank); the scores are logits of the direction scaled
    to length 1, through the final norm as it acts on it alone. Raises MissingSite for a model
    without an unembedding, and as `written` does.
    """
    f = torch.from_numpy(written(model, directions, layer).values)
    f = f / f.norm(dim=1, keepdim=True).clamp(min=1e-30)
    with torch.no_grad():
        z = model.unembed(f.to(model.device, model.dtype)).float().cpu()
    value, ids = z.topk(n, dim=1)
    words = [[model.tokenizer.decode([int(i)]) for i in row] for row in ids]
    coords = {"feature": directions["feature"].values, "rank": range(n)}
    score = label(value, ("feature", "rank"), coords, name="score", layer=layer)
    return xr.Dataset({"score": score, "token_str": (("feature", "rank"), np.array(words))})


def _known(array: xr.DataArray, feature: int) -> int:
    have = array["feature"].values.tolist()
    if feature not in have:
        raise BadInput(f"there is no feature {feature}; there are {have[0]}..{have[-1]}")
    return feature
