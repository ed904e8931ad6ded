"""Charts say what the result says: every cell, label, scale and refusal."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from gallery import effect, estimates, gallery

from lwlab import charts
from lwlab.charts._altair import MIME, render
from lwlab.errors import BadInput, UnknownName


def rows(chart) -> list[dict[str, str]]:
    """Read the chart's data back as Vega reads it."""
    spec = chart.to_dict()
    data = (find(spec, "datasets") or [{}])[0]
    text = next(iter(data.values()), None) or find(spec, "values")[-1]
    return list(csv.DictReader(io.StringIO(text)))


def find(spec, key: str) -> list:
    """Return every value under `key`, at any depth."""
    here = [spec[key]] if isinstance(spec, dict) and key in spec else []
    inner = spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else []
    return here + [v for child in inner for v in find(child, key)]


def colour_scale(chart) -> dict:
    found = [c for c in find(chart.to_dict(), "color") if isinstance(c, dict)]
    return find(found, "scale")[0]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


# ---- data


def test_heatmap_carries_every_value_with_its_labels():
    da = estimates()
    found = rows(charts.heatmap(da))
    assert len(found) == da.size
    for row in found[::37]:
        place = {d: row[d] if d == "estimate" else int(row[d]) for d in da.dims}
        cell = da.sel(place)
        assert float(row["value"]) == pytest.approx(cell.item(), rel=1e-4, abs=1e-12)


def test_profile_carries_line_and_band():
    da = xr.DataArray([[1.0, 2, 3], [4, 5, 6]], dims=("kind", "layer"), name="norm",
                      coords={"kind": ["attention", "mlp"]})  # fmt: skip
    found = rows(charts.profile(da, low=da - 1, high=da + 2))
    assert [float(r["value"]) for r in found] == [1, 2, 3, 4, 5, 6]
    assert all(float(r["low"]) == float(r["value"]) - 1 for r in found)
    assert all(float(r["high"]) == float(r["value"]) + 2 for r in found)


def test_scatter_pairs_values_by_label_not_by_order():
    x = xr.DataArray([1.0, 2, 3], dims="layer", coords={"layer": [0, 1, 2]}, name="x")
    y = xr.DataArray([30.0, 10, 20], dims="layer", coords={"layer": [2, 0, 1]}, name="y")
    pairs = {(float(r["value_x"]), float(r["value_y"])) for r in rows(charts.scatter(x, y))}
    assert pairs == {(1, 10), (2, 20), (3, 30)}
    for other in (y.isel(layer=[0, 1]), y.assign_coords(layer=[1, 2, 3])):
        with pytest.raises(BadInput, match="same layer labels"):
            charts.scatter(x, other)


def test_scatter_states_pearson_over_all_and_within_groups():
    parts = estimates(components=True)
    a, b = parts.sel(estimate="exact"), parts.sel(estimate="AtP")
    spec = charts.scatter(a, b, color="component").to_dict()
    r = np.corrcoef(a.values.ravel(), b.values.ravel())[0, 1]
    assert f"Pearson r = {r:.3f}, n = {a.size} points" in spec["title"]["subtitle"][0]
    legend = find(spec, "labelExpr")[0]
    for part in ("resid_pre", "mlp_out"):
        own = np.corrcoef(
            a.sel(component=part).values.ravel(), b.sel(component=part).values.ravel()
        )
        assert f"{part} (r = {own[0, 1]:.3f})" in legend


def test_scatter_leaves_out_missing_pairs_and_says_how_many_are_left():
    x = xr.DataArray([1.0, 2, np.nan, 4], dims="layer", name="x")
    y = xr.DataArray([2.0, np.inf, 3, 8], dims="layer", name="y")
    chart = charts.scatter(x, y)
    assert len(rows(chart)) == 2
    assert "n = 2 points" in chart.to_dict()["title"]["subtitle"][0]


