"""What NDIF 0.1.2 needs to serve models from a CPU, with nnsight 0.8.1: an actor and five shims.

On the server's PYTHONPATH, named by NDIF_CONTROLLER_IMPORT_PATH and NDIF_MODEL_IMPORT_PATH. Each
shim says what it is for; where a later NDIF does not need one, delete it.
"""

from __future__ import annotations

import gc
import json
import math
import os
from typing import Any

import psutil
import ray
import torch
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.deployments.modeling.base import BaseModelDeployment
from nnsight.modeling import huggingface
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.mixins.remotable import Remotable, bytes_per_element
from transformers import AutoConfig, AutoModel, AutoTokenizer


def _tolerant(cls: type, name: str) -> None:
    """NDIF passes trust_remote_code=, which nnsight 0.8.1 does not take."""
    known = getattr(cls, name).__func__

    def call(cls: type, *args: Any, trust_remote_code: bool = False, **kwargs: Any) -> Any:
        return known(cls, *args, **kwargs)

    setattr(cls, name, classmethod(call))


for _name in ("describe_checkpoint", "max_tp_size"):
    _tolerant(Remotable, _name)

# A folder is its own canonical id: nnsight would ask the hub for its spelling.
for _folder in filter(None, os.environ.get("LWLAB_NDIF_FOLDERS", "").split(":")):
    huggingface._ID_CACHE[_folder] = _folder


def _estimate(_cls: type, model_key: str, dtype: str) -> int:
    """Bytes of a checkpoint's weights; nnsight 0.8.1 fails at the tokenizer on its way there."""
    config = AutoConfig.from_pretrained(json.loads(model_key)["repo_id"])
    with torch.device("meta"):
        module = AutoModel.from_config(config)
    return math.ceil(sum(p.numel() for p in module.parameters()) * bytes_per_element(dtype))


Remotable._remoteable_estimate_bytes = classmethod(_estimate)

# There is no CUDA device to wait for, to cap or to measure.
torch.cuda.synchronize = lambda *_: None
torch.cuda.empty_cache = lambda: None


@ray.remote(num_cpus=1, num_gpus=0, max_restarts=-1, resources={"head": 1})
class Controller(_ControllerActor):
    """NDIF's controller, in a process that has the shims."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        import cpu_server  # noqa: F401  (Ray sends this class by value, without its module)

        super().__init__(*args, **kwargs)


class _OnCpu(BaseModelDeployment):
    CACHEABLE = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        import cpu_server  # noqa: F401

        super().__init__(*args, **kwargs)

    def load_from_disk(self) -> HuggingFaceModel:
        """Load the weights where everything else is: in memory, in the type asked for."""
        key = self.model_key
        repo = json.loads(key.split(":", 1)[1])["repo_id"]
        model = HuggingFaceModel.from_model_key(
            key, dispatch=True, dtype=self.dtype_name, device="cpu",
            tokenizer=AutoTokenizer.from_pretrained(repo),
        )  # fmt: skip
        model._module.requires_grad_(False)
        gc.collect()
        return model


@ray.remote(num_cpus=1, num_gpus=0, max_restarts=0)
class Actor(_OnCpu):
    """One replica of a model on the CPU."""


def resources() -> str:
    """Ray resources of this machine as NDIF reads them: memory stands in for a GPU's."""
    total = int(psutil.virtual_memory().total)
    return json.dumps({"head": 10, "cuda_memory_bytes": total // 2, "cpu_memory_bytes": total})


if __name__ == "__main__":
    print(resources())
