"""Until which depth is each input token still needed? Erase it at (layer, token) and see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import xarray as xr

from lwlab.depth.skips import PAPER
from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.sites import Address
from lwlab.models.tokens import Tokens
from lwlab.results import label, provenance
from lwlab.tracing import engine, labels
from lwlab.tracing._nnsight import lock
from lwlab.tracing.blocks import Blocks, capture, check_replayable, one_by_one


def token_erasure(
    model: Model,
    prompt: str,
    answer: str = "",
    *,
    reference: Prompts,
    layers: Iterable[int] | int | None = None,
    max_rows: int = 256,
) -> xr.Dataset:
    """Replace the stream of one token at one layer by that layer's mean stream, for every pair.

    effect[l, t] = max over the positions that predict `answer` (the last position where it is
    empty) of ||p - p~||_2, p the next-token distribution (at most sqrt 2). The mean stream of a
    layer is over all positions, position 0 too, of the `reference` texts. Layer l is the stream
    entering block l; l = n_layers is what the final norm reads, where only the predicting positions
    themselves can matter. arXiv:2505.13898.

    Returns `effect` (layer, position) with the tokens of prompt + answer. At most `max_rows`
    rows run at once. Raises BadInput for an empty prompt or reference, a layer out of range
    (0..n_layers), or a model whose blocks cannot be run one by one.
    """
    check_replayable(model)
    n = model.n_layers
    wanted = list(range(n + 1)) if layers is None else _layers(model, layers)
    blocks = capture(model, prompt + answer)
    read = answer_positions(model, prompt, answer)
    mean = mean_streams(model, reference)
    length = blocks.n_positions
    effect = torch.zeros(len(wanted), length)
    group = max(1, max_rows // length)
    with lock(model), torch.no_grad():
        for start in range(0, len(wanted), group):
            chunk = wanted[start : start + group]
            births = {layer: _erased(blocks, layer, mean[layer]) for layer in chunk}
            for layer, rows, _ in blocks.run(births):
                if layer == n:
                    change = blocks.output_change(rows, read)
                    effect[start : start + len(chunk)] = change.amax(-1).view(-1, length).cpu()
    coords = {"layer": wanted, **token_coords(blocks.tokens)}
    array = label(effect, ("layer", "position"), coords).drop_attrs()
    array.attrs["long_name"] = "change of the output distribution (L2)"
    return xr.Dataset({"effect": array}).assign_attrs(
        provenance(
            model, technique="token erasure", paper=PAPER, prompt=prompt, answer=answer,
            reference=len(reference), read=read.tolist(),
        )
    )  # fmt: skip


def answer_positions(model: Model, prompt: str, answer: str) -> torch.Tensor:
    """Positions of `prompt + answer` whose next token belongs to the answer, [k].

    The last position where `answer` is empty. Raises BadInput where the prompt's tokens are not
    kept when the answer follows (a tokenizer that joins across the seam).
    """
    whole, head = model.tokens(prompt + answer), model.tokens(prompt)
    n, k = int(whole.lengths[0]), int(head.lengths[0])
    if not answer:
        return torch.tensor([n - 1])
    if n <= k or whole.ids[0, :k].tolist() != head.ids[0, :k].tolist():
        raise BadInput(
            f"the tokens of {prompt!r} change when {answer!r} follows: "
            f"{list(whole.strings[0])}; put the space between them into the other one"
        )
    return torch.arange(k - 1, n - 1)


def token_coords(tokens: Tokens) -> dict[str, Any]:
    """Coordinates `position` and `token_str` (position) of a single prompt."""
    coords = labels.position_coords(tokens, None)
    return {"position": coords["position"], "token_str": ("position", coords["token_str"][1][0])}


def mean_streams(model: Model, texts: Prompts) -> torch.Tensor:
    """Mean of the stream entering each block, and of the last, over all positions: [L + 1, d]."""
    n = model.n_layers
    reads = [*(Address("resid_pre", i) for i in range(n)), Address("resid_post", n - 1)]
    total, count = torch.zeros(n + 1, model.d_model or 0), 0
    for one in one_by_one(model.tokens(texts)):
        trace = engine.run(model, one, reads, logits=None)
        total += torch.stack([trace.values[r][0].float().sum(0).cpu() for r in reads])
        count += trace.values[reads[0]].shape[1]
    return total / count


def _layers(model: Model, layers: Iterable[int] | int) -> list[int]:
    wanted = sorted({layers} if isinstance(layers, int) else set(layers))
    bad = [x for x in wanted if not 0 <= x <= model.n_layers]
    if bad or not wanted:
        raise BadInput(
            f"layers={wanted}: streams of {model.name} are 0..{model.n_layers} "
            f"({model.n_layers} is what the final norm reads)"
        )
    return wanted


def _erased(blocks: Blocks, layer: int, mean: torch.Tensor) -> torch.Tensor:
    """Return one row for each position, the stream replaced there: [positions, positions, d]."""
    h = blocks.streams[layer][0]
    here = torch.eye(len(h), dtype=torch.bool, device=h.device)[:, :, None]
    return torch.where(here, mean.to(h), h)
