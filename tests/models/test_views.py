from __future__ import annotations

import pytest
import torch

from lwlab.models.views import Columns, Heads, Interleaved, View, Whole

VIEWS: list[View] = [
    Whole(),
    Heads(4),
    Heads(2, 8, 16),
    Heads(3, 12),
    Columns(5, 11),
    Interleaved(2, 0),
    Interleaved(2, 1),
    Interleaved(2, 2),
]


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_back_and_nothing_else_moves(
    view: View, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(0)
    t = torch.randn(2, 5, 24, generator=g).to(dtype)
    before = t.clone()
    new = torch.randn(view.read(t).shape, generator=g)
    written = view.write(t, new)
    assert written.dtype == dtype
    assert torch.equal(view.read(written), new.to(dtype))
    assert torch.equal(view.write(t, view.read(t)), t)
    assert torch.equal(view.write(written, view.read(t)), t)  # so the other columns did not move
    assert torch.equal(t, before)


def test_columns_and_heads_are_the_slices_they_name() -> None:
    t = torch.arange(24.0).expand(1, 1, 24)
    assert Heads(2, 8, 16).read(t)[0, 0].tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert Columns(5, 8).read(t)[0, 0].tolist() == [5, 6, 7]
    # GPT-NeoX: head 0's q, k, v and then head 1's, four features each.
    assert Interleaved(2, 0).read(t)[0, 0].tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]
    assert Interleaved(2, 1).read(t)[0, 0].tolist() == [[4, 5, 6, 7], [16, 17, 18, 19]]
    assert Interleaved(2, 2).read(t)[0, 0].tolist() == [[8, 9, 10, 11], [20, 21, 22, 23]]


def test_a_clipping_view_reads_what_the_model_will_use() -> None:
    t = torch.tensor([[[-3.0, -1.0, 0.5, 9.0]]])
    assert Heads(2, clip=2.0).read(t)[0, 0].tolist() == [[-2, -1], [0.5, 2]]
