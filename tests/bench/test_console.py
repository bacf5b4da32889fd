"""The console, on a terminal of 80 columns and in a pipe: every figure in full, how far it is, and every outcome in words."""

import io
import re

import pytest
from rich.console import Console

from gdcore.bench import console


def screen(terminal: bool, width: int | None = None) -> Console:
    width = width or (80 if terminal else 120)
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, color_system=None)


def text(out: Console) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.file.getvalue()).replace("\r", "\n")


def lines_of(out: Console, *found: object) -> str:
    with console.Steps(out, [1.0] * len(found)) as steps:
        for number, each in enumerate(found):
            with steps.step(f"piece {number}", 1.0) as said:
                said.append(each)
    return text(out)


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_no_figure_is_cut_off(make, terminal, width):
    row = make.row(
        "10,000,000 × 2 × 1 (step: dW, db bfloat16)", seconds={"eager": 0.99996, "library": 0.99994, "gdcore": 1e-4}
    )
    printed = lines_of(screen(terminal, width), *[row] * 12)
    for figure in ("1,000 ms", "100 µs", "10,000x", "9,999x", "faster", "[12/12]", "against", "by hand"):
        assert figure in printed, figure
    assert "…" not in printed and all(len(line) <= width for line in printed.splitlines())
    assert set("10,000,000×2×1(step:dW,dbbfloat16)") <= set(printed)


def test_a_name_of_one_long_word_is_shown_in_full(make):
    assert lines_of(screen(False, 80), make.row("x" * 60, kind="sgd")).count("x") == 62, "two are of speed-ups"


def test_a_terminal_has_a_bar_and_the_time_left(make, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    out = screen(True)
    with console.Steps(out, [10.0, 30.0]) as steps:
        with steps.step("first", 10.0) as said:
            now[0] += 20.0  # twice as long as expected
            said.append("done")
        assert "first" in text(out) and "about 40 s left" in text(out) and "━" not in text(out)
        with steps.step("second", 30.0) as said:
            assert "about 60 s left" in text(out) and "━" in text(out)
            said.append("done")
    assert "[1/2] first: done (20.0 s)" in text(out)


def test_a_pipe_has_the_time_left_in_its_lines():
    printed = lines_of(screen(False), "done", "measured")
    assert re.search(r"^\[1/2\] piece 0: done \(0\.0 s; about [01] s left\)$", printed, re.M)
    assert "about 0 s left" in printed.splitlines()[-1] and "━" not in printed


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_a_row_of_every_outcome_has_a_line(make, terminal):
    no_best = make.row("no best", seconds={"eager": 0.04, "gdcore": 0.01})
    no_best["best"] = {}
    untimed = make.row("untimed", failed="RuntimeError: out of graphs")
    untimed["comparisons"] = {}
    rows = [
        make.row("won"),
        make.row("alone", seconds={"gdcore": 0.01}),
        make.wrong(make.row("[wrong]")),
        make.wrong(make.row("a wrong peer", seconds={"eager": 0.04, "library": 0.02, "gdcore": 0.01}), "library"),
        {"kind": "sgd", "label": "skipped", "skipped": "it takes [about] 9 GiB"},
        {
            "kind": "linear_mse",
            "label": "large",
            "wanted": ["weight"],
            "dtype": "float32",
            "op": "step",
            "skipped": "no",
        },
        make.row("a step", kind="sgd"),
        make.row("a run", kind="run"),
        no_best,
        untimed,
    ]
    printed = lines_of(screen(terminal), *rows)
    for row in rows:
        assert row["label"] in printed
    for expected in ("[wrong]: loss is off by 1e-03", "it takes [about] 9 GiB", "out of graphs", "wrong"):
        assert expected in printed, expected
    assert printed.count("against") == 1, "the heading comes once"
    out = screen(terminal)
    console.summary(out, make.document(rows))
    assert all(row["label"] in text(out) for row in rows)


def test_an_interrupt_leaves_the_terminal_in_order():
    out = screen(True)
    with pytest.raises(KeyboardInterrupt), console.Steps(out, [1.0]) as steps, steps.step("x", 1.0):
        raise KeyboardInterrupt
    assert out.file.getvalue().rstrip().endswith("\x1b[2K"), "the bar is taken away"
    assert "\x1b[?25h" in out.file.getvalue(), "the cursor is shown again"


@pytest.mark.parametrize("width", [80, 120])
def test_tables_keep_every_name_and_figure_whatever_the_width(make, width):
    slow = dict.fromkeys(
        ("eager", "compile", "max-autotune", "reduce-overhead", "functional", "library", "graph", "jax"), 0.04
    )
    out = screen(False, width)
    console.summary(out, make.document([make.row(seconds=slow | {"max-autotune": 0.0012, "gdcore": 0.01})]))
    assert "…" not in text(out) and "0.12x of torch.compile, max-autotune" in text(out)
    assert text(out).count("40.0 ms") == 7 and "reduce-overhead" in text(out)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_head_says_whose_figures_these_are(make, device):
    document = make.document()
    if device == "cuda":
        document["machine"] |= {
            "device": "cuda",
            "gpu": "NVIDIA [H200]",
            "sms": 132,
            "gpu_memory_gib": 139.8,
            "driver": "570.1",
        }
    out = screen(False)
    console.header(out, document, "some/[file].json")
    printed = text(out)
    assert ("CPU figures: no GPU here" in printed) == (device == "cpu") and "triton missing" in printed
    assert ("NVIDIA [H200], 132 SMs, 139.8 GiB, driver 570.1" in printed) == (device == "cuda")
    assert "go on with --resume some/[file].json" in printed and "profile smoke" in printed and "seed 0" in printed


def test_the_ceilings_have_units(make):
    line = console.ceilings_line(make.document())
    assert line == "this machine reads 10.0 GB/s, copies 10.0 GB/s (read + write); float32 product 100 GFLOP/s"
