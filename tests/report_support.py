"""A result document by hand, for the tests of the report: one case that is won, one that is lost, and every way to have no figure."""

from copy import deepcopy

CLOCKS = {"device": 0.5, "replay": 0.4, "wall": 1.0}


def peer(p50: float | None = None, columns: tuple[str, ...] = ("wall",), **more: object) -> dict:
    """A peer's entry: its times are p50 scaled by the clock."""
    entry: dict = {"what": "some peer", "no_time": {}, "peak_bytes": 4096} | more
    if p50 is not None:
        entry["parity"] = parity()
        entry["times"] = {
            name: {
                "samples": [],
                "p20": 0.9 * p50 * CLOCKS[name],
                "p50": p50 * CLOCKS[name],
                "p80": 1.2 * p50 * CLOCKS[name],
            }
            for name in columns
        }
    return entry


def parity(**errors: object) -> dict:
    found = {"loss": 0.0, "weight": 2e-8} | errors
    stock = dict.fromkeys(found, 3e-8)
    return {"errors": found, "stock_errors": stock, "worst_ratio": 0.7, "passed": True, "failures": []}


def comparison(baseline: str, speedup: float, verdict: str) -> dict:
    return {"baseline": baseline, "speedup": speedup, "low": speedup * 0.9, "high": speedup * 1.1, "verdict": verdict}


def case(n: int, speedup: float, verdict: str, columns: tuple[str, ...] = ("wall",), **more: object) -> dict:
    """A fused case in which stock takes `speedup` seconds and gdcore one."""
    peers = {
        "eager": peer(speedup, columns),
        "compile": peer(speedup * 1.5, columns),
        "jax": {"what": "jax.grad", "left_out": "JAX is not installed"},
        "functional": peer(failure="RuntimeError: no <compiler> here"),
        "gdcore": peer(1.0, columns, peak_bytes=0),
    }
    against = comparison("eager", speedup, verdict)
    others = {"eager": against, "compile": comparison("compile", speedup * 1.5, verdict)}
    return {
        "kind": "linear_mse",
        "op": "backward",
        "label": f"{n:,} × 8 × 2",
        "regime": "A",
        "n": n,
        "k": 8,
        "m": 2,
        "dtype": "float32",
        "wanted": ["weight"],
        "data": "normal",
        "bytes": 40 * n,
        "flops": 64 * n,
        "floor_seconds": 0.25,
        "bound_by": "memory",
        "plan": {"path": "streaming", "why": "it is faster", "predicted_seconds": 0.5},
        "explained": "Twice as long as predicted: calls are the cost.",
        "peers": peers,
        "column": columns[0],
        "comparisons": dict.fromkeys(columns, others),
        "best": dict.fromkeys(columns, against),
        "noise": {name: {"speedup": 1.01, "low": 0.97, "high": 1.04} for name in columns},
        "clocks": {"before_mhz": 1980, "after_mhz": 900, "max_mhz": 1980, "throttled": "too hot"},
        "failed": None,
    } | more


def document(columns: tuple[str, ...] = ("wall",)) -> dict:
    """A finished run with cases of every kind."""
    skipped = case(90_000, 1.0, "SAME", dtype="bfloat16", op="forward", wanted=[])
    for key in ("peers", "plan", "comparisons", "best", "noise", "column", "failed", "explained", "clocks"):
        del skipped[key]
    wrong = case(70_000, 1.0, "SAME", failed="weight is off by 1e+00")
    wrong["peers"]["gdcore"] = peer(failure="weight is off by 1e+00", parity=parity(weight="inf", bias="nan"))
    wrong["peers"]["gdcore"]["parity"] |= {"passed": False, "failures": ["weight is off by 1e+00"]}
    wrong |= {"comparisons": {}, "best": {}, "noise": {}}
    stepper = case(
        1, 0.5, "SLOWER", columns, kind="sgd", op="sgd", label="ResNet-50, momentum", dtypes=["float32", "bfloat16"]
    )
    for key in ("n", "k", "m", "dtype", "wanted", "data", "regime", "plan"):
        del stepper[key]
    stepper["best"] = {name: comparison("fused", 0.5, "SLOWER") for name in columns}
    stepper["comparisons"] = {
        name: {"fused": found, "for-loop": comparison("for-loop", 1.2, "FASTER")}
        for name, found in stepper["best"].items()
    }
    stepper["peers"]["for-loop"] = stepper["peers"].pop("eager")
    run = case(
        442, 1.0, "SAME", kind="run", op="run", label="diabetes, 300 updates", metric="R²", problems=["losses differ"]
    )
    run["peers"]["gdcore"]["score"] = 0.5176
    prediction = {
        "predicted": True, "case": "wide", "n": 5_000, "k": 3, "m": 1, "dtype": "float32", "wanted": ["weight"],
        "device": "H200", "path": "one_pass_rows", "why": "one read", "bytes": 1e9, "flops": 1e9, "floor_seconds": 3e-4,
        "bound_by": "memory", "stock_bytes": 4e9, "stock_floor_seconds": 1e-3, "compiled": {"registers": 44, "occupancy": 0.6},
    }  # fmt: skip
    host = {"p20": 1e-5, "p50": 2e-5, "p80": 3e-5}
    return deepcopy(
        {
            "schema": "gdcore-bench/3",
            "created": "2026-01-02T03:04:05+00:00",
            "finished": "2026-01-02T03:05:00+00:00",
            "profile": "quick",
            "selection": {"op": ["backward", "sgd"], "only": None},
            "seed": 0,
            "machine": {"cpu": "A CPU", "cores": 2, "threads": 2, "memory_gib": 8, "system": "Linux", "device": "cpu"},
            "versions": {"gdcore": "0.1.0", "torch": "2.13.0", "jax": None},
            "commit": "abc123",
            "ceilings": {"read": 3e10, "copy": 2.8e10, "product": {"float32": 1.8e11}},
            "cases": {
                "won": case(50_000, 4.0, "FASTER", columns),
                "lost": case(3_000, 0.8, "SLOWER", columns),
                "big": case(200_000, 1.0, "SAME", columns, wanted=["input", "weight"]),
                "skipped": skipped | {"skipped": "it takes about 70 GiB"},
                "wrong": wrong,
                "sgd": stepper,
                "run": run,
            },
            "host": {"what": "to the launch", "rows": {"a step": {"what": "SGD", "peers": {"fused": host}}}},
            "predicted": [prediction],
            "attempts": {"won": 1},
        }
    )  # fmt: skip
