"""The benchmark on CUDA, acted: three columns, graphs that cannot be captured, rotating inputs, memory, JAX."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gdcore.bench import linear_peers, machine, measure, memory, run_peers, timing
from gdcore.bench.cases import Case
from gdcore.bench.measure import measure_case
from gdcore.bench.peers import AGAIN, GRAPH, GRAPHED_COMPILED, JAX, OURS, STOCK, TUNED
from gdcore.bench.run_cases import RunCase
from gpu_support import CASE, CUDA, MS, SETTING


def test_three_columns_answer_three_questions(among):
    row = among()
    assert row["column"] == "device" and row["failed"] is None
    for column, factor in (("device", 1.0), ("replay", 0.5), ("wall", 1.0)):
        assert row["peers"][STOCK]["times"][column]["p50"] == pytest.approx(2 * MS * factor)
        assert row["peers"][OURS]["times"][column]["p50"] == pytest.approx(MS * factor)
        assert row["comparisons"][column][STOCK]["speedup"] == pytest.approx(2.0)
        assert row["best"][column]["verdict"] == "FASTER"
        assert row["noise"][column]["speedup"] == pytest.approx(1.0)
        assert set(row["comparisons"][column]) == {STOCK} and AGAIN not in row["peers"]


@pytest.mark.parametrize(
    ("regime", "kind", "column"),
    [("A", "linear_mse", "device"), ("D", "linear_mse", "wall"), (None, "sgd", "device"), ("A", "run", "wall")],
)
def test_where_calls_are_the_cost_they_count(regime, kind, column):
    assert timing.headline(regime, kind, CUDA) == column
    assert timing.headline(regime, kind, torch.device("cpu")) == "wall"


def test_one_that_cannot_be_captured_says_so_and_the_others_are_timed(among):
    row = among(("other", 3 * MS, False))
    other = row["peers"]["other"]
    assert other["no_time"] == {"replay": "RuntimeError: operation not permitted when stream is capturing"}
    assert set(other["times"]) == {"device", "wall"} and "failure" not in other
    assert set(row["comparisons"]["replay"]) == {STOCK} and set(row["comparisons"]["device"]) == {STOCK, "other"}


def test_a_gdcore_that_cannot_be_captured_has_no_replay_and_no_noise_there(among):
    row = among(ours=(OURS, MS, False))
    assert set(row["comparisons"]) == set(row["best"]) == set(row["noise"]) == {"device", "wall"}
    assert row["failed"] is None and "replay" in row["peers"][STOCK]["times"]


def test_jax_is_in_the_wall_column_alone(among):
    entry = among((JAX, 3 * MS))["peers"][JAX]
    assert set(entry["times"]) == {"wall"}
    assert entry["no_time"] == dict.fromkeys(
        ("device", "replay"), "JAX launches on streams of its own: only end-to-end times compare"
    )
    assert entry["no_memory"] == "JAX has a memory pool of its own" and "peak_bytes" not in entry


def test_a_training_run_is_timed_end_to_end_alone(gpu, monkeypatch):
    draw = RunCase.draw
    monkeypatch.setattr(RunCase, "draw", lambda case, device, seed: draw(case, torch.device("cpu"), seed))
    monkeypatch.setattr(run_peers, "PEERS", [peer for peer in run_peers.PEERS if peer.name in (STOCK, OURS)])
    monkeypatch.setattr(measure, "interleave", lambda calls, *_, **__: {name: [1.0] * 5 for name in calls})
    row = measure_case(RunCase("lesson", 3), SETTING)
    assert row["column"] == "wall" and set(row["comparisons"]) == set(row["peers"][OURS]["times"]) == {"wall"}


def test_memory_is_what_a_call_takes_beyond_what_was_held(among):
    assert {entry["peak_bytes"] for entry in among()["peers"].values()} == {600}


def test_memory_that_cannot_be_measured_is_told(among, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(memory, "peak_of", full)
    row = among()
    assert row["peers"][OURS]["no_memory"] == "OutOfMemoryError: full" and "device" in row["peers"][OURS]["times"]


def test_memory_is_measured_from_before_a_call_is_bound_but_after_a_first_one(gpu):
    log = gpu.log

    def bind(operands):
        log.append("bind")
        return lambda: log.append("call")

    assert memory.peak_of(bind, None, CUDA) == 600
    assert log == ["bind", "call", "wait", "bind", "call", "wait"]


def test_an_eager_graph_is_kept_and_replayed(among, gpu):
    graphed = next(peer for peer in linear_peers.PEERS if peer.name == GRAPH)
    row = among(graphed)
    assert set(row["peers"][GRAPH]["times"]) == {"device", "replay", "wall"}, row["peers"][GRAPH]
    call = graphed.prepare(CASE, CUDA)(CASE.draw(CUDA, 0))
    log, gpu.log[:] = gpu.log, []
    kept = measure._replays(lambda operands: call, [None])
    assert kept.graphs == [call.graph] and log == [], "it is not captured once more"


@pytest.mark.parametrize("name", [TUNED, GRAPHED_COMPILED])
def test_a_peer_that_replays_graphs_of_its_own_is_not_captured(among, name, monkeypatch):
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    entry = among((name, 3 * MS), case=replace(CASE, compilers=(name,)))["peers"][name]
    assert set(entry["times"]) == {"device", "wall"} and "of its own" in entry["no_time"]["replay"]
    assert "peak_bytes" not in entry and "CUDA graph holds" in entry["no_memory"]


def test_results_of_a_graph_keep_no_autograd_graph_alive(gpu):
    x = torch.ones(3, requires_grad=True)
    _, results = linear_peers.captured(lambda: (x.sum(), x))
    assert not any(t.requires_grad for t in results)


def test_capturing_a_step_leaves_the_start_as_it_was(gpu):
    case = Case("B", 40, 6, 3, op="step", wanted=("weight", "bias"))
    operands = case.draw(CUDA, 0)
    start = [operands.weight.detach().clone(), operands.bias.detach().clone()]
    linear_peers._graph(case, CUDA)(operands)
    assert torch.equal(operands.weight.detach(), start[0]) and torch.equal(operands.bias.detach(), start[1])


def test_a_call_is_warmed_up_before_it_is_captured(gpu):
    calls = []
    graph, results = linear_peers.captured(lambda: calls.append(gpu.capturing is not None) or len(calls))
    assert calls == [False, False, False, True] and results == 4 and graph.seconds == 0


def test_the_device_clock_flushes_and_lets_the_host_run_ahead(gpu, monkeypatch):
    clock = timing.DeviceClock(CUDA)
    assert gpu.buffer >= 4 * gpu.properties.L2_cache_size and gpu.buffer >= 1 << 28
    monkeypatch.setattr(clock, "_flush", SimpleNamespace(amax=lambda: gpu.note("flush", 7 * MS)))
    times = iter((50 * MS, 5 * MS, 5 * MS))
    assert clock.sample(lambda: gpu.note("call", next(times)), 2) == pytest.approx(5 * MS), "the first is not counted"
    assert gpu.log == ["flush", "sleep", "record", "call", "record"] * 3 + ["wait"]
    assert gpu.slept[1] > 1.4 * 50 * MS * 2e9 and gpu.slept[0] < gpu.slept[2] < gpu.slept[1], (
        "as long as the host needs"
    )


def test_the_replay_clock_rotates_over_the_inputs(gpu):
    graphs = [SimpleNamespace(replay=lambda i=i: gpu.note(f"graph {i}", MS)) for i in range(3)]
    assert timing.ReplayClock(CUDA).sample(timing.Replays(graphs), 4) == pytest.approx(MS)
    assert gpu.log == ["wait", "sleep", "record", "graph 0", "graph 1", "graph 2", "graph 0", "record", "wait"]


def test_the_wall_clock_drains_the_device_before_and_after(gpu):
    assert timing.WallClock(CUDA).sample(lambda: gpu.note("call", MS), 2) == pytest.approx(MS)
    assert gpu.log == ["wait", "call", "call", "wait"]


@pytest.mark.parametrize(
    ("cache", "free", "count"),
    [(0.2, 1e12, 1), (1, 1e12, 3), (2.1, 1e12, 6), (1e6, 1e12, 6), (0.5, 0, 1), (1e6, 8.5, 3)],
    ids=["much larger than the cache", "as large", "a little smaller", "tiny", "no memory", "memory for two more"],
)
def test_replays_rotate_over_enough_inputs_to_pass_the_cache_twice(gpu, cache, free, count):
    gpu.properties.L2_cache_size = int(cache * CASE.minimal_bytes)
    gpu.free = int(free * CASE.bytes_needed)
    operands = CASE.draw(CUDA, 0)
    sets = measure._sets(CASE, operands, SETTING)
    assert len(sets) == count and sets[0].input.data_ptr() == operands.input.data_ptr()
    assert sets[0].weight is not operands.weight and sets[0].weight.requires_grad, "a leaf of its own"
    assert all(not torch.equal(sets[0].input, other.input) for other in sets[1:])


def test_what_pytorch_keeps_for_itself_is_free(gpu):
    gpu.free, gpu.kept = 10, 30
    assert machine.free_bytes(CUDA) == 40


def test_the_gpu_is_described(gpu, monkeypatch):
    monkeypatch.setattr(machine, "_driver", lambda: "555.1")
    found = machine.describe_machine(CUDA)
    assert {
        name: found[name] for name in ("device", "gpu", "capability", "sms", "l2_bytes", "gpu_memory_gib", "driver")
    } == {
        "device": "cuda",
        "gpu": "Acted",
        "capability": [9, 0],
        "sms": 132,
        "l2_bytes": 1 << 20,
        "gpu_memory_gib": 80.0,
        "driver": "555.1",
    }
