"""Two instruments: lift the stream by a constant, and freeze norms one by one."""

from __future__ import annotations

import base64
from typing import Any

import ipywidgets
import torch
import xarray as xr
from lwlab_widgets import HeatMap

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model
from lwlab.normalization.freezing import freeze
from lwlab.normalization.ln_removal import losses
from lwlab.normalization.places import norms
from lwlab.normalization.pre_rmsnorm import shifted
from lwlab.results import label, provenance


class ShiftPanel(ipywidgets.VBox):
    """Two sliders, c and a layer: x_l <- x_l + c 1 in several models, one row each.

    The map shows the probability of the likeliest next tokens (of the first model, unshifted); the
    line above it says by how much each model's last logits moved.
    """

    def __init__(
        self, models: dict[str, Model], prompt: str, *, limit: float = 2.0, top: int = 12
    ) -> None:
        """Open the panel; `models` by name, with one tokenizer, the first one the reference.

        Raises BadInput for no models or a limit that is not positive.
        """
        if not models or not limit > 0:
            raise BadInput("give at least one model, and a limit above 0")
        self.models, self.prompt = dict(models), prompt
        first = next(iter(models.values()))
        self._start = {k: shifted(m, prompt, 0.0)[0] for k, m in self.models.items()}
        p = next(iter(self._start.values())).softmax(-1)
        self.tokens = p.topk(min(top, len(p))).indices.tolist()
        self._words = [
            repr(first.tokenizer.decode([i]))[1:-1].replace(" ", "\u2423") for i in self.tokens
        ]
        self.c = ipywidgets.FloatSlider(
            value=0.0, min=-limit, max=limit, step=limit / 40, description="c",
            continuous_update=False,
        )  # fmt: skip
        self.layer = ipywidgets.IntSlider(
            value=0, min=0, max=first.n_layers - 1, description="layer", continuous_update=False
        )
        self.numbers = ipywidgets.HTML()
        self.map = HeatMap(self._picture(), x="token", y="variant")
        super().__init__([ipywidgets.HBox([self.c, self.layer]), self.numbers, self.map])
        for slider in (self.c, self.layer):
            slider.observe(lambda _: self._moved(), "value")
        self._write()

    def set(self, c: float | None = None, layer: int | None = None) -> ShiftPanel:
        """Move the sliders, as a hand does: `panel.set(c=1.5, layer=2)`."""
        if layer is not None:
            self.layer.value = layer
        if c is not None:
            self.c.value = c
        return self

    def moved(self) -> dict[str, float]:
        """Return max |z(c) - z(0)| over the last logits, by model."""
        return {k: float((z - self._start[k]).abs().max()) for k, z in self._logits().items()}

    def _logits(self) -> dict[str, torch.Tensor]:
        c, at = float(self.c.value), int(self.layer.value)
        if c == 0:
            return self._start
        return {k: shifted(m, self.prompt, c, at)[0] for k, m in self.models.items()}

    def _picture(self) -> xr.DataArray:
        p = torch.stack([z.float().softmax(-1)[self.tokens] for z in self._logits().values()])
        first = next(iter(self.models.values()))
        return label(
            p, ("variant", "token"), {"variant": list(self.models), "token": self._words},
            name="probability", **provenance(first, technique="pre-rmsnorm"),
            title=f"Next token, with {self.c.value:+.2f} on every coordinate of the stream",
        )  # fmt: skip

    def _moved(self) -> None:
        self.map.guard(lambda: self.map.update(self._picture()))
        self._write()

    def _text(self) -> str:
        rows = " · ".join(f"{k} {v:.2g}" for k, v in self.moved().items())
        return f"largest change of a logit at c = {self.c.value:+.2f}: {rows}"

    def _write(self) -> None:
        self.numbers.value = self._text()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        return _static(found, self.map, self._text())


