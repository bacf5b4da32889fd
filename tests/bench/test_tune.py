"""The tuner with no GPU: what it tries, what it drops, what it keeps. Timers and compilers are stand-ins, kernels interpreted."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from gdcore import tuned_format
from gdcore.backends import Wanted
from gdcore.bench import tuning as tune
from gdcore.bench.results import BadInput
from gdcore.bench.tuning import candidates as tune_candidates
from gdcore.bench.tuning import search as tune_search
from gdcore.bench.tuning.candidates import SIZES, Job, candidates, jobs
from gdcore.bench.tuning.compile import chip_of, entry_of, variant, why_dropped
from gdcore.bench.tuning.search import DEFAULT, Operands, Tools, search
from gdcore.bench.tuning.table import TableFile
from gdcore.devices import A100, B200, H200
from gdcore.kernels.shipped import SHORT
from gdcore.tuned import Table
from support import DEVICE

GPU = H200._replace(name="a GPU")
SMALL = GPU._replace(sms=2)  # the interpreter runs programs one after another
FIGURES = {
    "registers": 64,
    "stack_bytes": 0,
    "shared_bytes": 1000,
    "programs_per_sm": 2,
    "occupancy": 0.25,
    "limited_by": "registers",
    "instructions": {},
}
HALF_SIZES = [(10**6, 3, 1), (10**6, 100, 2), (10**6, 100, 16), (2000, 500, 100), (10**6, 200, 60)]
EVERY_JOB = [
    job
    for device in (A100, H200, B200)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for job in jobs(HALF_SIZES, [dtype], device, want_input=True)
]


def one(family, size=(300, 20, 1), dtype=torch.float32, want_input=False):
    (job,) = jobs([size], [dtype], SMALL, families=[family], want_input=want_input)
    return job


def options(*arguments):
    parser = argparse.ArgumentParser()
    tune.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def no_interpreter(monkeypatch):
    monkeypatch.setattr("gdcore.backends.interpreting", lambda: False)


def test_the_sizes_cover_every_kernel_of_a_loss_and_its_weight_gradient():
    found = {job.family for job in jobs(SIZES, [torch.float32, torch.bfloat16], H200)}
    one_pass = {"one_pass_rows", "one_pass_vector", "one_pass_dot", "one_pass_tall"}
    assert found == one_pass | {"forward", "backward_weight"}
    found = jobs(SIZES, [torch.float32, torch.bfloat16], A100, want_input=True)
    assert {job.family for job in found} >= {"backward_input"}
    assert len({job.key(A100) for job in found}) == len(found)


def test_where_the_librarys_products_are_planned_there_is_nothing_to_tune():
    assert jobs([(8192, 4096, 4096)], [torch.float32], H200) == []


@pytest.mark.parametrize("job", EVERY_JOB, ids=str)
def test_candidates_begin_with_what_ships_and_could_all_stand_in_a_table(job):
    device = H200
    configs = candidates(job, device)
    assert configs[0] == job.config(job.plan(device))
    assert 5 <= len(configs) == len(set(configs)) <= 30
    assert candidates(job, device, 3) == configs[:3]
    for config in configs:
        key = job.key(device)
        made = {name: FIGURES[name] for name in tuned_format.RESOURCES}
        row = {
            **key._asdict(),
            "dtype": str(job.dtype).removeprefix("torch."),
            "config": dataclasses.asdict(config),
            "compiled": made,
            "seconds": 1.0,
            "default_seconds": 1.0,
        }
        document = {**tuned_format.header(device, [job.family]), "entries": [row]}
        assert tuned_format.entries(document, device)[key].config == config
        # What would be compiled has exactly the kernel's arguments, and the candidate's blocks.
        kernel = variant(job, config, device.architecture)
        assert sorted([*kernel.arguments, *kernel.constants]) == sorted(kernel.kernel.arg_names)
        assert kernel.constants.get("BLOCK_N", kernel.constants.get("LANES")) == config.block_n
        assert kernel.arguments["residual_ptr"] == "*" + SHORT[job.dtype]
        assert "stride_input_n" not in kernel.divisible_by_16 or job.k % 16 == 0


DROPPED = {
    "does not compile": ({"error": "ValueError: no"}, "does not compile: ValueError: no"),
    "a stack": ({"stack_bytes": 8}, "spills"),
    "local stores": ({"instructions": {"STL": 2, "HMMA": 1}}, "spills"),
    "too much shared memory": ({"shared_bytes": 232_449}, "232,449 B of shared memory, there are 232,448"),
    "no room": ({"programs_per_sm": 0}, "does not fit"),
    "no matrix instructions": ({"instructions": {"LDG.128": 1}}, "no matrix instructions"),
    "good": ({}, None),
}


@pytest.mark.parametrize("name", DROPPED)
def test_compiled_code_that_cannot_win_is_dropped(name):
    change, words = DROPPED[name]
    job = one("one_pass_dot", (10**6, 64, 16))
    default = candidates(job, H200)[0]
    shipped = FIGURES | {"instructions": {"HMMA": 4}}
    reason = why_dropped(job, default, shipped | change, default, shipped, chip_of(H200))
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize(("programs", "dropped"), [(8, False), (4, False), (3, True)], ids=str)
def test_less_than_half_of_the_loads_in_flight_is_dropped(programs, dropped):
    job = one("one_pass_vector", (10**6, 64, 1))
    default = candidates(job, H200)[0]
    made = FIGURES | {"programs_per_sm": programs}
    reason = why_dropped(job, default, made, default, FIGURES | {"programs_per_sm": 8}, chip_of(H200))
    assert ("loads in flight" in reason) if dropped else reason is None


def test_less_than_half_of_the_occupancy_of_a_product_is_dropped():
    job = one("forward", (65_536, 512, 100), torch.bfloat16)
    default = candidates(job, H200)[0]
    reasons = [
        why_dropped(job, default, FIGURES | {"occupancy": share}, default, FIGURES, chip_of(H200))
        for share in (0.125, 0.0625)
    ]
    assert reasons == [None, "occupancy 6%, the default's is 25%"]


LAUNCHED = {
    "one_pass_rows": (300, 3, 1),
    "one_pass_vector": (300, 20, 2),
    "one_pass_dot": (300, 20, 8),
    "one_pass_tall": (300, 20, 40),
    "forward": (130, 260, 20),
    "backward_input": (130, 260, 20),
    "backward_weight": (300, 260, 20),
}


@pytest.mark.parametrize("family", LAUNCHED)
def test_a_candidate_is_launched_as_the_library_does_and_gives_the_shipped_result(family):
    job = one(family, LAUNCHED[family], want_input=family == "backward_input")
    shipped, *others = candidates(job, SMALL)
    config = next(c for c in others if c.block_n != shipped.block_n or c.block_k != shipped.block_k)
    bound = Operands(job, torch.device(DEVICE))
    plan = job.plan(SMALL, entry_of(job, config, FIGURES))
    assert job.config(plan) == config != shipped
    if family.startswith("one_pass"):
        assert plan.tuned.programs_per_sm == 2
        assert plan.programs <= 4
    expected, found = bound(job, job.plan(SMALL))(), bound(job, plan)()
    assert len(found) == len(expected) == {"backward_input": 1, "backward_weight": 2, "forward": 2}.get(family, 3)
    for ours, theirs in zip(found, expected, strict=True):
        assert tune_search.relative_difference(ours, theirs) < 1e-5


class Fakes:
    """A compiler, kernels and a timer that do as they are told."""

    def __init__(self, job, seconds=None, wrong=(), broken=(), wrong_on_few=()):
        self.job, self.configs = job, candidates(job, GPU)
        self.seconds = seconds or {}  # of candidates by place; 0 is what ships
        self.wrong, self.broken, self.wrong_on_few = wrong, broken, wrong_on_few
        self.timed, self.launched = [], []

    def tools(self):
        return Tools(lambda job, configs: [FIGURES] * len(configs), lambda job: self.bind, self.measure, chip_of(GPU))

    def bind(self, job, plan):
        place = self.configs.index(job.config(plan))
        wrong = self.wrong if job.n == self.job.n else self.wrong_on_few

        def call():
            self.launched.append(place)
            if place in self.broken:
                raise RuntimeError("out of resources")
            value = torch.tensor(float("nan") if place in wrong else 1.0)
            return value, torch.ones(3)

        return call

    def measure(self, calls, seconds):
        self.timed.append(list(calls))
        places = {tune_candidates.words(config): place for place, config in enumerate(self.configs)}
        noise = [1.0, 1.001, 0.999, 1.0, 1.001, 0.999]
        return {name: [self.seconds.get(places.get(name, 0), 2e-3) * x for x in noise] for name in calls}


def test_the_fastest_right_candidate_wins():
    job = one("one_pass_vector", (10**6, 64, 1))
    fakes = Fakes(
        job, {0: 1e-3, 2: 0.9e-3, 3: 0.8e-3, 4: 0.1e-3, 5: 0.2e-3, 6: 0.1e-3}, wrong=[4], broken=[5], wrong_on_few=[6]
    )
    outcome = search(job, GPU, fakes.tools())
    assert outcome.winner == fakes.configs[3]
    assert outcome.comparison.speedup == pytest.approx(1.25)
    assert (outcome.default_seconds, outcome.seconds) == (pytest.approx(1e-3), pytest.approx(0.8e-3))
    reasons = dict(outcome.dropped)
    assert "wrong at 1,000,000 rows: result 0" in reasons[fakes.configs[4]]
    assert "wrong at 1,027 rows" in reasons[fakes.configs[6]]
    assert "cannot be launched: RuntimeError: out of resources" in reasons[fakes.configs[5]]
    told = "\n".join(tune_search.told(outcome))
    assert "1.25x faster than the shipped" in told
    assert "wrong at" in told
    heat, final = fakes.timed
    assert DEFAULT in heat
    assert tune_candidates.words(fakes.configs[4]) not in heat
    assert len(final) == 4
    assert final[0] == DEFAULT


@pytest.mark.parametrize("ratio", [1.0, 0.99, 1.5], ids=["as fast", "one per cent faster", "slower"])
def test_what_is_not_faster_beyond_doubt_does_not_replace_what_ships(ratio):
    job = one("one_pass_vector", (10**6, 64, 1))
    outcome = search(job, GPU, Fakes(job, {0: 1e-3, 1: ratio * 1e-3}).tools())
    assert outcome.winner is None
    assert "stays" in tune_search.told(outcome)[0]
    assert outcome.row()["config"] is None


def test_a_row_too_few_is_seen():
    """All the rows and a few of them are compared: of a million, one would drown in the rounding."""
    job = one("one_pass_vector", (300, 20, 1))
    expected = (torch.tensor(1.0),)
    lost = (torch.tensor(1 - 1 / 1027),)
    assert "wrong at 300 rows" in tune_search._why_wrong([(job, lambda: lost, expected)])


THREE = [(10**6, 64, 1), (10**6, 200, 1), (10**7, 2, 1)]


def run(path, say, again=False, minutes=1.0, stop_at=None):
    """Three kernels, the second candidate of each the fastest; Ctrl-C at one of them."""
    todo = jobs(THREE, [torch.float32], GPU)
    table = TableFile(path, GPU, may_replace=True)
    made = []

    def compile(job, configs):
        if len(made) == stop_at:
            raise KeyboardInterrupt
        made.append(job)
        return [FIGURES] * len(configs)

    def bind(job):
        return Fakes(job).bind

    def measure(calls, seconds):
        return {name: [1e-3 if name == DEFAULT else 5e-4] * 6 for name in calls}

    left = tune_search.run(
        todo, GPU, table, Tools(compile, bind, measure, chip_of(GPU)), say, minutes=minutes, again=again, limit=2
    )
    return made, left


def rows_of(path):
    return json.loads(path.read_text())["entries"]


def test_a_second_run_goes_on_where_the_first_was_interrupted(tmp_path):
    path, said = tmp_path / "deep" / "table.json", []
    with pytest.raises(KeyboardInterrupt):
        run(path, said.append, stop_at=2)
    assert len(rows_of(path)) == 2
    made, left = run(path, said.append)
    assert ([job.k for job in made], left) == ([2], [])
    assert len(rows_of(path)) == 3
    assert sum("is in the table" in line for line in said) == 2
    assert run(path, said.append)[0] == []
    assert len(run(path, said.append, again=True)[0]) == 3
    assert len(rows_of(path)) == 3
    # And the library takes it.
    found = Table(str(path), tuned_format.entries(tuned_format.read(path), GPU))
    job = jobs(THREE[:1], [torch.float32], GPU)[0]
    assert job.config(job.plan(GPU, found.entries[job.key(GPU)])) == candidates(job, GPU)[1]


def test_when_the_time_is_spent_the_rest_is_named(tmp_path):
    made, left = run(tmp_path / "table.json", print, minutes=0.0)
    assert made == []
    assert len(left) == 3
    assert not (tmp_path / "table.json").exists()


def test_a_size_that_fails_does_not_stop_the_others(tmp_path):
    def no_memory(job):
        if job.k == 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Fakes(job).bind

    said = []
    todo = jobs(THREE, [torch.float32], GPU)
    tools = dataclasses.replace(Fakes(todo[0]).tools(), bind=no_memory)
    table = TableFile(tmp_path / "table.json", GPU, may_replace=True)
    tools = dataclasses.replace(tools, measure=lambda calls, _: {name: [1e-3] * 6 for name in calls})
    tune_search.run(todo, GPU, table, tools, said.append, minutes=1.0, limit=2)
    assert "not tuned: OutOfMemoryError" in said[0]
    assert len(table.rows) == 2


def test_a_file_that_is_not_this_gpus_table_is_not_overwritten(tmp_path):
    path = tmp_path / "notes.json"
    for content in ("my notes", json.dumps({"schema": "gdcore-tuned/1", "gpu": "another GPU"})):
        path.write_text(content)
        with pytest.raises(BadInput, match="move it away"):
            TableFile(path, GPU, may_replace=False)
        assert path.read_text() == content
    path.write_text(json.dumps({"schema": "gdcore-tuned/0", "gpu": GPU.name}))
    assert "schema" in TableFile(path, GPU, may_replace=False).refused
    path.write_text("cut sho")
    assert "damaged" in TableFile(path, GPU, may_replace=True).refused


def test_without_a_gpu_tune_says_so(no_interpreter, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="there is none here"):
        tune.command(options())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "10x2"], "rows x features x outputs"),
        (["--size", "0x2x1"], "rows x features x outputs"),
        (["--minutes", "0"], "more than 0"),
        (["--minutes", "nan"], "more than 0"),
        (["--limit", "0"], "at least 1"),
        (["--arch", "90"], "goes with --list"),
        (["--list", "--size", "8192x4096x4096", "--dtype", "float32"], "nothing to tune"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_are_refused(no_interpreter, arguments, words):
    with pytest.raises(BadInput, match=words):
        tune.command(options(*arguments))


def test_interpreted_kernels_are_not_tuned(monkeypatch):
    monkeypatch.setattr("gdcore.backends.interpreting", lambda: True)
    with pytest.raises(BadInput, match="TRITON_INTERPRET"):
        tune.command(options("--list"))


def test_the_candidates_are_listed_without_a_gpu_and_no_table_is_read():
    code = (
        "import argparse, sys; from gdcore.bench import tuning as tune; p = argparse.ArgumentParser(); tune.add_arguments(p); "
        "status = tune.command(p.parse_args()); from gdcore.tuned import table_for; "
        "sys.exit(status or 'platformdirs' in sys.modules or table_for.cache_info().misses)"
    )
    selection = "--family vector --dtype float32 --size 1000000x64x1 --arch 90 --limit 2 --workers 1 --list"
    done = subprocess.run(
        [sys.executable, "-c", code, *selection.split()],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "warps" in line]
    assert len(lines) == 2
    assert "shipped" in lines[0]
    assert "registers" in lines[1]


def test_a_job_is_what_its_words_say():
    job = Job("one_pass_dot", torch.float32, 10**6, 64, 16, "tf32", Wanted())
    assert str(job) == "one_pass_dot float32 tf32 1,000,000 × 64 × 16"
