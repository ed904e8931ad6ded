"""Node scores: the components' own maps, summed; what is reported on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference import RULED

from lwlab.attribution import atp, nodes, relp

PLAIN = [a for a in RULED if a != "opt_post_norm"]
MODULES = [("atp", atp.scores), ("relp", relp.scores)]


@pytest.mark.parametrize(("technique", "module"), MODULES, ids=["atp", "relp"])
@pytest.mark.parametrize("arch", PLAIN)
def test_nodes_add_up_to_the_maps_of_components(
    arch: str, technique: str, module: Any, toy_ioi: Any
) -> None:
    model, task = toy_ioi(arch)
    maps = module(model, task, ["resid_pre", "attn_out", "mlp_out"], normalise=False)
    found = nodes.scores(model, task, technique, by_position=True, normalise=False)
    assert found.dims == ("prompt", "sender", "position")
    assert float(np.abs(maps).max()) > 1e-3
    layers = found.sender_layer.values
    for i in range(model.n_layers):
        here = maps.sel(layer=i)
        heads = found.isel(sender=(layers == i) & (found.sender_kind == "head").values)
        for site, part in (
            ("attn_out", heads.sum("sender")),
            ("mlp_out", found.sel(sender=f"m{i}")),
        ):
            expected = here.sel(component=site).values
            np.testing.assert_allclose(part.values, expected, atol=3e-6)
    first = maps.sel(component="resid_pre", layer=0).values
    np.testing.assert_allclose(found.sel(sender="input").values, first, atol=3e-6)
    total = nodes.scores(model, task, technique, normalise=False)
    assert total.dims == ("prompt", "sender")
    np.testing.assert_allclose(found.sum("position").values, total.values, atol=3e-6)


def test_results_say_what_they_are(toy_ioi: Any) -> None:
    model, task = toy_ioi("llama")
    found = nodes.scores(model, task, ["atp", "relp"])
    assert found.dims == ("technique", "prompt", "sender")
    assert list(found.technique.values) == ["atp", "relp"]
    assert found.attrs["model"] == "llama"
    assert found.attrs["task"] == task.name
    assert found.attrs["normalised"]
    assert list(found.group.values) == task.groups.tolist()
    unit = found.attrs["clean_metric"] - found.attrs["corrupt_metric"]
    raw = nodes.scores(model, task, normalise=False)
    np.testing.assert_allclose(found.sel(technique="atp").values, raw.values / unit, atol=1e-6)
    assert raw.attrs["units"] == task.metric.name
    ruled = nodes.scores(model, task, "relp")
    assert ruled.attrs["rules"] == "ln+identity+half"
