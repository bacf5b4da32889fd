"""The user's table: what is read, what is refused with one warning, and how it enters plans. No GPU is needed."""

import copy
import json
import sys
import warnings
from dataclasses import replace

import pytest
import torch

import gdcore
from gdcore import backends, devices, tuned, tuned_format
from gdcore.backends import Wanted
from gdcore.devices import CPU, H200, INTERPRETED
from gdcore.kernels.configs import Config
from gdcore.plan import plan_for
from gdcore.tuned_format import FAMILIES, SOURCES, Entry, key_of

GPU = H200._replace(name="NVIDIA H200")
SHAPE, SHIPPED, CHOSEN = (1_000_000, 100, 1), Config(32, 128, 0, 4, 2), Config(32, 128, 0, 8, 2)
ROW = {
    "family": "one_pass_vector",
    "dtype": "float32",
    "n": 0,
    "k": 128,
    "m": 1,
    "input_precision": "ieee",
    "residual": False,
    "config": {"block_n": 32, "block_k": 128, "block_m": 0, "num_warps": 8, "num_stages": 2},
    "compiled": {
        "registers": 90,
        "shared_bytes": 9000,
        "programs_per_sm": 3,
        "occupancy": 0.375,
        "limited_by": "registers",
    },
    "seconds": 1e-4,
    "default_seconds": 1.2e-4,
}
DOT = ROW | {
    "family": "one_pass_dot",
    "k": 64,
    "m": 16,
    "config": {"block_n": 32, "block_k": 64, "block_m": 16, "num_warps": 4, "num_stages": 3},
}


def document(*rows):
    rows = rows or (ROW,)
    return {**tuned_format.header(GPU, [row["family"] for row in rows]), "entries": copy.deepcopy(list(rows))}


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU that is there as far as plans can tell, and the path of its table."""

    class Properties:
        name, multi_processor_count, shared_memory_per_block_optin = GPU.name, GPU.sms, GPU.shared_memory
        major, minor = 9, 0

    def forget():
        devices._describe_cuda.cache_clear()
        tuned.table_for.cache_clear()

    path = tmp_path / "table.json"
    monkeypatch.setenv(tuned.VARIABLE, str(path))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(backends, "interpreting", lambda: False)
    forget()
    yield path
    forget()


def described(index=0):
    return devices.describe(torch.device("cuda", index))


def refused(path, content):
    """The one warning that a table's content gives, for every plan and every GPU of this kind."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [described(index).tuned for index in (0, 1, 0)]
    assert found == [None] * 3
    (warning,) = caught
    assert issubclass(warning.category, tuned.TunedTableWarning)
    assert issubclass(warning.category, UserWarning)
    text = str(warning.message)
    assert str(path) in text
    assert "shipped configurations are used; run gdcore-bench tune, or delete the file" in text
    assert plan_for(*SHAPE, device=described()).config == SHIPPED
    return text


def test_a_plan_takes_the_users_configuration_and_its_resources(gpu):
    gpu.write_text(json.dumps(document(ROW, DOT)))
    device = described()
    plan = plan_for(*SHAPE, device=device)
    assert plan.config == CHOSEN
    assert plan.compiled == {**ROW["compiled"], "variant": "one_pass_vector float32 K=128 M=1"}
    assert plan.programs == 3 * GPU.sms
    assert plan_for(1000, 64, 16, device=device).config == Config(32, 64, 16, 4, 3)
    # What was not tuned is launched as it ships.
    for other in ({"dtype": torch.float64}, {"wanted": Wanted(True, True)}, {"target_dtype": torch.float64}):
        assert plan_for(*SHAPE, device=device, **other).tuned is None
    assert plan_for(10**6, 64, 1, device=device).tuned is None
    assert plan_for(*SHAPE, device=device, contiguous=False).tuned is None
    assert plan_for(*SHAPE, device=GPU).config == SHIPPED


