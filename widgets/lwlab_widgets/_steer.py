"""The steering dial: a direction added to the stream, and the text that comes, word by word."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import traitlets as t
import xarray as xr

from lwlab.errors import BadInput
from lwlab.tracing import engine
from lwlab.tracing.generate import generate

from ._asked import Asked, check_text, require_decoder
from ._base import front_end
from ._cards import card, wrapped
from ._live import Job

if TYPE_CHECKING:
    from lwlab.models import Model
    from lwlab.models.sites import Address

PROMPT = "I think that this film is"
LIMIT = 512


class _Stream:
    """What Hugging Face's `generate` hands each new token to; it can be told to stop there."""

    def __init__(self, model: Model, job: Job, trait: str, tokens: int) -> None:
        self._model, self._job, self._trait, self._tokens = model, job, trait, tokens
        self._ids: list[int] = []
        self._prompt = True

    def put(self, ids: torch.Tensor) -> None:
        if self._prompt:  # the first call brings the prompt
            self._prompt = False
            self._job.check()
            return
        self._ids += ids.flatten().tolist()
        text = str(self._model.tokenizer.decode(self._ids, skip_special_tokens=True))
        done = len(self._ids) / self._tokens
        self._job.show(progress=done, status=f"{self._trait} text", **{self._trait: text})

    def end(self) -> None:
        pass


def direction_of(
    model: Model, direction: npt.ArrayLike | torch.Tensor | xr.DataArray
) -> npt.NDArray[np.float32]:
    """Return a direction as float32 [layers, d_model]; one for all layers is repeated.

    Raises BadInput for another shape, values that are not finite, or a direction of no length.
    """
    d, n = int(model.d_model or 0), model.n_layers
    if isinstance(direction, xr.DataArray):
        loose = [x for x in direction.dims if direction.sizes[x] != 1 or x in ("layer", "d_model")]
        if "layer" in loose and list(direction.coords.get("layer", range(n))) != list(range(n)):
            raise BadInput(f"the direction's layers are not 0..{n - 1}: pick one, or give all")
        direction = (
            direction.squeeze().transpose(..., "d_model") if "d_model" in loose else direction
        )
        direction = direction.values
    if isinstance(direction, torch.Tensor):
        direction = direction.detach().cpu().float().numpy()
    try:
        v = np.asarray(direction, np.float32)
    except (TypeError, ValueError):
        raise BadInput("the direction is not an array of numbers") from None
    if v.shape not in ((d,), (n, d)):
        raise BadInput(
            f"the direction has shape {v.shape}; {model.name} needs ({d},), or ({n}, {d}) with one "
            "a layer"
        )
    if not np.isfinite(v).all():
        raise BadInput("the direction holds NaN or infinity")
    if not np.any(v):
        raise BadInput("the direction is zero: it points nowhere")
    return np.array(np.broadcast_to(v, (n, d)))


