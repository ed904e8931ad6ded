"""EfficientNet-Lite0, a small convolutional network, as a plain module whose blocks have names.

EfficientNet-Lite (Google, 2020) is EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946) without
squeeze-and-excitation and with ReLU6 for swish. 16 inverted-residual blocks between a stem and a
head; 4,652,008 parameters; 224 x 224 RGB in, 1,000 ImageNet classes out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lwlab.errors import BadInput, FetchError

MODEL_TYPE = "efficientnet-lite0"
SIZE = 224
# The weights were converted from Google's TensorFlow ones, which saw (pixel - 127) / 128; with the
# mean and deviation of ImageNet the network still works, with less confidence.
MEAN, STD = 127.0, 128.0
# (blocks, kernel, stride of the first, expansion, channels in, channels out) of each stage
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": output size ceil(input / stride).

    The odd pixel of padding goes to the right and the bottom, so at stride 2 the pixels sampled
    differ from those of PyTorch's symmetric padding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in, height, width] to [batch, out, ceil(height/s), ceil(width/s)]."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> SameConv:
    return SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """An inverted residual: widen (1x1), filter each channel (k x k), narrow (1x1), add if it fits.

    y = BN(W_p * r(BN(W_d * r(BN(W_e * x))))) (+ x where shapes agree), r = ReLU6. The narrow
    output has no activation: it is the residual stream.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _conv(inputs, wide, 1) if expansion > 1 else None
        self.expand_norm = _norm(wide) if expansion > 1 else None
        self.depthwise = _conv(wide, wide, kernel, stride, groups=wide)
        self.depthwise_norm = _norm(wide)
        self.project = _conv(wide, outputs, 1)
        self.project_norm = _norm(outputs)
        self.act = nn.ReLU6()
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in, height, width] to [batch, out, height/stride, width/stride]."""
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = self.act(self.expand_norm(self.expand(y)))
        y = self.act(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        return x + y if self.has_skip else y


class EfficientNetLite0(nn.Module):
    """The network: `stem`, sixteen `blocks`, `head`, mean over the picture, `classifier`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 32, 3, stride=2)
        self.stem_norm = _norm(32)
        self.blocks = nn.ModuleList(
            Block(inputs if i == 0 else outputs, outputs, kernel, stride if i == 0 else 1, expand)
            for count, kernel, stride, expand, inputs, outputs in STAGES
            for i in range(count)
        )
        self.head = _conv(320, 1280, 1)
        self.head_norm = _norm(1280)
        self.act = nn.ReLU6()
        self.classifier = nn.Linear(1280, 1000)

    def features(self, images: Tensor) -> Tensor:
        """Map pictures [batch, 3, 224, 224] to feature maps [batch, 1280, 7, 7]."""
        x = self.act(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return self.act(self.head_norm(self.head(x)))

    def forward(self, images: Tensor) -> Tensor:
        """Map pictures [batch, 3, 224, 224], prepared by `preprocess`, to logits [batch, 1000]."""
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def preprocess(images: Any) -> Tensor:
    """Turn RGB pictures with values 0 to 255 into what the network was trained on.

    `images` is one picture [height, width, 3] or several [n, height, width, 3] (NumPy or torch).
    The short side is resized to 256 (bicubic, antialiased), the middle 224 x 224 cut out and
    standardised: (x - 127) / 128. Returns float32 [n, 3, 224, 224].

    Raises BadInput for another shape.
    """
    pixels = images if isinstance(images, Tensor) else torch.tensor(np.asarray(images))
    if pixels.dim() == 3:
        pixels = pixels[None]
    if pixels.dim() != 4 or pixels.shape[-1] != 3:
        raise BadInput(
            f"pictures have shape {tuple(pixels.shape)}; give [height, width, 3] or "
            f"[n, height, width, 3] with values 0 to 255"
        )
    x = pixels.permute(0, 3, 1, 2).float()
    scale = 256 / min(x.shape[2:])
    size = [round(side * scale) for side in x.shape[2:]]
    x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    top, left = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
    return (x[:, :, top : top + SIZE, left : left + SIZE] - MEAN) / STD


def rename(name: str) -> str:
    """Return our name for a parameter of the published state dict (`_blocks.3._bn0.weight` ...)."""
    *path, layer, leaf = name.removeprefix("_").split(".")
    names = _IN_BLOCK if path else _OUTSIDE
    return ".".join([*path, names[layer.removeprefix("_")], leaf])


_OUTSIDE = {
    **{"conv_stem": "stem", "bn0": "stem_norm", "conv_head": "head", "bn1": "head_norm"},
    "fc": "classifier",
}
_IN_BLOCK = {
    **{"expand_conv": "expand", "bn0": "expand_norm", "depthwise_conv": "depthwise"},
    **{"bn1": "depthwise_norm", "project_conv": "project", "bn2": "project_norm"},
}


def convert(source: Path, folder: Path) -> None:
    """Write the published state dict `source` into `folder` as safetensors with a config.json.

    The pickle is read with `weights_only=True`: nothing in it runs. Raises FetchError when its
    names or shapes are not those of the network.
    """
    from safetensors.torch import save_file

    state = torch.load(source, map_location="cpu", weights_only=True)
    try:
        renamed = {rename(name): value.contiguous() for name, value in state.items()}
        EfficientNetLite0().load_state_dict(renamed, strict=True)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise FetchError(f"{source.name} is not a state dict of EfficientNet-Lite0") from error
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        **{"model_type": MODEL_TYPE, "architectures": ["EfficientNetLite0"], "image_size": SIZE},
        **{"image_mean": MEAN, "image_std": STD, "num_labels": 1000, "dtype": "float32"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load(folder: Path) -> EfficientNetLite0:
    """Return the network with the weights in `folder` (float32, eval mode).

    Raises BadInput when the folder's weights are not those of this network.
    """
    from safetensors.torch import load_file

    model = EfficientNetLite0()
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except (OSError, RuntimeError) as error:
        raise BadInput(f"{folder} does not hold EfficientNet-Lite0's weights: {error}") from error
    return model.eval()
