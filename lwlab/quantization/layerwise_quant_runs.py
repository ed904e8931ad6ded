"""Many allocations of bits on one model: rounded layers that come and go, and texts scored often.

`fake_quantized` rounds once and reports; a sweep over orders of layers sets thirty allocations one
after another. `Rounder` changes only the layers that differ from the last one, and `Scorer` runs a
text only from the first rounded layer on.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from lwlab.errors import BadInput, UnknownName, suggest
from lwlab.models.model import Model, Prompts
from lwlab.quantization.calibrate import Moments
from lwlab.quantization.error import checked, megabytes
from lwlab.quantization.gptq import gptq
from lwlab.quantization.matrices import matrices
from lwlab.tracing import lock
from lwlab.tracing.blocks import Blocks, capture, check_replayable, together

WHOLE = 16  # weights as they are, counted as 16 bits each
BASES = ("rtn", "gptq")
SPILL = 256e6  # bytes of matrices beyond which originals wait on disk
Key = tuple[int, str]


def width(bits: object, what: str = "bits") -> int:
    """Check one bit-width: 1..8, or 16 for weights left as they are; raise BadInput."""
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in (*range(1, 9), WHOLE):
        raise BadInput(f"{what}={bits!r}: give 1..8, or {WHOLE} for weights as they are")
    return bits


class Rounder:
    """The matrices of a model's blocks, at any bits a layer; `back` restores them bit for bit.

    base "rtn" rounds to nearest; "gptq" runs GPTQ with `moments` (from `hessians`, of the model as
    it is) and keeps what it found for each width. `damp` is ten times GPTQ's usual, because a
    notebook calibrates on fewer tokens than a matrix has inputs. Use it as a context manager: the
    model's lock is held, and the weights come back at the end. The originals of what is rounded are
    kept in memory, or with `spill` in a temporary file (None: where the matrices exceed 256 MB).

    Raises BadInput for a base without what it needs, a group that does not divide, or layers that
    share weights; UnknownName for a base or module.
    """

    def __init__(
        self,
        model: Model,
        group: int | None = 64,
        *,
        symmetric: bool = False,
        base: str = "rtn",
        moments: Moments | None = None,
        modules: str | Iterable[str] | None = None,
        damp: float = 0.1,
        spill: bool | None = None,
    ) -> None:
        if base not in BASES:
            raise UnknownName(f"no base quantiser {base!r}{suggest(base, BASES)}")
        if base == "gptq" and moments is None:
            raise BadInput('base="gptq" needs moments=hessians(model, texts, layers=...)')
        self.model, self.group, self.symmetric = model, group, symmetric
        self.base, self.moments, self.damp = base, moments or {}, damp
        self.parts = matrices(model, None, modules)
        if len({m.weight.data_ptr() for m in self.parts}) < len(self.parts):
            raise BadInput(f"{model.name}: layers share weights, so none has bits of its own")
        for m in self.parts:
            checked(m, 1, group)
            if m.weight.is_meta:
                raise BadInput(f"layer {m.layer}, {m.name}: weights are not loaded (meta device)")
        self.now: dict[int, int] = {}
        size = sum(m.weight.nbytes for m in self.parts)
        self.spill = size > SPILL if spill is None else spill
        self._kept: dict[Key, torch.Tensor | None] = {}
        self._file: Any = None
        self._at: dict[Key, int] = {}
        self._end = 0
        self._found: dict[tuple[int, str, int], torch.Tensor] = {}
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Rounder:
        self._lock.enter_context(lock(self.model))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.set({})
        finally:
            self._file, self._at, self._end = None, {}, 0
            self._lock.close()

    def set(self, bits: Mapping[int, int]) -> int:
        """Round each layer to its bits, the others not at all; return the first rounded layer.

        Returns n_layers when nothing is rounded. Raises BadInput for widths or layers that are
        not there, a layer whose moments are missing, or weights that cannot be stored.
        """
        wanted = {self.model.anatomy.layers(i)[0]: width(b) for i, b in bits.items()}
        wanted = {i: b for i, b in wanted.items() if b != WHOLE}
        if self.base == "gptq":
            lacking = {m.layer for m in self.parts if (m.layer, m.name) not in self.moments}
            for layer in sorted(lacking & set(wanted)):
                raise BadInput(f"moments lack layer {layer}: add it to layers= of hessians")
        with torch.no_grad():
            for m in self.parts:
                b, key = wanted.get(m.layer, WHOLE), (m.layer, m.name)
                if b == self.now.get(m.layer, WHOLE):
                    continue
                w = m.weight
                if b == WHOLE:
                    w.copy_(self._original(key, w))
                    del self._kept[key]
                    continue
                if key not in self._kept:
                    self._keep(key, w)
                w.copy_(self._rounded(key, self._original(key, w), b))
        self.now = wanted
        return min(wanted, default=self.model.n_layers)

    def _keep(self, key: Key, w: torch.Tensor) -> None:
        if not self.spill:
            self._kept[key] = w.clone()
            return
        if self._file is None:
            file = tempfile.TemporaryFile(prefix="lwlab-weights-")  # noqa: SIM115 (closed in __exit__)
            self._file = self._lock.enter_context(file)
        if key not in self._at:
            self._at[key], self._end = self._end, self._end + w.nbytes
        self._file.seek(self._at[key])
        self._file.write(w.contiguous().cpu().view(torch.uint8).numpy().data)
        self._kept[key] = None

    def _original(self, key: Key, w: torch.Tensor) -> torch.Tensor:
        """The weights of a rounded matrix as they were; `w` says their shape, type and device."""
        kept = self._kept[key]
        if kept is not None:
            return kept
        assert self._file is not None
        out = torch.empty(w.shape, dtype=w.dtype)
        self._file.seek(self._at[key])
        self._file.readinto(out.view(torch.uint8).numpy().data)
        return out.to(w.device)

    def _rounded(self, key: Key, w: torch.Tensor, bits: int) -> torch.Tensor:
        from lwlab_kernels.quant import fake_quant

        if self.base == "gptq":
            found = self._found.get((*key, bits))
            if found is None:
                found = gptq(
                    w, self.moments[key], bits, self.group, self.symmetric, damp=self.damp
                ).weight
                self._found[*key, bits] = found
            return found
        done = fake_quant(w, bits, self.group, self.symmetric)
        if not bool(done.scale.isfinite().all()):
            raise BadInput(f"layer {key[0]}, {key[1]}: a group holds NaN, or exceeds float16")
        return done.weight

    def megabytes(self, bits: Mapping[int, int]) -> float:
        """Packed size of the matrices at these bits, 10^6 bytes; 16 bits where not named."""
        total = 0.0
        for m in self.parts:
            b, w = bits.get(m.layer, WHOLE), m.weight
            total += 2e-6 * w.numel() if b == WHOLE else megabytes(w, b, self.group, self.symmetric)
        return total


class Scorer:
    """Texts to be scored again and again by a model whose later layers change.

    The streams entering each layer are kept from one pass of the model as it is: n_layers x tokens
    x d_model floats. `nll(first)` runs only layers `first`, first + 1, ... and the unembedding.
    Raises BadInput for a model that is no decoder, or texts under two tokens.
    """

    def __init__(self, model: Model, prompts: Prompts, max_tokens: int = 256) -> None:
        if model.kind != "decoder":
            raise BadInput(f"{model.name} is of kind {model.kind!r}; only decoders predict text")
        check_replayable(model)
        tokens = model.tokens(prompts)
        lengths = [min(int(n), max_tokens) for n in tokens.lengths]
        if min(lengths) < 2:
            short = lengths.index(min(lengths))
            raise BadInput(f"text {short} has {lengths[short]} token(s) to score: 2 are needed")
        own = [ids[mask.bool()] for ids, mask in zip(tokens.ids, tokens.mask)]
        self.model = model
        self.tokens = np.array(lengths) - 1
        self._base: NDArray[np.float64] | None = None
        self._parts: list[tuple[list[int], Blocks]] = []
        for length in sorted(set(lengths)):
            rows = [i for i, n in enumerate(lengths) if n == length]
            ids = torch.stack([own[i][:length] for i in rows])
            self._parts.append(
                (rows, capture(model, together(model.tokens(ids), range(len(rows)))))
            )

    @classmethod
    def of(cls, model: Model, prompts: Prompts | Scorer, max_tokens: int = 256) -> Scorer:
        """Return a Scorer as it is, or make one; BadInput for one of another model."""
        if not isinstance(prompts, Scorer):
            return cls(model, prompts, max_tokens)
        if prompts.model.module is not model.module:
            raise BadInput(f"this Scorer holds the streams of {prompts.model.name}")
        return prompts

    @property
    def base(self) -> NDArray[np.float64]:
        """Nats a predicted token, [prompts], of the model as it was at the start."""
        if self._base is None:
            self._base = self.nll(self.model.n_layers)
        return self._base.copy()

    def nll(self, first: int = 0, without: Collection[int] = ()) -> NDArray[np.float64]:
        """Nats a predicted token, [prompts], when layers before `first` are as at the start.

        Layers in `without` are left out: the stream passes them by.
        """
        first = min(first, *without, self.model.n_layers)
        out = np.zeros(len(self.tokens))
        with lock(self.model), torch.no_grad():
            for rows, blocks in self._parts:
                stream = blocks.streams[first]
                for layer in range(first, self.model.n_layers):
                    stream = stream if layer in without else blocks.block(layer, stream)
                for i, h, ids in zip(rows, stream, blocks.tokens.ids):
                    z = self.model.unembed(h[None, :-1])[0].float()
                    out[i] = float(functional.cross_entropy(z, ids[1:]))
        return out

    def __len__(self) -> int:
        return len(self.tokens)


@contextlib.contextmanager
def installed(model: Model, weights: Mapping[Key, torch.Tensor]) -> Iterator[int]:
    """Within the block, the matrices named by (layer, module) hold `weights`; then their own.

    Yields the first layer that changed (n_layers for none). The model's lock is held. Raises
    BadInput for a matrix that is not there or another shape.
    """
    parts = {(m.layer, m.name): m for m in matrices(model)}
    for key, w in weights.items():
        if key not in parts:
            raise BadInput(f"{model.name} has no matrix {key}; keys are (layer, module)")
        if w.shape != parts[key].weight.shape:
            have = tuple(parts[key].weight.shape)
            raise BadInput(f"{key}: weights are {tuple(w.shape)}, the matrix is {have}")
    kept: dict[Key, torch.Tensor] = {}
    with lock(model), torch.no_grad():
        try:
            for key, w in weights.items():
                kept[key] = parts[key].weight.clone()
                parts[key].weight.copy_(w)
            yield min((i for i, _ in weights), default=model.n_layers)
        finally:
            for key, old in kept.items():
                parts[key].weight.copy_(old)