def test_scatter_of_a_constant_does_not_invent_a_correlation():
    x = xr.DataArray([1.0, 2, 3], dims="layer", name="x")
    subtitle = charts.scatter(x, xr.ones_like(x)).to_dict()["title"]["subtitle"][0]
    assert "undefined" in subtitle


# ---- colour


def test_both_signs_get_a_diverging_scale_with_white_at_zero():
    scale = colour_scale(charts.heatmap(effect()))
    peak = float(np.abs(effect()).max())
    assert scale["domain"][0] == -scale["domain"][-1] == pytest.approx(-peak)
    assert scale["domain"][len(scale["domain"]) // 2] == 0
    assert scale["range"][len(scale["range"]) // 2] == "#f7f7f7"


def test_one_sign_gets_cividis_and_panels_share_one_scale():
    chart = charts.heatmap(np.abs(estimates()) + 1)
    scale = colour_scale(chart)
    assert scale["range"][0] == "#00224e"
    assert scale["domain"][0] == pytest.approx(1)
    assert "resolve" not in chart.to_dict()
    own = charts.beside(charts.heatmap(effect()), charts.heatmap(np.abs(effect()))).to_dict()
    assert own["resolve"]["scale"]["color"] == "independent"


def test_rounding_noise_below_zero_is_not_a_sign():
    da = np.abs(effect()) - 1e-9
    assert colour_scale(charts.heatmap(da))["range"][0] == "#00224e"


def test_a_domain_can_be_fixed_so_that_two_charts_agree():
    one, two = (colour_scale(charts.heatmap(d, domain=(-2, 2))) for d in (effect(), 0.1 * effect()))
    assert one == two
    with pytest.raises(BadInput, match="rise"):
        charts.heatmap(effect(), domain=(1, 1))


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, np.nan])
def test_a_constant_or_empty_map_still_has_a_scale(value):
    domain = colour_scale(charts.heatmap(xr.full_like(effect(), value)))["domain"]
    assert domain[0] < domain[-1]


def test_missing_cells_are_struck_and_counted():
    da = effect().where(effect().layer != 3)
    spec = charts.heatmap(da).to_dict()
    assert "no value (14 of 420 cells)" in " ".join(spec["title"]["subtitle"])
    assert [m for m in find(spec, "mark") if m.get("shape")] != []
    assert sum(r["value"] == "" for r in rows(charts.heatmap(da))) == 14


# ---- labels


def test_repeated_tokens_stay_apart_and_spaces_are_seen():
    tokens = [" the", " the", "the", "ington", "\n", " ", "", "Ġgave", "▁to", "<|x|>" * 5]
    da = xr.DataArray(np.ones((2, 10)), dims=("layer", "position"),
                      coords={"token_str": ("position", tokens)})  # fmt: skip
    expression = find(charts.heatmap(da).to_dict(), "labelExpr")[0]
    labels = json.loads(expression[1 : expression.index("})[") + 1])
    assert labels["0"] == "0: the"
    assert labels["1"] == "1: the"
    assert labels["2"] == "2: ##the"  # it continues the word before it
    assert labels["3"] == "3: ##ington"
    assert labels["4"] == "4: ↵"
    assert labels["5"] == "5: ␣"
    assert labels["6"] == "6: ∅"
    assert labels["7"] == "7: gave"
    assert labels["8"] == "8: to"
    assert labels["9"].endswith("…")
    assert len(set(labels.values())) == 10


def test_positions_that_do_not_start_at_zero_keep_their_own_tokens():
    da = effect().isel(position=[9, 13])
    expression = find(charts.heatmap(da).to_dict(), "labelExpr")[0]
    assert json.loads(expression[1 : expression.index("})[") + 1]) == {
        "9": "9: John",
        "13": "13: to",
    }


