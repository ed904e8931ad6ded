"""Every head of a model by a score; a click shows where it looks and what it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import traitlets as t

from lwlab.charts import labels as lab
from lwlab.charts.palette import SEQUENTIAL
from lwlab.errors import BadInput

from ._base import front_end
from ._heatmap import HeatMap, Pick
from ._lens import _tokens
from ._live import Job, Live
from ._picture import draw_maps, svg_to_png
from ._tables import table, words

if TYPE_CHECKING:
    import xarray as xr

    from lwlab.models.model import Model


class HeadGrid(HeatMap, Live):
    """Layers x heads of a score. With a model and a prompt, a click opens a head.

    An opened head shows its attention pattern (query x key) on `prompt` (`lw.cache`) and what it
    writes at the last token (`lw.attribution.wiring`: W_O z), decoded by the final norm and the
    unembedding as if it stood alone: `table` lists the tokens raised and lowered most. `prompt`
    can be typed or set from Python, which opens the picked head again. `attention()` is the
    pattern as numbers.
    """

    _esm, _css = front_end("heatmap", "heads")
    prompt = t.Unicode("").tag(sync=True)
    pattern = t.Bytes(b"").tag(sync=True)  # float32 [query, key]
    pattern_labels = t.List(t.Unicode()).tag(sync=True)
    pattern_title = t.Unicode("").tag(sync=True)
    pattern_stops = t.List(t.Unicode(), list(SEQUENTIAL)).tag(sync=True)
    table = t.Dict().tag(sync=True)
    opens = t.Bool(False).tag(sync=True)

    def __init__(
        self,
        scores: xr.DataArray | xr.Dataset,
        model: Model | None = None,
        prompt: str | None = None,
        *,
        k: int = 8,
        max_tokens: int = 128,
        **options: Any,
    ) -> None:
        """Show `scores` (layer, head), a third dimension as maps; options as in `HeatMap`.

        Raises BadInput for other dimensions or layers and heads the model does not have;
        MissingSite for a model whose attention patterns cannot be read.
        """
        da = lab.as_array(scores, "HeadGrid")
        if not {"layer", "head"} <= set(map(str, da.dims)):
            raise BadInput(f"a head grid needs dimensions layer and head, got {dict(da.sizes)}")
        self.model, self.k, self.max_tokens = model, k, max_tokens
        super().__init__(da, x="head", y="layer", **options)
        self.prompt = prompt or ""
        if model is None:
            return
        model.anatomy.require(["attn_pattern", "head_out"])
        model.anatomy.layers([int(v) for v in self._rows.values])
        beyond = [int(v) for v in self._columns.values if not 0 <= int(v) < (model.n_heads or 0)]
        if beyond:
            raise BadInput(
                f"head {beyond[0]}: {model.name} has heads 0..{(model.n_heads or 0) - 1}"
            )
        self.opens = self.listening = True
        self._callbacks.append(self._open)
        self.observe(lambda _: self._again(), "prompt")

    def attention(self) -> npt.NDArray[np.float32]:
        """Return the opened head's pattern, [query, key]; empty before any was opened."""
        n = len(self.pattern_labels)
        return np.frombuffer(self.pattern, np.float32).reshape(n, n)

    def _again(self) -> None:
        if self.picked:
            row, column = self.picked["row"], self.picked["column"]
            place = int(self._rows.values[row]), int(self._columns.values[column])
            self.begin(lambda job: self._look(job, *place))

    def _open(self, pick: Pick) -> None:
        self.begin(lambda job: self._look(job, int(pick["layer"]), int(pick["head"])))

    def _look(self, job: Job, layer: int, head: int) -> None:
        import torch

        from lwlab.attribution.wiring import Wiring
        from lwlab.tracing import cache

        model = self.model
        assert model is not None
        tokens = _tokens(model, self.prompt, self.max_tokens)
        job.tell(-1.0, f"running layer {layer}, head {head}…")
        kept = cache(model, tokens, ["attn_pattern", "head_out"], [layer])
        pattern = kept["attn_pattern"].isel(prompt=0, layer=0, head=head)
        job.check()
        z = torch.as_tensor(kept["head_out"].isel(prompt=0, layer=0).values)[None, -1:]
        write = Wiring(model).shares(layer, z.to(model.device))[0, head, 0]
        with torch.no_grad():
            logits = model.unembed(write.to(model.dtype)).float()
        logits = logits - logits.mean()  # a constant changes no probability
        k = min(self.k, len(logits))
        up, down = logits.topk(k), (-logits).topk(k)
        names = words(model, up.indices), words(model, down.indices)
        lines = [
            (names[0][i], f"{up.values[i]:+.2f}", names[1][i], f"{-down.values[i]:+.2f}")
            for i in range(k)
        ]
        strings = list(tokens.strings[0])
        title = f"Layer {layer}, head {head}: where each query looks"
        # What cannot be said in words is where the last token looks: the teacher's first question.
        last = pattern.values[-1]
        most = int(np.argmax(last))
        axis = lab.label_tokens(strings, range(len(strings)))
        said = (
            f"layer {layer}, head {head}: the last token looks most at {axis[most]} "
            f"({last[most]:.2f}); its write raises “{names[0][0]}” most"
        )
        job.show(
            pattern=np.ascontiguousarray(pattern.values, np.float32).tobytes(),
            pattern_labels=axis, pattern_title=title, answer=said,
            table=table(
                f"What layer {layer}, head {head} writes at the last token, alone in the stream",
                ("raised", "logit", "lowered", "logit"), lines,
            ),
        )  # fmt: skip

    def static_png(self) -> bytes:
        """Return the opened head's pattern once there is one, else the grid of scores."""
        if not self.pattern:
            return super().static_png()
        return svg_to_png(
            draw_maps(
                [("", self.attention().astype(float))],
                rows=self.pattern_labels, columns=self.pattern_labels,
                row_title="Query", column_title="Key", value_title="attention",
                title=self.pattern_title, subtitle=self.subtitle, domain=(0.0, 1.0),
                stops=tuple(self.pattern_stops), lower=False,
            )
        )  # fmt: skip

    def static_text(self) -> str:
        """Return the extremes of the scores, and the opened head's tokens, in words."""
        rows = self.table.get("rows", [])
        said = "; ".join(f"{r[0]} {r[1]}" for r in rows)
        return super().static_text() + (f" Raised: {said}." if said else "")