class SteeringDial(Asked):
    """Add strength x direction to the stream after one layer, and read both texts.

    h'_l = h_l + strength * v at every position, l = `layer`, with v as it was given (one a layer,
    or one for all). `layer`, `strength`, `prompt` and `tokens` can be set; `base` and `steered` are
    the texts, which grow token by token; decoding is greedy. `share` = |strength v| / the median
    norm of the stream there, over the prompt's positions.
    """

    _esm, _css = front_end("steer")
    prompt = t.Unicode(PROMPT).tag(sync=True)
    layer = t.Int(0).tag(sync=True)
    n_layers = t.Int(1).tag(sync=True)
    strength = t.Float(0.0).tag(sync=True)
    limit = t.Float(1.0).tag(sync=True)
    tokens = t.Int(24).tag(sync=True)
    base = t.Unicode("").tag(sync=True)
    steered = t.Unicode("").tag(sync=True)
    share = t.Float(0.0).tag(sync=True)
    ms = t.Float(0.0).tag(sync=True)

    def __init__(
        self,
        model: Model,
        direction: npt.ArrayLike | torch.Tensor | xr.DataArray,
        layer: int | None = None,
        prompt: str = PROMPT,
        *,
        strength: float = 0.0,
        limit: float | None = None,
        tokens: int = 24,
        title: str = "Steering dial",
    ) -> None:
        """`layer`: the middle one by default. `limit`: the slider's ends; by default what is twice
        as long as the prompt's stream at `layer`. Raises BadInput for a direction that does not
        fit."""
        require_decoder(model, "the steering dial")
        self.model, self.direction = model, direction_of(model, direction)
        layer = model.n_layers // 2 if layer is None else model.anatomy.layers(layer)[0]
        self._base: tuple[str, int, str] | None = None
        self._norms: tuple[str, npt.NDArray[np.float64]] | None = None
        if not np.any(self.direction[layer]):
            raise BadInput(f"the direction is zero at layer {layer}")
        if limit is None:
            check_text(model, prompt, "the prompt", LIMIT)
            length = float(np.linalg.norm(self.direction[layer]))
            limit = float(f"{2 * self._stream(prompt)[layer] / length:.2g}")
        super().__init__(
            title=title, subtitle=f"{model.name}: strength × direction added to resid_post",
            prompt=prompt, layer=layer, n_layers=model.n_layers, strength=strength,
            limit=max(limit, abs(strength)), tokens=tokens,
        )  # fmt: skip
        self.observe(lambda _: self.ask(), ["prompt", "layer", "strength", "tokens"])
        self.ask()

    @t.validate("layer")
    def _layer(self, proposal: Any) -> int:
        if not 0 <= proposal["value"] < self.model.n_layers:
            raise BadInput(f"there is no layer {proposal['value']} of {self.model.n_layers}")
        return int(proposal["value"])

    @t.validate("strength")
    def _strength(self, proposal: Any) -> float:
        if not np.isfinite(proposal["value"]):
            raise BadInput(f"strength={proposal['value']}: give a finite number")
        return float(proposal["value"])

    @t.validate("tokens")
    def _tokens(self, proposal: Any) -> int:
        if not 1 <= proposal["value"] <= 200:
            raise BadInput(f"tokens={proposal['value']}: ask for 1 to 200")
        return int(proposal["value"])

    def ask(self) -> None:
        """Generate both texts as the dial stands, off the kernel's thread."""
        if not self._closed:
            asked = self.prompt, self.layer, self.strength, self.tokens
            self.begin(lambda job: self._run(job, *asked))

    def _stream(self, prompt: str) -> npt.NDArray[np.float64]:
        """Median norm of the stream after each layer over the prompt's positions."""
        if self._norms is None or self._norms[0] != prompt:
            at = [self.model.anatomy.address(f"resid_post.{i}") for i in range(self.model.n_layers)]
            read = engine.run(self.model, prompt, at, logits=None).values
            norms = [float(read[a].float().norm(dim=-1).median()) for a in at]
            self._norms = prompt, np.array(norms)
        return self._norms[1]

    def _run(self, job: Job, prompt: str, layer: int, strength: float, tokens: int) -> None:
        start, model = time.perf_counter(), self.model
        check_text(model, prompt, "the prompt", LIMIT)
        added = strength * self.direction[layer]
        share = float(np.linalg.norm(added)) / max(float(self._stream(prompt)[layer]), 1e-30)
        job.show(share=share, steered="")
        if self._base is None or self._base[:2] != (prompt, tokens):
            job.show(base="")
            self._base = prompt, tokens, self._text(job, "base", prompt, tokens, None)
        job.show(base=self._base[2])
        if strength:
            edits: dict[str | Address, Any] = {
                f"resid_post.{layer}": lambda h: h + torch.as_tensor(added).to(h)
            }
            text = self._text(job, "steered", prompt, tokens, edits)
        else:
            text = self._base[2]
        job.show(steered=text, ms=round(1000 * (time.perf_counter() - start)))

    def _text(
        self,
        job: Job,
        trait: str,
        prompt: str,
        tokens: int,
        edits: Mapping[str | Address, Any] | None,
    ) -> str:
        stream = _Stream(self.model, job, trait, tokens)
        found = generate(self.model, prompt, tokens, edits, streamer=stream)
        return str(found.text.values[0])

    def static_text(self) -> str:
        """Return the prompt and both texts."""
        return (
            f"{self.title}: {self.model.name}, strength {self.strength:g} at layer {self.layer} "
            f"({self.share:.2g} of the stream). {self.prompt!r} goes on: {self.base!r}; steered: "
            f"{self.steered!r}." + (f" {self.error}" if self.error else "")
        )

    def static_png(self) -> bytes:
        """Return both texts side by side."""
        sub = f"{self.prompt[:70]!r}: strength {self.strength:g} at layer {self.layer}"
        columns = [("as it is", wrapped(self.base)), ("steered", wrapped(self.steered))]
        return card(self.title, sub, columns, 330)


def steer(
    model: Model,
    direction: npt.ArrayLike | torch.Tensor | xr.DataArray,
    layer: int | None = None,
    prompt: str = PROMPT,
    **options: Any,
) -> SteeringDial:
    """Return a `SteeringDial`: a direction, its layer and strength, and both texts, streamed."""
    return SteeringDial(model, direction, layer, prompt, **options)
