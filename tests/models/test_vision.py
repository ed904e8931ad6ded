"""EfficientNet-Lite0: the published network, number for number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from lwlab.errors import BadInput, FetchError
from lwlab.models import vision, zoo


@pytest.fixture(scope="module")
def net() -> vision.EfficientNetLite0:
    local = zoo.resolve("efficientnet-lite0")
    assert (local.kind, local.loader, local.tokenizer_path) == ("vision", "vision", None)
    return vision.load(local.path)


def test_it_has_the_published_size_and_sixteen_named_blocks(net):
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    assert len(net.blocks) == 16
    assert [b.project.out_channels for b in net.blocks] == [
        *(16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320)
    ]
    assert [i for i, b in enumerate(net.blocks) if b.has_skip] == [2, 4, 6, 7, 9, 10, 12, 13, 14]
    assert not net.training


def test_logits_are_those_of_the_published_implementation(net):
    """Numbers from efficientnet-lite-pytorch 0.1.0 with the same weights and the same input."""
    x = torch.sin(40 * torch.linspace(-1, 1, 3 * 224 * 224)).reshape(1, 3, 224, 224)
    with torch.no_grad():
        logits = net(x)[0]
        assert torch.equal(net(x)[0], logits)
    expected = [-0.563900, 0.211148, 0.375451, -0.665415, -0.874239, 1.590009]
    assert logits[:6].tolist() == pytest.approx(expected, abs=1e-4)
    assert logits.topk(3).indices.tolist() == [767, 696, 418]


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, 8), (5, 2, 7), (3, 1, 6), (5, 2, 6)])
def test_padding_is_tensorflows(kernel, stride, size):
    """y[i] = sum_k w[k] x[i s + k - before], before = floor(total / 2), the rest after."""
    torch.manual_seed(0)
    conv = vision.SameConv(1, 1, kernel, stride, bias=False)
    x = torch.randn(1, 1, size, size)
    out = -(-size // stride)
    before = max((out - 1) * stride + kernel - size, 0) // 2
    slow = torch.zeros(out, out)
    for i in range(out):
        for j in range(out):
            for a in range(kernel):
                for b in range(kernel):
                    row, column = i * stride + a - before, j * stride + b - before
                    if 0 <= row < size and 0 <= column < size:
                        slow[i, j] += conv.weight[0, 0, a, b].detach() * x[0, 0, row, column]
    assert torch.allclose(conv(x)[0, 0], slow, atol=1e-5)


def test_photographs_are_recognised_and_worse_with_pytorchs_padding(net, monkeypatch):
    china, flower = load_sample_images().images
    names = {"palace": (china, 698), "daisy": (flower, 985)}
    with torch.no_grad():
        right = {
            name: net(vision.preprocess(photo))[0].softmax(-1) for name, (photo, _) in names.items()
        }
        monkeypatch.setattr(
            vision.SameConv,
            "forward",
            lambda conv, x: torch.nn.functional.conv2d(
                x, conv.weight, None, conv.stride, conv.kernel_size[0] // 2, 1, conv.groups
            ),
        )
        symmetric = net(vision.preprocess(flower))[0].softmax(-1)
    assert {name: int(p.argmax()) for name, p in right.items()} == {"palace": 698, "daisy": 985}
    assert right["daisy"][985] > 1.5 * symmetric[985]


def test_pictures_are_scaled_cut_and_standardised():
    grey = np.full((300, 500, 3), 191, np.uint8)
    assert vision.preprocess(grey).shape == (1, 3, 224, 224)
    assert torch.allclose(vision.preprocess(grey), torch.tensor(0.5))
    both = vision.preprocess(torch.zeros(2, 224, 224, 3))
    assert both.shape == (2, 3, 224, 224)
    assert torch.allclose(both, torch.tensor(-127 / 128))
    for shape in ((3, 224, 224), (224, 224), (1, 2, 3, 4, 3)):
        with pytest.raises(BadInput, match="shape"):
            vision.preprocess(np.zeros(shape))


def test_names_map_one_to_one():
    published = {
        *("_conv_stem.weight", "_bn0.bias", "_conv_head.weight", "_bn1.running_mean", "_fc.bias"),
        *("_blocks.3._expand_conv.weight", "_blocks.3._bn0.weight", "_blocks.3._bn1.weight"),
    }
    ours = set(vision.EfficientNetLite0().state_dict())
    assert {vision.rename(name) for name in published} <= ours
    assert len({vision.rename(name) for name in published}) == len(published)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(FetchError, match="not a state dict of EfficientNet-Lite0"):
        vision.convert(tmp_path / "other.pth", tmp_path)
    with pytest.raises(BadInput, match="does not hold EfficientNet-Lite0"):
        vision.load(tmp_path)
