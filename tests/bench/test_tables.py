"""Tables of result documents of any incompleteness: every row has as many cells as there are headings, no figure is lost."""

import pytest

from gdcore.bench import tables, words


def cells(table: tables.Table) -> str:
    assert all(len(row) == len(table.heads) for row in table.rows), table
    assert all(isinstance(cell, str) for row in table.rows for cell in row), table
    return "\n".join(" | ".join(row) for row in table.rows)


def rows_of_every_outcome(make) -> list[dict]:
    alone = make.row("nobody else", seconds={"gdcore": 0.01})
    lost = make.row("lost", seconds={"eager": 0.04, "jax": 0.002, "gdcore": 0.01})
    raised = make.row("a peer raised")
    raised["peers"]["compile"] = {"what": "compiled", "failure": "RuntimeError: no compiler"}
    left_out = make.row("left out")
    left_out["peers"]["jax"] = {"what": "JAX", "left_out": "JAX is not installed"}
    untimed = make.row("untimed", column="device")
    untimed["peers"]["gdcore"]["no_time"] = {"device": "RuntimeError: out of graphs"}
    for part in ("comparisons", "best", "noise"):
        untimed[part] = {}
    untimed["failed"] = "RuntimeError: out of graphs"
    broken = make.row("raised")
    broken["peers"]["gdcore"] = {"what": "ours", "failure": "ValueError: no"}
    for part in ("column", "comparisons", "best", "noise", "clocks"):
        del broken[part]
    broken["failed"] = "ValueError: no"
    nan = make.wrong(make.row("not a number"))
    nan["peers"]["gdcore"]["parity"] |= {"errors": {"loss": "nan"}, "worst_ratio": "inf"}
    return [
        make.row("won"),
        alone,
        lost,
        raised,
        make.wrong(make.row("a wrong peer", seconds={"eager": 0.04, "library": 0.02, "gdcore": 0.01}), "library"),
        left_out,
        untimed,
        broken,
        nan,
        make.wrong(make.row("wrong")),
        {
            **{name: make.row()[name] for name in ("kind", "op", "regime", "n", "k", "m", "dtype", "wanted")},
            "label": "skipped",
            "skipped": "it takes about 9 GiB",
        },
        make.row("a step", kind="sgd"),
        {"kind": "sgd", "op": "sgd", "regime": None, "label": "a skipped step", "skipped": "too big"},
        make.row("a run", kind="run", seconds={"eager": 0.04, "sklearn": 0.001, "gdcore": 0.05}),
        make.wrong(make.row("a wrong run", kind="run")),
        {"kind": "run", "op": "run", "regime": "D", "label": "a skipped run", "skipped": "no data"},
    ]


HOST = {
    "what": "host",
    "rows": {"a call": {"what": "loss", "peers": {"fused": {"p50": 3e-5}, "gdcore": {"p50": 1e-5}}}},
}
PREDICTED = {
    "n": 10,
    "k": 2,
    "m": 1,
    "dtype": "float32",
    "wanted": ["weight"],
    "device": "H200",
    "path": "tiled",
    "bytes": 100,
}
PREDICTED |= {
    "stock_bytes": 300,
    "floor_seconds": 1e-6,
    "stock_floor_seconds": 3e-6,
    "bound_by": "memory",
    "compiled": None,
}


def test_a_row_of_every_outcome_is_in_a_table_in_words(make):
    document = make.document(rows_of_every_outcome(make), host=HOST, predicted=[PREDICTED])
    text = "\n".join(cells(table) for table in tables.all_of(document))
    for row in document["cases"].values():
        assert row["label"] in text
    for said in (
        "it takes about 9 GiB",
        "ValueError: no",
        "loss is off by 1e-03",
        "out of graphs",
        "nan / 2e-08 | inf | FAILS",
    ):
        assert said in text


def test_one_outcome_alone_is_a_document_too(make):
    for row in rows_of_every_outcome(make):
        for table in tables.all_of(make.document([row])):
            assert row["label"] in cells(table)


