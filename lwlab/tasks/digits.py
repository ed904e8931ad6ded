"""Handwritten digits, 8 x 8, out of scikit-learn: data for small vision models, no download."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lwlab.errors import BadInput


class Digits(NamedTuple):
    """Images [n, 1, 8, 8] (or [n, 64]) in 0..1, float32, and labels [n] in 0..9, int64."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits(test: float = 0.25, seed: int = 0, flat: bool = False) -> Digits:
    """Return the 1797 digits of scikit-learn, split at random with equal shares of each class.

    test: the fraction kept for testing. flat: images as 64 numbers instead of [1, 8, 8]. Grey
    levels 0..16 are divided by 16. Raises BadInput for a fraction that leaves a side without some
    class.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if not 0.01 <= test <= 0.99:
        raise BadInput(f"test is {test}; it is the fraction kept for testing, such as 0.25.")
    bunch = load_digits()
    images = torch.tensor(bunch.images / 16, dtype=torch.float32)
    images = images.flatten(1) if flat else images[:, None]
    labels = torch.tensor(bunch.target, dtype=torch.long)
    train, rest = train_test_split(
        range(len(labels)), test_size=test, random_state=seed, stratify=bunch.target
    )
    return Digits(images[train], labels[train], images[rest], labels[rest])