def test_entries_of_the_products_are_for_sizes_rounded_up(gpu):
    blocks = {"block_n": 64, "block_k": 32, "block_m": 64, "num_warps": 4, "num_stages": 4}
    sizes = {"n": 1 << 16, "k": 512, "m": 512}
    rows = [ROW | sizes | {"family": f, "config": blocks} for f in ("forward", "backward_input", "backward_weight")]
    gpu.write_text(json.dumps(document(*rows)))
    plan = plan_for(50_000, 300, 500, device=described(), wanted=Wanted(True, True), input_precision="ieee")
    chosen = Config(64, 32, 64, 4, 4)
    assert plan.path in ("tiled", "library")
    assert (plan.config, plan.input_config, plan.weight_config) == (chosen,) * 3
    assert plan.tuned.config == chosen
    assert plan_for(1000, 300, 500, device=described(), wanted=Wanted(True, True)).tuned is None
    assert plan_for(50_000, 300, 500, device=described(), reduction="none").config != chosen


def test_where_nothing_was_faster_what_ships_stays(gpu):
    gpu.write_text(json.dumps(document(ROW | {"config": None, "compiled": None})))
    assert described().tuned.entries == {}
    assert plan_for(*SHAPE, device=described()).config == SHIPPED


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


def inside(row, part, **values):
    return row | {part: row[part] | values}


