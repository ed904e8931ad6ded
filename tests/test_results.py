"""Results: what is saved is what is opened, labels that do not fit are refused, provenance."""

from __future__ import annotations

import builtins
import os
import sys
import types

import numpy as np
import pytest
import torch
import xarray as xr

import lwlab
from lwlab import results
from lwlab.errors import BadInput
from lwlab.results import label, provenance, save
from lwlab.results import open as open_result

AWKWARD = {
    "none": None,
    "yes": True,
    "count": 3,
    "real": 3.0,
    "nan_free": 1e-300,
    "empty": "",
    "empty_list": [],
    "mixed": [1, "two", None, False, [3.5]],
    "nested": {"ln": True, "half": None, "layers": [0, 29]},
    "text": "Å “quoted”\nline \\ slash / 漢",
}


def heat() -> xr.DataArray:
    values = np.arange(12, dtype="float32").reshape(3, 4)
    values[1, 2] = np.nan
    return label(
        values,
        ("layer", "position"),
        {
            "layer": [0, 5, 29],
            "token_str": ("position", [" Mary", "", "漢", " a/b"]),
            "own": (("layer", "position"), np.array([["a", "bb", "", "d"]] * 3)),
        },
        name="resid effect/1",
        **AWKWARD,
    )


def same(a: xr.DataArray | xr.Dataset, b: xr.DataArray | xr.Dataset) -> None:
    assert type(a) is type(b)
    xr.testing.assert_identical(a, b)
    for key in a.coords:
        assert a.coords[key].dtype == b.coords[key].dtype, key
    assert repr(a.attrs) == repr(b.attrs)  # 3 and 3.0, True and 1 compare equal


def test_a_data_array_survives_the_disk(tmp_path):
    path = save(heat(), tmp_path / "deep" / "er" / "r.nc")
    same(heat(), open_result(path))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64", "bool"])
def test_every_dtype_survives(tmp_path, dtype):
    array = label(np.array([[0, 1], [1, 0]], dtype=dtype), ("head", "layer"))
    back = open_result(save(array, tmp_path / "r.nc"))
    same(array, back)
    assert back.dtype == dtype


def test_a_dataset_keeps_variables_attributes_and_scalars(tmp_path):
    data = xr.Dataset(
        {"resid": heat().rename(None).drop_vars("own"), "pearson": ((), 0.5)},
        coords={"model": "tiny"},
        attrs=AWKWARD,
    )
    data["pearson"].attrs = {"interval": [0.1, 0.9], "n": None}
    data["layer"].attrs = {"unit": "block"}
    back = open_result(save(data, tmp_path / "r.nc"))
    same(data, back)
    assert back["pearson"].attrs == {"interval": [0.1, 0.9], "n": None}
    assert back["layer"].attrs == {"unit": "block"}


def test_text_coordinates_of_a_dimension_survive(tmp_path):
    array = label(torch.zeros(2, 0), ("component", "layer"), {"component": ["mlp", "attn out"]})
    back = open_result(save(array, tmp_path / "r.nc"))
    same(array, back)
    assert back.sel(component="attn out").shape == (0,)


def test_an_attribute_beyond_the_hdf5_limit_survives(tmp_path):
    prompts = ["When Mary and John went to the store" * 10] * 1000
    array = label(torch.zeros(2), "layer", prompts=prompts)
    assert open_result(save(array, tmp_path / "r.nc")).attrs["prompts"] == prompts


def test_infinite_and_nan_attributes_survive(tmp_path):
    array = label([1.0], "layer", low=float("nan"), high=float("inf"))
    attrs = open_result(save(array, tmp_path / "r.nc")).attrs
    assert np.isnan(attrs["low"])
    assert attrs["high"] == float("inf")


def test_saving_leaves_the_result_as_it_was(tmp_path):
    data = xr.Dataset({"a": heat()}, attrs=AWKWARD)
    before = data.copy(deep=True)
    save(data, tmp_path / "r.nc")
    same(before, data)