class TogglePanel(ipywidgets.VBox):
    """One switch a norm: pressed, it divides by a constant; the loss of every token follows.

    The map shows the loss of each token of a text: as the model is, with the chosen norms frozen,
    and, where one was given, of a model that was tuned without norms. A setting seen before comes
    at once.
    """

    def __init__(
        self,
        model: Model,
        text: str,
        scales: xr.Dataset,
        *,
        reference: Model | None = None,
        first: bool = False,
    ) -> None:
        """Open the panel; `scales` as measured by `scales()`, `first` as in `freeze`.

        Raises BadInput for more than 40 norms (freeze those by name), and as `freeze` does.
        """
        names = [n.name for n in norms(model)]
        if len(names) > 40:
            raise BadInput(f"{model.name} has {len(names)} norms, too many switches: use freeze()")
        self.model, self.text, self.scales, self.first = model, text, scales, first
        self._seen: dict[frozenset[str], xr.DataArray] = {frozenset(): self._loss(model)}
        self._reference = None if reference is None else self._loss(reference)
        ids = model.tokens(text).ids[0].tolist()
        self._words = [str(model.tokenizer.decode([i])) for i in ids[1:]]
        self.switches = {
            name: ipywidgets.ToggleButton(
                value=False, description=name, tooltip=f"freeze the scale of {name}",
                layout=ipywidgets.Layout(width="84px"),
            )
            for name in names
        }  # fmt: skip
        self.numbers = ipywidgets.HTML()
        self.map = HeatMap(self._picture(), x="position", y="variant")
        row = ipywidgets.Box(
            [ipywidgets.Label("frozen"), *self.switches.values()],
            layout=ipywidgets.Layout(flex_flow="row wrap"),
        )
        super().__init__([row, self.numbers, self.map])
        for switch in self.switches.values():
            switch.observe(lambda _: self._moved(), "value")
        self._write()

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the norms whose switches are pressed."""
        return tuple(k for k, s in self.switches.items() if s.value)

    def set(self, **norms_: bool) -> TogglePanel:
        """Press switches, as clicks do: `panel.set(**{"ln_f": True})`; raises UnknownName."""
        for name, on in norms_.items():
            if name not in self.switches:
                raise UnknownName(f"no norm {name!r}{suggest(name, self.switches, limit=40)}")
            self.switches[name].value = on
        return self

    def losses(self) -> xr.DataArray:
        """Return the loss of each token with the chosen norms frozen, over (position)."""
        key = frozenset(self.frozen)
        if key not in self._seen:
            view = freeze(self.model, self.scales, self.frozen, first=self.first, check=False)
            self._seen[key] = self._loss(view)
        return self._seen[key]

    def _loss(self, model: Model) -> xr.DataArray:
        return losses(model, self.text).isel(prompt=0)

    def _rows(self) -> dict[str, xr.DataArray]:
        rows = {"as it is": self._seen[frozenset()], "frozen": self.losses()}
        return rows if self._reference is None else {**rows, "tuned without": self._reference}

    def _picture(self) -> xr.DataArray:
        rows = self._rows()
        grid = [r.values for r in rows.values()]
        coords = {
            "variant": list(rows),
            "position": rows["frozen"].position.values,
            "position_str": (("position",), self._words),
        }
        n = len(self.frozen)
        return label(
            grid, ("variant", "position"), coords, units="nats", long_name="loss of the token",
            **provenance(self.model, technique="ln-removal"),
            title=f"Loss of each token, {n} of {len(self.switches)} norms frozen",
        )  # fmt: skip

    def _moved(self) -> None:
        self.map.guard(lambda: self.map.update(self._picture()))
        self._write()

    def _text(self) -> str:
        means = " · ".join(f"{k} {float(v.mean()):.3f}" for k, v in self._rows().items())
        chosen = ", ".join(self.frozen) or "none"
        return f"frozen: {chosen}. Mean loss in nats a token: {means}"

    def _write(self) -> None:
        self.numbers.value = self._text()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        found = super()._repr_mimebundle_(**kwargs)
        return _static(found, self.map, self._text())


def _static(found: Any, heat: HeatMap, text: str) -> Any:
    """What a page without a kernel shows: the map as a picture, and the numbers in words."""
    data, meta = found if isinstance(found, tuple) else (found or {}, {})
    data = {k: v for k, v in data.items() if k != "text/html"}
    data["text/plain"] = f"{heat.static_text()} {text}."
    data["image/png"] = base64.b64encode(heat.static_png()).decode()
    return data, meta
