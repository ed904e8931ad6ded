"""A forward pass opened at every block, to be run again from any layer on many rows.

The intervention "change the stream entering layer l" leaves everything before l as it was, so only
the blocks from l on are run, and interventions at different layers share one growing batch: a row
joins the batch at its layer. For one intervention at each of L layers that is half the work of L
whole forwards, in matrix products large enough to be fast. Any architecture whose blocks map a
stream to a stream can be replayed; that it is replayed right is checked for each prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lwlab.errors import BadInput
from lwlab.models.model import Model, Prompts
from lwlab.models.tokens import Tokens
from lwlab.tracing import engine
from lwlab.tracing._nnsight import lock

_TOLERANCE = 1e-3
CELLS = 2**22  # probabilities held at once: 16 MB, and as much for each step on them
Call = tuple[tuple[Any, ...], dict[str, Any]]
Swap = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Blocks:
    """What a forward pass of prompts of one length left: streams, and how each block was called.

    `streams[l]` is h_l [prompts, positions, d_model], the stream entering layer l;
    `streams[n_layers]` is what the final norm reads. `calls[l]` are the block's other arguments
    (masks, rotary tables), the same for all prompts of one length.
    """

    model: Model
    tokens: Tokens
    streams: tuple[torch.Tensor, ...]
    calls: tuple[Call, ...]

    @property
    def n_positions(self) -> int:
        """Tokens of each prompt."""
        return int(self.tokens.ids.shape[1])

    def write(self, layer: int) -> torch.Tensor:
        """c_l = h_{l+1} - h_l [prompts, positions, d_model]: what layer l adds to the stream."""
        return self.streams[layer + 1] - self.streams[layer].to(self.streams[layer + 1].device)

    def block(
        self, layer: int, rows: torch.Tensor, swap: Mapping[str, Swap] | None = None
    ) -> torch.Tensor:
        """Run block `layer` on `rows` [k, positions, d_model]; return the streams leaving it.

        `swap` maps a site the block writes ("attn_out") to a function of what it gave, both
        [k, positions, d_model].
        """
        args, kwargs = self.calls[layer]
        k = len(rows)
        rows = rows.to(self.streams[layer].device)
        n = len(self.tokens)
        with _swapped(self.model, layer, swap or {}, k):
            out = self.model.module.get_submodule(f"{self.model.anatomy.blocks}.{layer}")(
                rows, *_spread(args, n, k), **_spread(kwargs, n, k)
            )
        return engine.tensor_of(out)

    def run(
        self, births: Mapping[int, torch.Tensor]
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Run rows that join at different layers; yield (layer, entering, leaving) for each block.

        `births[l]` [k, positions, d_model] are streams that enter layer l (l = n_layers: only the
        last yield sees them). Rows keep the order in which they joined. Blocks before the first
        birth are not run. The last yield is (n_layers, rows, rows), the final streams.
        """
        n = self.model.n_layers
        live: torch.Tensor | None = None
        for layer in range(n + 1):
            if layer in births:
                new = births[layer]
                live = new if live is None else torch.cat([live.to(new.device), new])
            if live is None:
                continue
            if layer == n:
                yield layer, live, live
                return
            after = self.block(layer, live)
            yield layer, live, after
            live = after

    def probabilities(
        self, rows: torch.Tensor, positions: torch.Tensor | slice = slice(None)
    ) -> torch.Tensor:
        """softmax(U N(h)) of final streams [k, positions, d_model] at some positions."""
        return self.model.unembed(rows[:, positions]).float().softmax(-1)

    def output_change(self, rows: torch.Tensor, positions: torch.Tensor | slice) -> torch.Tensor:
        """||p~ - p||_2 of the outputs of final streams against the prompts' own.

        rows: [k * prompts, positions, d_model], prompts innermost; returns [k, prompts, positions
        chosen]. A few rows at a time, so that memory does not grow with their number.
        """
        n = len(self.tokens)
        out = []
        for j in range(n):
            base = self.probabilities(self.streams[-1][j : j + 1], positions)
            parts = torch.split(rows[j::n], max(1, CELLS // base.numel()))
            change = [(self.probabilities(x, positions) - base).norm(dim=-1) for x in parts]
            out.append(torch.cat(change))
        return torch.stack(out, 1)


def together(tokens: Tokens, rows: Sequence[int]) -> Tokens:
    """Take prompts of one length out of a batch, without padding."""
    ids = torch.stack([tokens.ids[i][tokens.mask[i].bool()] for i in rows])
    strings = tuple(tokens.strings[i] for i in rows)
    return Tokens(ids, torch.ones_like(ids), strings, tuple(tokens.texts[i] for i in rows))


def one_by_one(tokens: Tokens) -> list[Tokens]:
    """Split a batch into its prompts, each without padding."""
    return [together(tokens, [i]) for i in range(len(tokens))]


def capture(model: Model, prompts: Prompts) -> Blocks:
    """Run prompts of one length and keep their streams and the arguments of the blocks.

    Raises BadInput for a model whose blocks cannot be run one by one, or unequal prompts.
    """
    check_replayable(model)
    data = engine.batch(model, prompts)
    if data.tokens is None:
        raise BadInput("running blocks one by one needs prompts made of tokens")
    data.tokens.require_equal_length("running blocks one by one")
    calls: list[Call] = []
    streams: list[torch.Tensor] = []

    def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        stream = args[0] if args else kwargs.pop("hidden_states")
        streams.append(stream.clone())  # some blocks add in place
        calls.append((args[1:], kwargs))

    def after(_module: Any, _args: Any, output: Any) -> None:
        streams.append(engine.tensor_of(output))

    stack = model.module.get_submodule(model.anatomy.blocks)
    layers = list(stack.children())
    with lock(model), torch.no_grad(), contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.callback(layers[-1].register_forward_hook(after).remove)
        model.module(*data.args, **data.inputs, **engine.keep_last(model, data))
    blocks = Blocks(model, data.tokens, tuple(streams), tuple(calls))
    verify(blocks)
    return blocks


def check_replayable(model: Model) -> None:
    """Raise BadInput for a model whose blocks cannot be called one after another on a stream."""
    if model.kind not in ("decoder", "encoder") or "resid_post" not in model.anatomy.taps:
        raise BadInput(
            f"{model.name} is a {model.kind} model; running blocks one by one on prompts needs a "
            "decoder or an encoder of text"
        )


def verify(blocks: Blocks) -> None:
    """Compare the first and last block, run on more rows, with what they did in the pass.

    Raises BadInput where they differ: the blocks keep a state.
    """
    with lock(blocks.model), torch.no_grad():
        for layer in {0, blocks.model.n_layers - 1}:
            again = blocks.block(layer, torch.cat([blocks.streams[layer]] * 2))
            known = torch.cat([blocks.streams[layer + 1]] * 2)
            error = float((again - known).norm() / known.norm().clamp(min=1e-12))
            if not error < _TOLERANCE:
                raise BadInput(
                    f"{blocks.model.name}: block {layer} run again gives another result (off by "
                    f"{error:.2g} of its size); it keeps a state, so it cannot be run by rows"
                )


def _spread(value: Any, n: int, k: int) -> Any:
    """Give captured tensors of n prompts (or one for all) the batch axis of k rows."""
    if isinstance(value, torch.Tensor):
        batched = value.ndim > 1 and value.shape[0] in (1, n)
        return value[:1].expand(k, *value.shape[1:]) if batched else value
    if isinstance(value, tuple | list):
        return type(value)(_spread(v, n, k) for v in value)
    if isinstance(value, dict):
        return {key: _spread(v, n, k) for key, v in value.items()}
    return value


@contextlib.contextmanager
def _swapped(model: Model, layer: int, swap: Mapping[str, Swap], k: int) -> Iterator[None]:
    with contextlib.ExitStack() as hooks:
        for site, change in swap.items():
            module = model.module.get_submodule(model.anatomy.taps[site].at(layer))

            def put(_m: Any, _a: Any, out: Any, change: Swap = change) -> Any:
                given = engine.tensor_of(out)
                # OPT hands its MLP [rows * positions, features]
                new = change(given.reshape(k, -1, given.shape[-1])).reshape(given.shape)
                return (new, *out[1:]) if isinstance(out, tuple) else new

            hooks.callback(module.register_forward_hook(put).remove)
        yield