ENTRIES = {
    "block that is no power of two": (inside(ROW, "config", block_n=48), "no power of two"),
    "block far too long": (inside(ROW, "config", block_n=1 << 20), "block_n is"),
    "block that the kernel does not have": (inside(ROW, "config", block_m=16), "block_m is 16"),
    "block of 0": (inside(ROW, "config", block_n=0), "block_n is 0"),
    "tile that leaves features out": (inside(DOT, "config", block_k=32), "does not span"),
    "three warps": (inside(ROW, "config", num_warps=3), "num_warps is 3"),
    "true warps": (inside(ROW, "config", num_warps=True), "num_warps is True"),
    "nine stages": (inside(ROW, "config", num_stages=9), "num_stages is 9"),
    "stages as text": (inside(ROW, "config", num_stages="2"), "num_stages is '2'"),
    "more shared memory than there is": (inside(ROW, "compiled", shared_bytes=232_449), "shared_bytes is 232449"),
    "no program": (inside(ROW, "compiled", programs_per_sm=0), "programs_per_sm is 0"),
    "occupancy of 2": (inside(ROW, "compiled", occupancy=2.0), "occupancy is 2.0"),
    "no resources": (without(ROW, "compiled"), "compiled is wrong"),
    "unknown family": (ROW | {"family": "sideways"}, "kernels that do not exist"),
    "unknown dtype": (ROW | {"dtype": "int8"}, "dtype is 'int8'"),
    "dtype that is a list": (ROW | {"dtype": []}, "dtype is []"),
    "sizes between two classes": (ROW | {"k": 100}, "not rounded"),
    "negative size": (ROW | {"m": -1}, "m is -1"),
    "tf32 of half numbers": (ROW | {"dtype": "float16", "input_precision": "tf32"}, "input_precision"),
    "no time": (ROW | {"seconds": 0.0}, "seconds is 0.0"),
    "no entry": (None, "it is no entry"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_one_wrong_entry_refuses_the_whole_table(gpu, name, monkeypatch):
    wrong, words = ENTRIES[name]
    found = document(ROW if wrong is None or wrong["family"] == "one_pass_dot" else DOT)
    if wrong is not None:
        monkeypatch.setitem(SOURCES, "sideways", SOURCES["forward"])
        found["kernels"] |= tuned_format.header(GPU, [wrong["family"]])["kernels"]
    found["entries"].append(wrong)
    assert words in refused(gpu, found)


def test_an_entry_that_is_there_twice_refuses_the_table(gpu):
    assert "twice" in refused(gpu, document(ROW, ROW))


FOREIGN = {
    "schema": "gdcore-tuned/2",
    "gpu": "NVIDIA A100",
    "architecture": 80,
    "sms": 114,
    "triton": "2.1.0",
    "kernels": {"one_pass_vector": "0123456789abcdef"},
    "entries": None,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_table_is_refused(gpu, name):
    assert name in refused(gpu, document() | {name: FOREIGN[name]})


@pytest.mark.parametrize(
    "content",
    ["", json.dumps(document())[:-40], "[]", "null", "\0\0", "[" * 100_000, '{"schema": NaN}'],
    ids=["empty", "cut short", "a list", "null", "zeros", "nested too deeply", "NaN"],
)
def test_a_damaged_file_is_refused(gpu, content):
    refused(gpu, content)


def test_a_folder_in_its_place_is_refused(gpu):
    gpu.mkdir()
    with pytest.warns(tuned.TunedTableWarning, match="directory"):
        assert described().tuned is None


def test_kernels_that_changed_since_then_refuse_the_table(gpu, monkeypatch):
    content = document()
    monkeypatch.setitem(SOURCES, "one_pass_vector", ("one_pass_rows",))
    tuned_format.generation.cache_clear()
    try:
        assert "another version of the kernels: one_pass_vector" in refused(gpu, content)
    finally:
        tuned_format.generation.cache_clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_digest_of_its_own_sources(family):
    assert family in SOURCES[family]
    assert [tuned_format.generation(f) for f in FAMILIES].count(tuned_format.generation(family)) == 1


def test_no_file_is_no_table_and_no_warning(gpu, recwarn):
    assert described().tuned is None
    assert not recwarn.list


def test_off_means_off(gpu, monkeypatch, recwarn):
    gpu.write_text("damaged")
    monkeypatch.setenv(tuned.VARIABLE, "off")
    assert described().tuned is None
    assert not recwarn.list
    with pytest.raises(tuned.NoTable, match="off"):
        tuned.path_for(GPU)


def test_without_platformdirs_there_is_no_table(gpu, monkeypatch, recwarn):
    monkeypatch.delenv(tuned.VARIABLE)
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert described().tuned is None
    assert not recwarn.list
    with pytest.raises(tuned.NoTable, match="pip install platformdirs"):
        tuned.path_for(GPU)


def test_the_file_lies_in_the_users_cache_under_the_gpus_name(monkeypatch, tmp_path):
    monkeypatch.delenv(tuned.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tuned.path_for(GPU._replace(name="NVIDIA H200 / ../80GB"))
    assert path.name == "nvidia-h200-80gb.json"
    assert path.parent.parts[-2:] == ("gdcore", "tuned")


@pytest.mark.parametrize("device", [CPU, H200, INTERPRETED], ids=lambda d: d.name)
def test_devices_that_are_not_there_have_no_table(device):
    assert device.tuned is None


@pytest.mark.parametrize("interpreted", [False, True], ids=["streaming", "interpreted"])
def test_plans_for_a_cpu_read_no_table(monkeypatch, interpreted):
    monkeypatch.setattr(tuned, "read", None)  # calling it would raise
    monkeypatch.setattr(devices, "table_for", None)
    assert devices.describe(torch.device("cpu"), interpreted).tuned is None


def test_interpreted_kernels_read_no_table(gpu, monkeypatch, recwarn):
    gpu.write_text("damaged")
    monkeypatch.setattr(backends, "interpreting", lambda: True)
    assert described().tuned is None
    assert not recwarn.list


def test_explain_says_that_it_was_tuned_here(gpu, monkeypatch):
    gpu.write_text(json.dumps(document()))
    device = described()
    monkeypatch.setitem(devices.KNOWN, 90, device)
    tensors = torch.empty(10**6, 100, device="meta"), torch.empty(1, 100, device="meta").requires_grad_()
    told = gdcore.explain(*tensors, torch.empty(10**6, 1, device="meta"), device=device.name)
    assert "tile       32 rows x 128 features, 8 warps, 2 stages, 396 programs, tuned on this machine" in told
    assert "not run" not in told
    monkeypatch.setitem(devices.KNOWN, 90, device._replace(tuned=None))
    assert "tuned" not in gdcore.explain(
        *tensors, torch.empty(10**6, 1, device="meta", dtype=torch.float32), device=device.name
    )


def test_two_tables_give_two_plans_and_one_gives_the_same():
    def table(config):
        key = key_of("one_pass_vector", torch.float32, *SHAPE)
        return tuned.Table("", {key: Entry(config, 32, 0, 2, 0.25, "registers")})

    one, other = table(CHOSEN), table(replace(CHOSEN, num_warps=4))
    plans = [plan_for(*SHAPE, device=GPU._replace(tuned=which)) for which in (one, other, one, None)]
    assert plans[0] is plans[2]
    assert plans[0].config != plans[1].config
    assert plans[3].config == SHIPPED