def test_a_failed_save_keeps_the_old_file_and_leaves_no_debris(tmp_path, monkeypatch):
    path = save(heat(), tmp_path / "r.nc")
    old = path.read_bytes()

    def broken(self, fresh, **_):
        fresh.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", broken)
    with pytest.raises(OSError, match="disk full"):
        save(heat() + 1, path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["r.nc"]


def test_overwriting_while_the_old_one_was_opened_works(tmp_path):
    path = save(heat(), tmp_path / "r.nc")
    first = open_result(path)
    save(first * 2, path)
    assert float(open_result(path)[2, 3]) == 2 * float(first[2, 3])


def test_a_file_not_ours_opens_as_a_dataset(tmp_path):
    xr.Dataset({"x": ("t", [1, 2])}).to_netcdf(tmp_path / "r.nc", engine="h5netcdf")
    assert list(open_result(tmp_path / "r.nc")["x"].values) == [1, 2]


@pytest.mark.parametrize("name", ["r.csv", "r", "r.nc.gz"])
def test_an_unknown_suffix_says_what_would_work(tmp_path, name):
    with pytest.raises(BadInput, match=r"\.nc \(netCDF\) or \.zarr"):
        save(heat(), tmp_path / name)
    with pytest.raises(BadInput, match=r"\.nc \(netCDF\) or \.zarr"):
        open_result(tmp_path / name)


def test_zarr_without_the_package_names_the_way_out(tmp_path, monkeypatch):
    real = builtins.__import__

    def no_zarr(name, *args, **kwargs):
        if name == "zarr":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_zarr)
    with pytest.raises(BadInput, match=r"zarr, which is not installed: save as \.nc"):
        save(heat(), tmp_path / "r.zarr")


def test_zarr_round_trip(tmp_path):
    pytest.importorskip("zarr")
    same(heat(), open_result(save(heat(), tmp_path / "r.zarr")))
    same(heat() * 2, open_result(save(heat() * 2, tmp_path / "r.zarr")))
    assert os.listdir(tmp_path) == ["r.zarr"]


def test_what_cannot_be_saved_is_refused_before_writing(tmp_path):
    path = tmp_path / "r.nc"
    with pytest.raises(BadInput, match=r"takes an xarray .* got a Tensor"):
        save(torch.zeros(3), path)
    with pytest.raises(BadInput, match="'model' is a Linear"):
        save(xr.DataArray([1.0], dims="t", attrs={"model": torch.nn.Linear(1, 1)}), path)
    with pytest.raises(BadInput, match=r"'tok' holds (NoneType|float) where text"):
        save(xr.DataArray([1, 2], dims="t", coords={"tok": ("t", ["a", None])}), path)
    with pytest.raises(BadInput, match="reset_index"):
        save(heat().stack(cell=("layer", "position")), path)
    with pytest.raises(BadInput, match="named 'a/b'"):
        save(xr.Dataset({"a/b": ("t", [1.0])}), path)
    with pytest.raises(BadInput, match="complex"):
        save(xr.DataArray([1j], dims="t"), path)
    assert os.listdir(tmp_path) == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"no result at .*gone\.nc"):
        open_result(tmp_path / "gone.nc")


def test_a_damaged_file_is_named(tmp_path):
    path = save(heat(), tmp_path / "r.nc")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadInput, match=r"r\.nc' cannot be read as nc"):
        open_result(path)


def test_label_takes_tensors_of_any_kind():
    tensor = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    array = label(tensor, ("layer", "head"))
    assert array.dtype == "float32"
    assert array.dims == ("layer", "head")
    assert label(torch.tensor(2.0), ()).item() == 2.0


def test_label_refuses_names_that_do_not_fit():
    with pytest.raises(BadInput, match=r"shape \(2, 3\) has 2 axes and dims names 1"):
        label(torch.zeros(2, 3), "layer")
    with pytest.raises(BadInput, match=r"'layer' has shape \(2,\)"):
        label(torch.zeros(3), "layer", {"layer": [0, 1]})
    with pytest.raises(BadInput, match=r"'token_str' is no dimension"):
        label(torch.zeros(3), "position", {"token_str": ["a", "b", "c"]})
    with pytest.raises(BadInput, match="'fn' is a function"):
        label(torch.zeros(3), "position", fn=lambda: None)


