"""What a run measures: every option narrows it down, every name that does not exist is refused in a line."""

import argparse

import pytest

from gdcore.bench import selection
from gdcore.bench.cases import OPS
from gdcore.bench.profiles import PROFILES
from gdcore.bench.results import BadInput
from gdcore.bench.selection import Selection, choose, shape_of


def names(profile: str = "smoke", device: str = "cpu", **asked: object) -> list[str]:
    return [case.name for case in choose(profile, device, Selection(**asked))]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_every_kind_and_every_operation_under_names_of_their_own(profile, device):
    cases = choose(profile, device, Selection())
    assert len({case.name for case in cases}) == len(cases)
    assert {case.kind for case in cases} == {"linear_mse", "sgd", "run"}
    assert {case.op for case in cases} >= {"backward", "step", "sgd", "run"}


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({"regime": ("A", "B")}, lambda case: case.regime in "AB"),
        ({"op": ("step", "sgd")}, lambda case: case.op in ("step", "sgd")),
        ({"dtype": ("bfloat16",)}, lambda case: "16" in str(case.dtype)),
        ({"peer": ("sklearn",)}, lambda case: case.kind == "run"),
        ({"peer": ("foreach", "sklearn")}, lambda case: case.kind != "linear_mse"),
        ({"only": "RESNET"}, lambda case: "ResNet" in case.name),
        ({"only": "tiny-*-step"}, lambda case: case.name.startswith("tiny") and case.name.endswith("step")),
        ({"op": ("step",), "regime": ("D",)}, lambda case: case.op == "step" and case.regime == "D"),
    ],
    ids=lambda value: (
        str(value) if isinstance(value, dict) else ""
    ),  # a function's address is another one in each process
)
def test_each_option_narrows_the_profile_down(asked, fits):
    everything = choose("quick", "cpu", Selection())
    wanted = [case.name for case in everything if case.regime is not None or "regime" not in asked if fits(case)]
    assert 0 < len(wanted) < len(everything)
    assert names("quick", **asked) == wanted


def test_sizes_of_ones_own_replace_the_profiles_cases_each_once():
    found = names(
        size=("100x2x1", "100x2x1", "9000000x3x1"), dtype=("float64", "float32"), op=("step", "forward", "sgd")
    )
    assert found == [
        f"{where}-{dtype}-{what}"
        for where in ("tiny-100x2x1", "skinny-9000000x3x1")
        for dtype in ("float64", "float32")
        for what in ("dW-step", "loss")
    ]
    (case,) = choose("smoke", "cpu", Selection(size=("100x2x1",)))
    assert case.name == "tiny-100x2x1-float32-dW" and case.seconds == selection.SIZED_SECONDS
    assert names(size=("100x2x1",), regime=("A",)) == [], "a size has the regime that it has"


@pytest.mark.parametrize(
    "size", ["0x2x1", "2x0x1", "2x2x0", "-1x2x1", "1e9", "1e9x2x1", "axbxc", "2x2", "2x2x2x2", "2×2×2"]
)
def test_what_is_no_size_is_refused(size):
    with pytest.raises(BadInput, match=f"size '{size}'"):
        shape_of(size)


@pytest.mark.parametrize(
    "size",
    [
        f"{1 << 40}x{1 << 40}x1",
        f"{1 << 40}x1x{1 << 40}",
        f"1x{1 << 40}x{1 << 40}",
        "9" * 19 + "x1x1",
        "9" * 6000 + "x1x1",
        "٣x٣x٣",
    ],
    ids=["N x K", "N x M", "M x K", "N alone", "6,000 digits", "other digits"],
)
def test_sizes_beyond_every_machine_are_refused(size):
    with pytest.raises(BadInput, match="size "):
        shape_of(size)


def test_the_largest_size_is_taken():
    assert shape_of(f"{1 << 61}x2x1") == (1 << 61, 2, 1)


def test_an_unknown_profile_is_refused_also_where_a_file_names_it():
    with pytest.raises(BadInput, match="unknown profile 'huge': it must be one of quick, full, smoke"):
        choose("huge", "cpu", Selection())


@pytest.mark.parametrize(
    ("asked", "has"),
    [
        ({}, ("host", "predicted")),
        ({"op": ("host", "step")}, ("host",)),
        ({"op": OPS}, ()),
        ({"only": "pred"}, ("predicted",)),
        ({"only": "tiny"}, ()),
        ({"regime": ("A",)}, ()),
        ({"size": ("1x1x1",)}, ()),
        ({"peer": ("jax",)}, ()),
        ({"dtype": ("float32",)}, ()),
    ],
    ids=str,
)
def test_pieces_without_a_shape_are_asked_for_by_kind_or_name(asked, has):
    assert tuple(part for part in ("host", "predicted") if Selection(**asked).has(part)) == has


def test_a_selection_survives_its_file():
    asked = Selection(regime=("A",), size=("1x2x3", "4x5x6"), only="x")
    assert Selection.from_json(asked.to_json()) == asked and not asked.empty
    assert Selection.from_json(Selection().to_json()).empty


@pytest.mark.parametrize(
    "found", [{"colour": ["red"]}, {"regime": [1]}, {"only": 3}, {"size": "1x1x1"}, {"op": {"a": 1}}], ids=str
)
def test_a_files_selection_that_is_none_is_refused(found):
    with pytest.raises(BadInput, match="selection"):
        Selection.from_json(found)


@pytest.mark.parametrize("option", ["regime", "op", "dtype", "peer"])
def test_every_name_that_help_offers_is_taken(option):
    parser = argparse.ArgumentParser()
    selection.add_arguments(parser)
    (help_,) = (action.help for action in parser._actions if action.dest == option)
    listed = help_.split("of ", 1)[1].split(";")[0].split(", ")
    every = [name.split(" (")[0] for name in listed]
    chosen = selection.selected(parser.parse_args([f"--{option}", ",".join(every)]))
    assert getattr(chosen, option) == tuple(every)
