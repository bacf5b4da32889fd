"""The README's pictures: the same bytes for the same document, and no picture without data."""

import pytest

from gdcore.bench import figures
from gdcore.bench.results import BadInput
from report_support import document

NAMES = [f"{name}.{kind}" for name in ("speed", "roofline", "memory", "errors") for kind in ("svg", "png")]


def test_two_draws_give_the_same_files(tmp_path):
    first, second = (figures.draw(document(), tmp_path / name) for name in ("one", "two"))
    assert [path.name for path in first] == NAMES
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
        assert b"<dc:date>" not in one.read_bytes()


def test_speed_shows_every_peer_that_has_figures_and_says_where_one_has_none():
    found = document()
    found["cases"]["won"]["peers"]["library"] = found["cases"]["won"]["peers"]["compile"]
    axes = figures.speed(found).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "stock",
        "gdcore",
        "torch.compile",
        "by hand",
    ]
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("no figure") == 2 and {"4.00x", "0.80x", "1.00x"} <= set(texts)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "50,000 × 8 × 2",
        "3,000 × 8 × 2",
        "200,000 × 8 × 2 (dX, dW)",
    ]


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ((), set()),
        (("skipped",), set()),
        (("wrong",), {"roofline", "memory", "errors"}),
        (("sgd", "run"), {"errors"}),
        (("won",), {*figures.PICTURES}),
    ],
    ids=["no cases", "skipped", "wrong", "no fused case", "one case"],
)
def test_a_picture_without_data_is_left_out(kept, expected):
    found = document() | {"ceilings": None}
    found["cases"] = {name: found["cases"][name] for name in kept}
    assert {name for name, paint in figures.PICTURES.items() if paint(found) is not None} == expected


def test_nothing_is_written_without_data(tmp_path):
    assert figures.draw({}, tmp_path) == [] and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"^cannot write .+: .+$"):
        figures.draw(document(), tmp_path / "file" / "pictures")
