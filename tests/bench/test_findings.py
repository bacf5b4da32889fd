"""What a run found, in sentences: every loss by name, every failure aloud, and nothing said of what was not measured."""

import pytest

from gdcore.bench.findings import findings


def said(make, *rows: dict, **parts: object) -> str:
    return "\n".join(findings(make.document(rows, **parts)))


LOST, WON, EVEN = (
    {"eager": 0.04, "library": 0.005, "gdcore": 0.01},
    {"eager": 0.04, "gdcore": 0.01},
    {"eager": 0.01, "gdcore": 0.01},
)
STEP = {"for-loop": 0.04, "foreach": 0.02, "gdcore": 0.01}


def test_wins_are_counted_and_losses_are_named(make):
    text = said(make, make.row("won", seconds=WON), make.row("lost", seconds=LOST), make.row("even", seconds=EVEN))
    assert "linear_mse: faster than stock in 2 of 3 cases, 4.00x." not in text, "both are 4.00x: a span"
    assert "linear_mse: faster than stock in 2 of 3 cases, 4.00x to 4.00x." in text
    assert "linear_mse: the same speed as stock at even (1.00x)." in text
    assert "linear_mse: faster than every right peer in 1 of 3 cases, 4.00x." in text
    assert "linear_mse: a peer wins at lost (by hand; gdcore has 0.50x of its speed)." in text
    assert "no peer wins" not in text


@pytest.mark.parametrize("kind", ["linear_mse", "sgd", "run"])
def test_where_stock_wins_it_says_so(make, kind):
    stock = "for-loop" if kind == "sgd" else "eager"
    text = said(make, make.row("lost", kind=kind, seconds={stock: 0.01, "gdcore": 0.04}))
    name = {"linear_mse": "linear_mse", "sgd": "A step of gdcore.SGD", "run": "Training"}[kind]
    titled = {"sgd": "for-loop"}.get(kind, "stock")
    assert f"{name}: a peer wins at lost ({titled}; gdcore has 0.25x of its speed)." in text
    assert "faster than" not in text and "no peer wins" not in text
    if kind != "sgd":
        assert f"{name}: slower than stock at lost (0.25x)." in text


def test_what_is_too_noisy_to_tell_is_not_called_the_same(make):
    row = make.row("noisy", seconds=EVEN)
    row["comparisons"]["wall"]["eager"] |= {"low": 0.5, "high": 2.0, "verdict": "UNSURE"}
    row["best"]["wall"] = row["comparisons"]["wall"]["eager"]
    assert "linear_mse: too noisy to tell from stock at noisy (1.00x)." in said(make, row)


def test_no_peer_wins_is_said_only_where_peers_were_measured(make):
    text = said(make, make.row(kind="sgd", seconds=STEP))
    assert "no peer wins beyond the noise, in 1 case" in text
    assert "A step of gdcore.SGD: faster than stock in 1 of 1 cases, 4.00x." in text, "stock is the for-loop"
    assert "A step of gdcore.SGD: faster than every right peer in 1 of 1 cases, 2.00x." in text
    assert "peer wins" not in said(make, make.row(kind="sgd", seconds={"gdcore": 0.01}))
    row = make.row()
    row["best"] = {}
    assert "peer wins" not in said(make, row)


def test_another_algorithm_is_reported_but_is_not_the_best(make):
    text = said(make, make.row("a run", kind="run", seconds={"eager": 0.04, "sklearn": 0.001, "gdcore": 0.04}))
    assert "Training: a peer wins" not in text
    assert (
        "SGDRegressor, another algorithm, takes 1.00 ms for as many epochs on diabetes and reaches R² 0.5000." in text
    )
    assert "losses within 1e-08 of float64's; R² 0.5000 and 0.5000." in text


def test_a_training_run_names_its_path_and_a_score_may_be_no_number(make):
    row = make.row("a run", kind="run")
    assert "40.0 ms with stock, 10.0 ms with gdcore (streaming path)" in said(make, row)
    row["plan"] |= {"path": "stock", "why": "it is small"}
    row["peers"]["gdcore"]["score"] = "-inf"
    assert "which leaves it to stock (it is small)" in said(make, row) and "R² 0.5000 and -inf." in said(make, row)


@pytest.mark.parametrize("kind", ["linear_mse", "sgd", "run"])
def test_failed_parity_is_shouted_and_gets_no_speed(make, kind):
    text = said(make, make.wrong(make.row("wrong", kind=kind)), make.row("right", kind=kind))
    assert "Parity with float64: 1 of 2 cases pass" in text
    assert "FAILS at wrong: loss is off by 1e-03." in text and "in 1 of 1 cases" in text


def test_runs_that_differ_from_published_figures_say_so(make):
    row = make.row("a run", kind="run", problems=["gdcore: losses are off the published ones by 1e-02"])
    assert "a run: gdcore: losses are off the published ones by 1e-02." in said(make, row)