@pytest.mark.parametrize(
    "parts",
    [{}, {"host": HOST}, {"predicted": [PREDICTED]}, {"host": {"failure": "no kernels"}}, {"ceilings": None}],
    ids=str,
)
def test_documents_of_any_incompleteness_have_the_tables_they_can(make, parts):
    found = tables.all_of(make.document([], **parts))
    assert len(found) == ("failure" not in parts.get("host", {"failure": 1})) + ("predicted" in parts)
    assert all(cells(table) for table in found)


def test_the_speed_table_says_who_wins_and_who_was_wrong(make):
    row = make.row("a case", seconds={"eager": 0.04, "compile": 0.002, "gdcore": 0.01})
    row["peers"]["library"] = make.wrong(make.row(), "eager")["peers"]["eager"]
    row["peers"]["functional"] = {"what": "f", "failure": "RuntimeError: no compiler"}
    other = make.row("another", seconds={"eager": 0.04, "library": 0.02, "functional": 0.03, "gdcore": 0.01})
    table = tables.speed(make.document([row, other]), "linear_mse")
    first = dict(zip(table.heads, table.rows[0], strict=True))
    assert first == {
        "case": "a case",
        "path": "streaming",
        "stock": "40.0 ms",
        "torch.compile": "2.00 ms",
        "compiled as one graph": "failed",
        "by hand": "wrong",
        "gdcore": "10.0 ms",
        "against stock (95 %)": "4.00x (3.92 to 4.08)",
        "against the best": "0.20x of torch.compile",
        "verdict": "slower",
        "of the floor": "50 %",
    }


def test_a_case_without_a_figure_shows_why_and_no_time(make):
    document = make.document([make.wrong(make.row("wrong")), make.row("right")])
    wrong, right = tables.speed(document, "linear_mse").rows
    assert wrong[-1] == "loss is off by 1e-03" and not any(wrong[2:-1]) and "10.0 ms" in right


def test_clocks_are_compared_only_where_there_are_several(make):
    row = make.row(column="device")
    for part in ("comparisons", "best"):
        row[part] = dict.fromkeys(("device", "wall"), row[part]["device"])
    row["peers"]["gdcore"]["times"]["wall"] = row["peers"]["gdcore"]["times"]["device"]
    table = tables.columns(make.document([row, make.row()]))
    assert [line[1:] for line in table.rows] == [["10.0 ms, 4.00x of stock", "", "10.0 ms, 4.00x of stock"]]


def test_memory_is_next_to_what_one_matrix_takes(make):
    row = make.row()
    row["peers"]["eager"]["peak_bytes"], row["peers"]["gdcore"]["peak_bytes"] = 1 << 20, 0
    table = tables.memory(
        make.document([row, make.row("unknown"), {"kind": "linear_mse", "op": "step", "label": "x", "skipped": "y"}])
    )
    assert table.heads == ("case", "an N × M matrix", "stock", "gdcore") and len(table.rows) == 1
    assert table.rows[0] == ["1,000 × 2 × 1", "3.9 KiB", "1.0 MiB", "0 B"]


def test_host_times_are_against_stock(make):
    assert tables.host(HOST).rows == [["a call", "loss", "30.0 µs", "10.0 µs", "3.00x"]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e-12, 123456.0], ids=str)
def test_numbers_of_any_size_have_words(value):
    assert words.three_digits(value) and words.duration(value).endswith("s") and words.times(value).endswith("x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.duration(6.12e-5), "61.2 µs"),
        (words.duration(0.99999), "1,000 ms"),
        (words.duration(1.31), "1.31 s"),
        (words.duration(2e-10), "0.20 ns"),
        (words.spread(0.0138, 0.0149, 0.014), "13.8–14.9"),
        (words.size(999), "999 B"),
        (words.size(3_355_443), "3.2 MiB"),
        (words.size(1 << 50), "1048576 GiB"),
        (words.share(0.625), "62 %"),
        (words.difference(0.0), "0"),
        (words.listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_words_for_numbers(text, expected):
    assert text == expected