def test_tokens_can_be_given_where_an_average_lost_them():
    da = xr.DataArray(
        np.ones((3, 2, 4)),
        dims=("prompt", "layer", "position"),
        coords={"token_str": (("prompt", "position"), [list("abcd")] * 3)},
    )
    assert "a" not in json.dumps(find(charts.heatmap(da.mean("prompt")).to_dict(), "labelExpr"))
    named = charts.heatmap(da.mean("prompt"), tokens=["When", " A", " and", " B"])
    assert "2: and" in find(named.to_dict(), "labelExpr")[0]
    with pytest.raises(BadInput, match="2 tokens given for 4"):
        charts.heatmap(da.mean("prompt"), tokens=["a", "b"])


def test_titles_and_units_come_from_the_result():
    da = effect().assign_attrs(units="logits")
    spec = charts.heatmap(da).to_dict()
    assert spec["title"]["text"] == "Recovered logit difference"
    assert spec["title"]["subtitle"] == ["smollm2-135m · ioi · n = 8 · seed = 0"]
    assert (
        " ".join(find(spec["encoding"], "legend")[0]["title"])
        == "Recovered logit difference (logits)"
    )
    assert "largest 1.04 at layer" in spec["description"]


def test_layers_rise_from_the_bottom_and_tables_read_from_the_top():
    order = charts.heatmap(effect()).to_dict()["encoding"]["y"]["sort"]
    assert order == list(range(29, -1, -1))
    matrix = xr.DataArray(np.eye(3), dims=("skipped", "layer"))
    encoding = charts.heatmap(matrix).to_dict()["encoding"]
    assert encoding["x"]["field"] == "layer"
    assert encoding["y"]["sort"] == [0, 1, 2]


def test_attention_takes_query_up_and_key_across():
    """The shape `lw.cache(..., "attn_pattern")` gives, one prompt and layer selected."""
    pattern = xr.DataArray(
        np.ones((1, 1, 2, 3, 3)),
        dims=("prompt", "layer", "head", "query", "position"),
        coords={"token_str": (("prompt", "position"), [["When", " Mary", " and"]])},
    )
    spec = charts.heatmap(pattern).to_dict()
    assert [spec["spec"]["encoding"][c]["field"] for c in "xy"] == ["position", "query"]
    assert spec["facet"]["field"] == "head"
    assert sum("1: Mary" in e for e in find(spec, "labelExpr")) == 2  # on both axes


def test_a_dataset_of_like_variables_becomes_panels():
    ds = xr.Dataset({"attn_out": effect(), "mlp_out": 2 * effect()})
    found = rows(charts.heatmap(ds))
    assert {r["variable"] for r in found} == {"attn_out", "mlp_out"}


# ---- refusals


@pytest.mark.parametrize("draw", [charts.heatmap, charts.profile])
def test_several_prompts_are_refused_with_what_to_do(draw):
    da = effect().expand_dims(prompt=4)
    da = da if draw is charts.heatmap else da.isel(position=9)
    with pytest.raises(
        BadInput, match=r"prompt \(4\); average first, .mean\('prompt'\), or select"
    ):
        draw(da)
    draw(da.mean("prompt"))
    draw(da.isel(prompt=[0]))  # one prompt needs no choice


