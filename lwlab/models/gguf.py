"""GGUF files into folders that transformers loads: float32 safetensors, config, tokenizer."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lwlab.errors import BadInput, FetchError

# Byte-level vocabularies whose text is split into single digits first and by GPT-2's rule after
# (llama.cpp's table of `tokenizer.ggml.pre`); transformers applies GPT-2's rule alone, which splits
# a run of spaces before a number in another way.
DIGITS_FIRST = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
GPT2_RULE = frozenset({"gpt-2", "gpt2", "mpt", "olmo", "jais", "phi-2", "default"})


def convert(source: Path, folder: Path) -> str:
    """Write the model in the GGUF file `source` into `folder` as float32 safetensors.

    Weights are dequantised, the rotary permutation of the query and key rows is undone and tied
    embeddings stay tied, all by transformers' own GGUF loader; what it leaves out is checked and
    done here: that no tensor of the file was dropped and no parameter left random, the digit rule
    of the tokenizer, the context length, and numbers that GGUF keeps in float32 (`rms_norm_eps`
    9.999999747378752e-06 is written 1e-05 again).

    Returns the licence that the file states, "" if none.

    Raises BadInput for a file that is not GGUF, an architecture or tokenizer that transformers
    cannot read, or weights that do not fill the model exactly; FetchError for a truncated file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    with _parse_once(), _quiet_transformers(), torch.no_grad():
        fields, n_weights, names = _read(source)
        architecture = fields.get("general.architecture", "unknown")
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(**where)
        except (ValueError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise BadInput(
                f"{source} holds a {architecture!r} model that transformers cannot convert "
                f"({reason[0][:200]}); load it by its Hugging Face id or from a folder with "
                f"config.json and safetensors instead"
            ) from error
        lacking = sorted(info.get("missing_keys", ())) + sorted(info.get("mismatched_keys", ()))
        taken = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
        if lacking or taken != n_weights:
            unused = [name for name in names if name.startswith("rope_")]
            raise BadInput(
                f"{source} does not fill its {architecture!r} model: the file holds {n_weights} "
                f"weights, the model takes {taken}"
                + (f"; without a value: {', '.join(map(str, lacking[:4]))}" if lacking else "")
                + (f"; not understood: {', '.join(unused)}" if unused else "")
                + "; load it by its Hugging Face id or from a folder with safetensors instead"
            )
        _repair_config(model)
        _repair_tokenizer(tokenizer, fields, model.config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(fields.get("general.license", ""))


def _read(source: Path) -> tuple[dict[str, Any], int, list[str]]:
    """Return the scalar metadata, the number of weights and the tensors' names of a GGUF file."""
    from gguf import GGUFReader

    with source.open("rb") as raw:
        if raw.read(4) != b"GGUF":
            raise BadInput(f"{source} is not a GGUF file (its first four bytes are not 'GGUF')")
    try:
        reader = GGUFReader(str(source))
    except (ValueError, IndexError, OverflowError, KeyError) as error:
        raise FetchError(
            f"{source} is damaged or cut short ({error}); fetch the file again"
        ) from error
    fields = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("tokenizer.ggml.") or name.endswith((".pre", ".model"))
    }
    return fields, sum(int(t.n_elements) for t in reader.tensors), [t.name for t in reader.tensors]


def _repair_config(model: Any) -> None:
    """Drop what speaks of the GGUF file and give back the decimals that float32 lost."""
    config = model.config
    for name in ("quantization_config", "_pre_quantization_dtype", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    if hasattr(model, "hf_quantizer"):
        model.hf_quantizer = None
    config._name_or_path = ""
    if model.generation_config is not None:
        model.generation_config._from_model_config = False
    for name, value in list(vars(config).items()):
        if isinstance(value, float):
            setattr(config, name, _decimal(value))
        elif isinstance(value, dict):
            setattr(config, name, {k: _decimal(v) for k, v in value.items()})


def _decimal(value: Any) -> Any:
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _repair_tokenizer(tokenizer: Any, fields: dict[str, Any], config: Any) -> None:
    from tokenizers import pre_tokenizers

    rule = fields.get("tokenizer.ggml.pre")
    if fields.get("tokenizer.ggml.model") == "gpt2":
        backend = tokenizer.backend_tokenizer
        untouched = isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel)
        if rule in DIGITS_FIRST:
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        elif untouched and rule not in GPT2_RULE:
            warnings.warn(
                f"the tokenizer's splitting rule {rule!r} is not known; text is split by GPT-2's "
                f"rule, so numbers and runs of spaces may become other tokens than in training",
                stacklevel=3,
            )
    for name in ("is_local", "local_files_only", "gguf_file"):
        tokenizer.init_kwargs.pop(name, None)
    if context := getattr(config, "max_position_embeddings", None):
        tokenizer.model_max_length = context


@contextlib.contextmanager
def _parse_once() -> Iterator[None]:
    """Share one parsed header while a file is converted.

    transformers parses it three times (3 s each for 49,152 tokens) and builds the table of tensor
    names once for every submodule.
    """
    import gguf

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(reader), functools.cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back transformers' bars and notices about the GGUF file while it is read."""
    from transformers import modeling_gguf_pytorch_utils as loader
    from transformers.utils import logging as theirs

    logger = logging.getLogger("transformers")
    level, bars, bar = logger.level, theirs.is_progress_bar_enabled(), loader.tqdm
    theirs.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    loader.tqdm = lambda items, **_: items  # this one bar heeds no setting; a widget in notebooks
    try:
        yield
    finally:
        loader.tqdm = bar
        logger.setLevel(level)
        if bars:
            theirs.enable_progress_bar()
