from __future__ import annotations

import pytest

from lwlab.errors import BadInput, UnknownName
from lwlab.models.sites import SITES, Address, check_sites


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("embed", Address("embed")),
        ("resid_pre.7", Address("resid_pre", 7)),
        ("resid_post.-1", Address("resid_post", -1)),
        ("head_out.3.5", Address("head_out", 3, 5)),
        ("v.0.-1", Address("v", 0, -1)),
        ("attn_pattern.2.1", Address("attn_pattern", 2, 1)),
    ],
)
def test_an_address_reads_back_as_it_was_written(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text
    assert Address.parse(address) is address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resid_per.3", "did you mean 'resid_pre'"),
        ("", "unknown site ''"),
        ("resid_pre", "which layer? Write 'resid_pre.0'"),
        ("resid_pre.x", "whole numbers"),
        ("resid_pre.1.2", "takes one layer and no head"),
        ("embed.0", "takes no layer"),
        ("head_out.1.2.3", "takes a layer and a head"),
    ],
)
def test_a_wrong_address_says_what_would_work(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says.replace("?", r"\?")) as caught:
        Address.parse(text)
    assert repr(text) in str(caught.value)


def test_site_lists_are_checked_and_lose_repeats() -> None:
    assert check_sites("embed") == ["embed"]
    assert check_sites(["q", "k", "q"]) == ["q", "k"]
    with pytest.raises(UnknownName, match="did you mean 'mlp_out'"):
        check_sites(["q", "mlp_ou"])
    with pytest.raises(BadInput, match="no site was named"):
        check_sites([])


def test_every_site_says_what_it_is() -> None:
    for name, spec in SITES.items():
        assert spec.name == name
        assert spec.meaning
        assert spec.dims
        assert spec.has_heads == any(d.endswith("head") and d != "d_head" for d in spec.dims)