def test_every_result_says_its_provenance():
    class FakeTask:
        name, seed, attrs = "ioi", 7, {"template": "store-drink"}

        def __len__(self):
            return 8

    model = types.SimpleNamespace(name="smollm2-135m", checksum="abc")
    got = provenance(model, FakeTask(), technique="relp", seed=np.int64(8))
    assert got == {
        "lwlab_version": lwlab.__version__,
        "model": "smollm2-135m",
        "model_checksum": "abc",
        "task": "ioi",
        "n": 8,
        "seed": 8,
        "template": "store-drink",
        "technique": "relp",
    }
    assert label([1.0], "layer").attrs["lwlab_version"] == lwlab.__version__
    assert provenance("gpt2", "ioi")["model"] == "gpt2"


def test_the_accessor_hands_its_array_and_options_to_the_charts(monkeypatch):
    calls = []

    def chart(name):
        return lambda *args, **options: calls.append((name, args, options)) or name

    names = ("heatmap", "profile", "scatter", "head_grid")
    fake = types.ModuleType("lwlab.charts")
    for name in names:
        setattr(fake, name, chart(name))
    monkeypatch.setitem(sys.modules, "lwlab.charts", fake)
    monkeypatch.setattr(lwlab, "charts", fake, raising=False)
    array = heat()
    assert array.lw.heatmap(title="t") == "heatmap"
    assert array.lw.profile() == "profile"
    assert array.lw.scatter(array * 2, labels=True) == "scatter"
    assert array.lw.head_grid() == "head_grid"
    assert [c[0] for c in calls] == list(names)
    assert calls[0][1][0] is array
    assert calls[0][2] == {"title": "t"}
    xr.testing.assert_identical(calls[2][1][1], array * 2)

    data = xr.Dataset({"a": array.rename(None), "b": array.rename(None) + 1}, attrs={"model": "m"})
    data.lw.heatmap("position", variable="b")
    assert calls[-1][1][0].attrs["model"] == "m"
    np.testing.assert_array_equal(calls[-1][1][0], array + 1)
    assert calls[-1][1][1] == "position"
    data.lw.profile()
    assert calls[-1][1][0] is data
    with pytest.raises(BadInput, match=r"no variable 'c' in this result\. Available: a, b"):
        data.lw.heatmap(variable="c")
    with pytest.raises(BadInput, match=r"no variable 'a' in this result\. Available: none"):
        array.lw.heatmap(variable="a")


@pytest.mark.parametrize("chart", ["heatmap", "profile", "head_grid"])
def test_the_accessor_draws_real_charts(chart):
    array = label(torch.randn(3, 4), ("layer", "head"), name="effect")
    for drawn in (getattr(array.lw, chart)(), array.lw.scatter(array * 2)):
        assert "vega-lite" in drawn.to_dict()["$schema"]


def test_to_frame_has_one_row_a_cell():
    frame = heat().lw.to_frame()
    assert len(frame) == 12
    assert set(frame.columns) == {"layer", "position", "token_str", "own", "resid effect/1"}
    row = frame[(frame.layer == 5) & (frame.position == 3)].iloc[0]
    assert row["token_str"] == " a/b"
    assert row["resid effect/1"] == 7.0


def test_describe_names_sizes_and_origin():
    text = label(torch.zeros(2, 3), ("layer", "head"), name="dla", model="gpt2").lw.describe()
    assert text.startswith("dla: layer 2 x head 3")
    assert "model: gpt2" in text


@pytest.mark.filterwarnings("error")
def test_loading_the_module_again_keeps_the_accessor():
    import importlib

    importlib.reload(results)
    assert label([1.0], "layer").lw.describe()
