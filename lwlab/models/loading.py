"""`lw.load` and `lw.wrap`: from a name or a module to a checked Model."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lwlab.errors import BadInput
from lwlab.models import build, discover, far, kept, layouts, memory
from lwlab.models.accept import accept
from lwlab.models.anatomy import Anatomy
from lwlab.models.model import Model, Prompts
from lwlab.tracing import _nnsight, pattern
from lwlab.tracing.remote import check as check_remote

# transformers builds models under process-wide switches (meta device, skipped initialisation): two
# threads at it at once leave weights without data.
_BUILDING = threading.Lock()


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    device_map: str | dict[str, Any] | None = None,
    stack: str | None = None,
    check: bool = True,
    remote: bool | str = False,
) -> Model:
    """Load a model by name and make sure that it is what it seems.

    `name`: a zoo name (`lwlab models` lists them), `toys/NAME` (a small model trained here), a
    Hugging Face id, a local folder or a GGUF file. `device_map` goes to accelerate for several
    GPUs (then leave `device` alone). `stack` picks "encoder" or "decoder" of an encoder-decoder
    model. With `check`, the weights must be finite, the traced logits bit-equal to the plain
    model's, and the identities of the anatomy must hold on a short prompt; `model.checks` keeps
    the measured errors.

    `remote`: True (NDIF) or the address of a server that runs NDIF: nothing but the configuration
    and the tokenizer is loaded here, and `lw.cache`, `patch`, `ablate`, `grads`, `chain` and
    `generate` run there. "local" packs every run as for a server and then runs it here, to find
    out what a server would refuse.

    Weights are never folded or changed. Raises UnknownName, FetchError (no network and not
    cached, damaged file), or BadInput (device, NaN weights, an architecture whose identities fail,
    weights that do not fit into memory: with the numbers, and before they are read).
    """
    check_remote(remote)
    if device is not None and device_map is not None:
        raise BadInput("give either device or device_map, not both")
    if remote and (device is not None or device_map is not None):
        raise BadInput("a remote model lies where its server put it: leave device= and device_map=")
    if device is not None:
        _check_device(device)
    if remote and remote != "local":
        return far.skeleton(str(name), dtype, stack, remote)
    from lwlab.models import zoo

    local = zoo.resolve(str(name))
    memory.check(local, dtype, device, device_map)
    example = None
    if local.loader == "vision":
        module, tokenizer, example = _vision(local, dtype, device_map)
    else:
        module, tokenizer = _transformers(local, dtype, device_map)
    if device is not None:
        module = module.to(device)
    model = _model(
        module.eval(), None, tokenizer, stack, check,
        name=local.name, checksum=local.checksum, source=local.source, example=example,
    )  # fmt: skip
    return far.packed(model) if remote else model


def wrap(
    module: nn.Module,
    anatomy: Anatomy | None = None,
    tokenizer: Any = None,
    *,
    name: str | None = None,
    stack: str | None = None,
    example: Prompts | None = None,
    check: bool = True,
) -> Model:
    """Give any torch module the same treatment as a loaded model.

    Without `anatomy`, a known transformers architecture is looked up, and anything else is
    searched for the longest list of blocks. `example` is a short input (for transformers models
    one is made): the identities are checked on it, and sublayers found by structure are only
    kept when they are checked. The module is put in eval mode; its weights are left alone.

    Raises BadInput when nothing is found, when weights are not finite, when `anatomy` names
    modules that do not exist, or when its identities fail.
    """
    if not isinstance(module, nn.Module):
        raise BadInput(
            f"lw.wrap takes a torch.nn.Module, not {type(module).__name__}; lw.load takes names"
        )
    return _model(
        module.eval(), anatomy, tokenizer, stack, check, name=name or type(module).__name__,
        checksum="", source="wrapped module", example=example,
    )  # fmt: skip


def anatomy_of(module: nn.Module, stack: str | None = None) -> Anatomy:
    """Return the anatomy of a module: by its layout where it is known, else by its structure."""
    config = getattr(module, "config", None)
    layout = layouts.find(getattr(config, "model_type", "") or "")
    if layout is not None:
        return kept.adapt(build.from_layout(module, layout, stack), kept.kept(config))
    return discover.by_structure(module)


def _model(
    module: nn.Module,
    anatomy: Anatomy | None,
    tokenizer: Any,
    stack: str | None,
    check: bool,
    *,
    name: str,
    checksum: str,
    source: str,
    example: Prompts | None = None,
) -> Model:
    if check:
        _finite(module, name)
    if stack not in (None, "encoder", "decoder"):
        raise BadInput(f"stack={stack!r}; use 'encoder' or 'decoder'")
    anatomy = anatomy or anatomy_of(module, stack)
    if stack and anatomy.kind != "encoder-decoder":
        raise BadInput(f"{name} has one stack of blocks, so leave stack= out")
    anatomy.check_paths(module)
    if not pattern.prepare(module, anatomy) and "attn_pattern" in anatomy.taps:
        anatomy = anatomy.without("attn_pattern", "its attention is not transformers' own")
    nn_ = _nnsight.wrap(module, tokenizer)
    model = Model(name, module, nn_, anatomy, tokenizer, checksum, source, example=example)
    return accept(model) if check else model


def _finite(module: nn.Module, name: str) -> None:
    offloaded = hasattr(module, "hf_device_map")  # accelerate holds such weights elsewhere
    for key, p in module.named_parameters():
        if p.is_meta and offloaded:
            continue
        if p.is_meta:
            raise BadInput(f"{name}: weight {key} has no data (meta device)")
        if not bool(torch.isfinite(p).all()):
            n = int((~torch.isfinite(p)).sum())
            raise BadInput(
                f"{name}: weight {key} holds {n} NaN or infinite values; the file is damaged"
            )


def _check_device(device: str | torch.device) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as e:
        raise BadInput(f"unknown device {device!r}: {str(e).splitlines()[0]}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadInput("device='cuda' was asked for, but torch sees no GPU; use device='cpu'")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise BadInput(
            "device='mps' was asked for, but torch sees no such device; use device='cpu'"
        )


def auto_class(config: Any) -> Any:
    """The transformers class that reads a checkpoint of this configuration with all its heads."""
    import transformers as tf

    names = " ".join(config.architectures or ())
    if config.model_type in ("t5", "mt5"):
        return tf.AutoModelForSeq2SeqLM
    if "ForCausalLM" in names or "LMHead" in names:
        return tf.AutoModelForCausalLM
    if "ForMaskedLM" in names:
        return tf.AutoModelForMaskedLM
    if "ForImageClassification" in names:
        return tf.AutoModelForImageClassification
    if "ForConditionalGeneration" in names:
        return tf.AutoModelForCausalLM
    return tf.AutoModel


def tokenizer_at(path: str | Path, **options: Any) -> Any:
    """Return the tokenizer of a folder or hub id, with a token to pad with."""
    import transformers as tf

    tokenizer = tf.AutoTokenizer.from_pretrained(path, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _transformers(local: Any, dtype: torch.dtype, device_map: Any) -> tuple[nn.Module, Any]:
    import transformers as tf

    config = tf.AutoConfig.from_pretrained(local.path)
    kwargs = {} if device_map is None else {"device_map": device_map}
    if kept.kept(config):  # transformers gives every layer the same width
        from lwlab.pruning import stored

        if device_map is not None:
            raise BadInput(f"{local.name} is pruned; load it without device_map=")
        with _BUILDING:
            module = stored.read(local.path, config, auto_class(config), dtype)
        return module, tokenizer_at(local.path)
    with _BUILDING, quiet():
        module = auto_class(config).from_pretrained(local.path, dtype=dtype, **kwargs)
    return module, None if local.kind == "vision" else tokenizer_at(local.path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bar over local weights, which takes a second and litters notebooks."""
    from transformers.utils import logging as tf_logging

    shown = tf_logging.is_progress_bar_enabled()
    tf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            tf_logging.enable_progress_bar()


def _vision(
    local: Any, dtype: torch.dtype, device_map: Any
) -> tuple[nn.Module, None, torch.Tensor]:
    from lwlab.models import vision

    if device_map is not None:
        raise BadInput(f"{local.name} is one small module: give device=, not device_map=")
    picture = torch.randn(
        1, 3, vision.SIZE, vision.SIZE, generator=torch.Generator().manual_seed(0)
    )
    return vision.load(local.path).to(dtype), None, picture
