"""Model folders as Hugging Face lays them out: from the hub's own cache, or anywhere on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwlab.errors import BadInput, FetchError, UnknownName
from lwlab.models import stored

LEGACY = frozenset(
    {
        *("albert-base-v2", "bert-base-cased", "bert-base-uncased", "bert-large-cased"),
        *("bert-large-uncased", "bert-base-multilingual-cased", "camembert-base", "ctrl"),
        *("distilbert-base-cased", "distilbert-base-uncased", "distilgpt2", "distilroberta-base"),
        *("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "openai-gpt", "roberta-base"),
        *("roberta-large", "t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b"),
        *("xlm-roberta-base", "xlm-roberta-large", "xlnet-base-cased"),
    }
)
"""Ids from before organisations; all others have the form organisation/model."""

WANTED = [
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "*.jinja", "spiece*", "preprocessor_config.json", "processor_config.json"),
    *("modules.json", "1_Pooling/config.json"),
]
UNWANTED = [
    *("onnx/*", "openvino/*", "original/*", "coreml/*", "metal/*", "consolidated*"),
    *("*fp16.safetensors", "adapter_model.safetensors"),
]
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")


def is_id(name: str) -> bool:
    """True for `organisation/model`, either with `@revision`, and the ids of `LEGACY`."""
    return name.partition("@")[0] in LEGACY or _ID.fullmatch(name) is not None


def looks_like_path(name: str) -> bool:
    """True where only a file or folder can be meant: absolute, `~`, dotted, or there already."""
    if name.startswith(("/", "~", "./", "../")) or name in (".", ".."):
        return True
    return "/" in name and Path(name).exists()


def snapshot(name: str) -> tuple[Path, str]:
    """Return the folder of a hub model and its commit, through the hub's own cache.

    Only safetensors, configuration and tokenizer files are taken. `HF_HUB_OFFLINE=1` is honoured;
    without network, what the cache holds is used.

    Raises UnknownName where the hub has no such model, FetchError where it cannot be fetched.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=WANTED,
            ignore_patterns=UNWANTED,
            tqdm_class=_bars(repo),
        )
    except GatedRepoError as error:
        raise FetchError(
            f"{repo} asks for a licence to be accepted at https://huggingface.co/{repo}; do that, "
            f"run `hf auth login`, then: lwlab fetch {name}"
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownName(f"{repo} has no revision {revision!r} on the Hugging Face hub") from error
    except RepositoryNotFoundError as error:
        raise UnknownName(
            f"the Hugging Face hub has no model {repo!r}, or it is private: check the spelling at "
            f"https://huggingface.co/models, or run `hf auth login`"
        ) from error
    except Exception as error:  # requests', httpx's, the hub's and the system's errors alike
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set"
        raise FetchError(
            f"could not fetch {name} from the Hugging Face hub ({reason}), and it is not in its "
            f"cache. Where there is network, run: lwlab fetch {name}"
        ) from error
    return Path(folder), Path(folder).name


def _bars(repo: str) -> Any:
    """Return the hub's own progress bars, or silent ones: into a log, and for a cached model."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import tqdm
    from rich.console import Console

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    console = Console(stderr=True)
    watched = console.is_terminal or console.is_jupyter
    cached = Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}", "refs").is_dir()
    return tqdm if watched and not cached else Silent


def check_folder(folder: Path, name: str, *, from_hub: bool = False) -> None:
    """Raise BadInput or FetchError, naming what is missing, unless `folder` can be loaded."""
    if not (folder / "config.json").is_file():
        files = "a GGUF file in it can be given by its path"
        hint = f": {files}" if any(folder.glob("*.gguf")) or "gguf" in name.lower() else ""
        raise BadInput(f"the model {name} has no config.json in {folder}{hint}")
    config(folder)
    lacking = stored.missing_shards(folder)
    if lacking:
        raise FetchError(
            f"the model {name} lacks {len(lacking)} of its weights files in {folder} "
            f"({', '.join(lacking[:3])}); "
            + (
                f"where there is network, run: lwlab fetch {name}"
                if from_hub
                else "copy them there"
            )
        )
    if not any(path.suffix == ".safetensors" for path in stored.weights(folder)):
        partly = f", or only part of it was fetched (lwlab fetch {name})" if from_hub else ""
        raise BadInput(
            f"the model {name} has no safetensors in {folder}{partly}. Weights in other formats "
            f"are not loaded; write them anew with AutoModel.from_pretrained(...)"
            f".save_pretrained(folder), then load that folder"
        )


def config(folder: Path) -> Mapping[str, Any]:
    """Return `config.json` of a folder; BadInput where it is not JSON."""
    try:
        found: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise BadInput(f"{folder / 'config.json'} is not JSON ({error})") from error
    return found


def kind_of(folder: Path) -> str:
    """Return `decoder`, `encoder`, `encoder-decoder`, `vision` or `generic` from config.json."""
    facts = config(folder)
    names = " ".join(facts.get("architectures") or ())
    model_type = str(facts.get("model_type", ""))
    if facts.get("is_encoder_decoder"):
        return "encoder-decoder"
    if "ForCausalLM" in names or "LMHeadModel" in names:
        return "decoder"
    if facts.get("image_size") and "text_config" not in facts:
        return "vision"
    from transformers.models.auto import modeling_auto as auto

    if model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder"
    if model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "decoder"
    if model_type in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "vision"
    return "generic"


def loader_of(folder: Path) -> str:
    """Return `vision` for a folder that `lwlab.models.vision` wrote, else `transformers`."""
    return "vision" if config(folder).get("model_type") == "efficientnet-lite0" else "transformers"


def tokenizer_of(folder: Path) -> Path | None:
    """Return `folder` if a tokenizer lies in it, else None."""
    return folder if any((folder / name).is_file() for name in _TOKENIZER_FILES) else None


def info_of(folder: Path) -> dict[str, Any]:
    """Return how a sentence encoder pools its tokens (`pooling`, `normalize`), if it says so."""
    pooling = folder / "1_Pooling" / "config.json"
    if not pooling.is_file():
        return {}
    facts: Mapping[str, Any] = json.loads(pooling.read_text())
    modules = folder / "modules.json"
    modes = [key for key, on in facts.items() if key.startswith("pooling_mode_") and on is True]
    return {
        "pooling": modes[0].removeprefix("pooling_mode_").split("_")[0] if modes else "mean",
        "normalize": modules.is_file() and "Normalize" in modules.read_text(),
    }