def test_noise_is_what_gdcore_differs_from_itself_by(make):
    rows = [make.row(noise={"wall": {"speedup": s, "low": s, "high": s}}) for s in (1.01, 0.95, 1.3)]
    assert "differs by 5.0 % in the middle case and 30.0 % in the worst" in said(make, *rows)


def test_peers_that_failed_were_left_out_or_not_timed_are_reported(make):
    rows = [make.row(f"case {number}") for number in range(3)]
    for row in rows[:2]:
        row["peers"]["jax"] = {"what": "JAX", "left_out": "JAX is not installed"}
    rows[2]["peers"]["compile"] = {"what": "c", "failure": "RuntimeError: no compiler"}
    rows[2]["peers"]["library"] = {
        "what": "l",
        "no_time": {"wall": "RuntimeError: out of memory"},
        "no_memory": "it died",
    }
    text = said(make, *rows, {"kind": "sgd", "label": "large", "skipped": "it takes about 9 GiB"})
    for expected in (
        "JAX was left out at 2 of 4 cases: JAX is not installed.",
        "torch.compile has no figure at case 2: RuntimeError: no compiler.",
        "by hand has no figure at case 2: RuntimeError: out of memory.",
        "The memory of by hand is not known at case 2: it died.",
        "Skipped: large: it takes about 9 GiB.",
    ):
        assert expected in text, expected


def test_a_gpu_that_held_back_is_named(make):
    row = make.row("hot", clocks={"before_mhz": 1980, "after_mhz": 1200, "max_mhz": 1980, "throttled": "power limit"})
    cool = make.row("cool", clocks={"before_mhz": 1980, "after_mhz": 1980, "max_mhz": 1980, "throttled": None})
    assert "The GPU held back at hot: power limit." in said(make, row, cool) and "at cool" not in said(make, row, cool)


def test_surprises_are_explained(make):
    assert "a case: Measured 1 ms, predicted 1 µs." in said(
        make, make.row("a case", explained="Measured 1 ms, predicted 1 µs.")
    )


@pytest.mark.parametrize(
    ("ours", "expected"),
    [(1e-5, "0.50x as long as stock; longer nowhere."), (3e-5, "1.50x as long as stock; longer at a call.")],
    ids=["shorter", "longer"],
)
def test_host_time_says_where_it_is_longer(make, ours, expected):
    host = {"rows": {"a call": {"what": "x", "peers": {"eager": {"p50": 2e-5}, "gdcore": {"p50": ours}}}}}
    assert expected in said(make, host=host)


def test_memory_is_of_the_three_cases_that_take_stock_most(make):
    rows = [make.row(f"case {number}") for number in range(5)]
    for number, row in enumerate(rows[:4]):
        row["peers"]["eager"]["peak_bytes"], row["peers"]["gdcore"]["peak_bytes"] = (4 - number) << 20, 0
    text = said(make, *rows)
    assert "at case 0: stock 4.0 MiB, gdcore 0 B." in text
    assert "memory of one call at case 3" not in text and "at case 4:" not in text


@pytest.mark.parametrize("parts", [{}, {"host": {}}, {"predicted": [{"predicted": True}]}], ids=str)
def test_of_nothing_nothing_is_said(make, parts):
    assert findings(make.document([], **parts)) == []


def test_a_failed_host_part_is_a_sentence(make):
    assert findings(make.document([], host={"failure": "no kernels"})) == ["No host times: no kernels."]


def test_where_the_host_is_the_limit_stock_may_be_faster_end_to_end(make):
    row = make.row("short", seconds=WON, column="device")
    row["comparisons"]["wall"] = {
        "eager": {"baseline": "eager", "speedup": 0.8, "low": 0.7, "high": 0.9, "verdict": "SLOWER"}
    }
    ours = row["peers"]["gdcore"]["times"]
    ours["wall"] = {**ours["device"], "p50": 2 * ours["device"]["p50"]}
    text = said(make, row, make.row("long", seconds=WON, column="device"))
    assert "linear_mse: faster than stock in 2 of 2 cases" in text
    assert "One call after another, the host's part and all, stock is faster at short (0.80x): there the host" in text
    ours["wall"]["p50"] = 1.2 * ours["device"]["p50"]  # the kernels are most of it
    assert "One call after another" not in said(make, row)
    ours["wall"]["p50"] *= 2
    row["comparisons"]["wall"]["eager"]["verdict"] = "UNSURE"
    assert "One call after another" not in said(make, row)


def test_a_run_that_is_not_finished_says_so_first(make):
    assert "not finished" not in said(make, make.row())
    assert said(make, make.row(), finished=None).startswith("The run is not finished: it has 1 case of its profile.")