def test_more_cells_than_a_notebook_holds_are_refused_with_an_aggregation_that_works():
    da = effect(30, 1024)
    with pytest.raises(BadInput, match="30 x 1024 = 30720 values") as refused:
        charts.heatmap(da)
    advice = str(refused.value).split("e.g. ")[1].split(", or use")[0]
    assert "coarsen(position=7" in advice
    charts.heatmap(eval(advice, {"result": da}))  # the advice works as printed


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: charts.heatmap(np.ones((2, 2))), BadInput, "labelled result"),
        (lambda: charts.heatmap(effect() * 1j), BadInput, "real numbers"),
        (lambda: charts.heatmap(effect().isel(layer=0)), BadInput, "two dimensions"),
        (lambda: charts.heatmap(effect().isel(layer=slice(0))), BadInput, "empty"),
        (lambda: charts.heatmap(effect(), y="layers"), UnknownName, "did you mean 'layer'"),
        (lambda: charts.heatmap(estimates(components=True)), BadInput, "no place for"),
        (lambda: charts.head_grid(effect()), BadInput, "layer and head"),
        (lambda: charts.profile(effect()), BadInput, "8 can be told apart"),
        (lambda: charts.profile(-effect().isel(position=9), log=True), BadInput, "positive"),
        (lambda: charts.profile(effect()[:, 9], low=effect()[:, 9]), BadInput, "both low and high"),
        (lambda: charts.profile(effect()[:, 9] * np.nan), BadInput, "no finite value"),
        (lambda: charts.scatter(effect(), effect(), color="site"), UnknownName, "unknown"),
        (lambda: charts.scatter(effect(), effect() * np.nan), BadInput, "finite"),
        (lambda: charts.scatter(effect(), effect(), color="layer"), BadInput, "told apart"),
        (lambda: charts.heatmap(effect()[0].to_dataset().merge({"b": 1.0})), BadInput, "like dim"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


# ---- rendering


@pytest.mark.parametrize("name", list(gallery()))
def test_every_chart_is_valid_small_and_described(name):
    spec = gallery()[name]().to_dict()
    bundle, metadata = render(spec)
    assert bundle[MIME]["$schema"].endswith("/v5.json")
    assert len(json.dumps(bundle)) < 100_000
    assert "http" not in json.dumps({**bundle[MIME], "$schema": ""})
    assert len(bundle["text/plain"]) > 10
    assert set(metadata) == {MIME}


def test_png_is_a_picture_and_small(tmp_path):
    png = charts.to_png(charts.heatmap(effect()), tmp_path / "map.png", scale=1)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "map.png").read_bytes() == png
    assert 5_000 < len(png) < 100_000


def test_squeezing_a_png_changes_no_pixel():
    import zlib

    import vl_convert

    from lwlab.charts import png

    svg = "<svg xmlns='http://www.w3.org/2000/svg' width='60' height='40'><circle r='30'/></svg>"
    before = vl_convert.svg_to_png(svg)
    after = png.squeeze(before)

    def pixels(data: bytes) -> bytes:
        at, out = 8, b""
        while at < len(data):
            n = int.from_bytes(data[at : at + 4])
            if data[at + 4 : at + 8] == b"IDAT":
                out += data[at + 8 : at + 8 + n]
            at += 12 + n
        return zlib.decompress(out)

    assert pixels(after) == pixels(before)
    assert len(after) < len(before)


def test_the_first_chart_sets_the_renderer_but_not_over_a_users_choice():
    code = """
import xarray as xr
from lwlab import charts
from lwlab.charts._altair import altair
alt = altair()
for chosen in ("default", "png"):
    alt.renderers.enable(chosen)
    altair.cache_clear()
    charts.profile(xr.DataArray([1., 2], dims="layer"))
    print(alt.renderers.active)
"""
    assert run_python(code).split() == ["lwlab", "png"]


def test_importing_charts_is_cheap_and_altair_leaves_no_block_behind():
    code = """
import sys
from lwlab import charts, widgets
print(sorted(m for m in ("altair", "pandas", "torch", "vl_convert", "xarray") if m in sys.modules))
charts.enable()
print("rfc3987_syntax" in sys.modules, "altair" in sys.modules)
"""
    assert run_python(code).splitlines() == ["[]", "False True"]


def test_a_small_picture_keeps_its_colours_and_never_grows():
    from PIL import Image

    from lwlab.charts import png

    few = np.zeros((40, 60, 3), np.uint8)
    few[:20, :30], few[20:, 30:] = (31, 119, 180), (255, 127, 14)
    made = png.small(png.encode(few))
    assert (np.asarray(Image.open(io.BytesIO(made)).convert("RGB")) == few).all()
    many = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
    assert len(png.small(png.encode(many))) <= len(png.encode(many))
