"""Launches through kernels/launch.py beside Triton's own, on the null driver: the same kernel, grid and arguments?

python null_launches.py        in null_driver.environment(); prints JSON: {check: {name: what differed, or ""}}
"""

import contextlib
import gc
import importlib
import json
import math
import pathlib
import sys
import weakref
from unittest import mock

import torch
import triton
import triton.language as tl
from torch import Tensor

import null_driver

DRIVER = null_driver.Driver()
sys.path.remove(str(pathlib.Path(__file__).resolve().parent))  # whose gdcore/ holds tests

import gdcore  # noqa: E402
import gdcore.kernels.launch as module  # noqa: E402
from gdcore import backends, devices, recall  # noqa: E402
from gdcore.kernels.launch import launch  # noqa: E402
from gdcore.kernels.tiles import descriptor  # noqa: E402


@triton.jit(do_not_specialize=["length"])
def sample_kernel(a_ptr, b_ptr, length, stride, scale, FLAG: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    values = tl.load(a_ptr + offsets * stride, mask=offsets < length, other=0.0) * scale
    if b_ptr is not None:
        values += tl.load(b_ptr + offsets).to(values.dtype)
    if FLAG:
        values += 1
    tl.store(a_ptr + offsets, values, mask=offsets < length)


@triton.jit
def described_kernel(desc, out_ptr, row):
    tl.store(out_ptr, tl.sum(tl.sum(desc.load([row, 0]), axis=0)))


def recorded(call) -> tuple | str:
    """What the driver was told of one launch, or why there was none."""
    before = DRIVER.launches
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    started = DRIVER.started(before)
    return f"{len(started)} launches" if len(started) != 1 else started[0]


def difference(kernel, grid, args, named) -> str:
    """Between Triton's launch and two of ours, the second of which comes out of the table."""
    with contextlib.suppress(Exception):
        DRIVER.expect(kernel[grid](*args, **named))
    expected = recorded(lambda: kernel[grid](*args, **named))
    if isinstance(expected, str):
        return f"{kernel.__name__} {grid} {args} {named}: Triton's own launch: {expected}"[:2000]
    for turn in ("first", "second"):
        found = recorded(lambda: launch(kernel, grid, *args, **named))
        if found != expected:
            return f"{kernel.__name__} {grid} {args} {named}, {turn} launch: {found} in place of {expected}"[:2000]
    return ""


def sample_cases():
    """(args, named): each differs from another one in a single thing that a compiled kernel may depend on."""
    memory = torch.zeros(4096)
    half = memory.view(torch.float16)
    named = {"FLAG": False, "BLOCK": 64}
    usual = [memory[64:], memory[128:], 100, 16, 0.5]
    yield usual, named
    replacements = {
        0: [memory[65:], half[64:], memory.double(), torch.nn.Parameter(memory)],
        1: [None, memory[129:], half[128:], half[132:], memory.int()],
        2: [1, 0, 16, 2**31 - 1, 2**31, 2**40, True],
        3: [0, 1, 2, 17, 48, 2**31, 2**31 + 1, 2**35],
        4: [1.0, 1, 0.25, float("inf"), -0.0],
    }
    for place, values in replacements.items():
        for value in values:
            yield [*usual[:place], value, *usual[place + 1 :]], named
    for more in (
        {"FLAG": True},
        {"FLAG": 1},
        {"BLOCK": 128},
        {"num_warps": 8},
        {"num_stages": 1},
        {"maxnreg": 64},
        {"enable_fp_fusion": False},
        {"launch_cooperative_grid": True},
    ):
        yield usual, {**named, **more}


def descriptor_cases():
    for dtype in (torch.float32, torch.bfloat16):
        memory = torch.zeros(64 * 64 * 4, dtype=dtype)
        for shape, offset in (((64, 64), 0), ((60, 64), 0), ((64, 64), 4096), ((32, 128), 0)):
            matrix = memory[offset : offset + shape[0] * shape[1]].view(shape)
            for block in ((16, 16), (32, 16)):
                for row in (1, 16):
                    out = torch.zeros(4)
                    yield [descriptor(matrix, *block), out, row], {"num_warps": 4}


def check_table() -> dict[str, str]:
    found = {}
    cases = [(sample_kernel, args, named) for args, named in sample_cases()]
    cases += [(described_kernel, args, named) for args, named in descriptor_cases()]
    for turn in ("once", "again", "backwards"):
        for number, (kernel, args, named) in enumerate(cases[::-1] if turn == "backwards" else cases):
            for grid in ((1,), (3, 2)):
                found[f"case {number} {grid} {turn}"] = difference(kernel, grid, args, named)
    DRIVER.stream = 11
    found["another stream"] = difference(sample_kernel, (1,), *next(sample_cases()))
    DRIVER.stream = 7
    for device in (1, 0, 1):
        DRIVER.device = device
        with mock.patch.object(Tensor, "get_device", lambda _, device=device: device):
            found[f"device {device}"] = difference(sample_kernel, (1,), *next(sample_cases()))
    DRIVER.device = 0
    return found


class Subclass(Tensor):
    pass


def check_memory() -> dict[str, str]:
    """The table keeps no tensor, and tells subclasses' alignment apart."""
    args, named = next(sample_cases())
    found = {}
    for kind in (Tensor, Subclass):
        for offset in (0, 1, 0):
            given = torch.zeros(4096).as_subclass(kind)[offset:]
            name, gone = f"{kind.__name__} from {offset}", weakref.ref(given)
            found[name] = difference(sample_kernel, (1,), [given, *args[1:]], named)
            del given
            gc.collect()
            found[f"{name} is let go"] = "" if gone() is None else "kept"
    return found


def check_hooks() -> dict[str, str]:
    """A profiler's hooks are called at each launch, the table's too, and none once they are gone."""
    args, named = next(sample_cases())
    launch(sample_kernel, (1,), *args, **named)
    said: list[str] = []
    hooks = triton.knobs.runtime

    def note(metadata: object) -> None:
        said.append(metadata.get()["name"])

    hooks.launch_enter_hook.add(note)
    for _ in range(2):
        launch(sample_kernel, (1,), *args, **named)
    hooks.launch_enter_hook.remove(note)
    launch(sample_kernel, (1,), *args, **named)
    hooks.launch_exit_hook.add(note)
    launch(sample_kernel, (1,), *args, **named)
    hooks.launch_exit_hook.remove(note)
    before = [*said]
    sample_kernel.add_pre_run_hook(lambda *_, **__: said.append("before"))
    launch(sample_kernel, (1,), *args, **named)
    sample_kernel.pre_run_hooks.clear()
    expected = ["sample_kernel"] * 3, [*before, "before"]
    return {"hooks": "" if (before, said) == expected else f"called: {said}"}


def check_names() -> dict[str, str]:
    """A run-time argument by name would be in the key as a constant is, a constant in its place as the others: refused."""
    args, named = next(sample_cases())
    found, before = {}, DRIVER.launches
    for given, more in ((args[:4], {"scale": 0.5, **named}), ([*args, False], {"BLOCK": 64})):
        said = recorded(lambda given=given, more=more: launch(sample_kernel, (1,), *given, **more))
        refused = said.startswith("TypeError: sample_kernel") and DRIVER.launches == before
        found[f"{len(given)} in order"] = "" if refused else str(said)
    return found


def check_bound() -> dict[str, str]:
    """The table ends somewhere, and goes on to be right."""
    args, named = next(sample_cases())
    with mock.patch.object(module, "_ENTRIES", 10):
        for length in range(40):
            launch(sample_kernel, (1,), *args[:2], length, *args[3:], **named)
        size = len(module._table)
        wrong = difference(sample_kernel, (1,), args, named)
    return {"bound": wrong or ("" if size <= 10 else f"{size} entries")}


def holders() -> list:
    """The modules that launch."""
    for backend in ("gdcore.backends.triton", "gdcore.sgd.triton", "gdcore.training.triton"):
        importlib.import_module(backend)
    found = [m for n, m in sys.modules.items() if n.startswith("gdcore.kernels.") and hasattr(m, "launch")]
    return [m for m in found if m is not module]


def check_kernels() -> dict[str, str]:
    """Every launch of whole calls, compared as it comes."""
    found: dict[str, str] = {}
    seen: set[str] = set()

    def compared(kernel, grid, *args, **named) -> None:
        found[f"{name}, launch {len(found)}"] = difference(kernel, grid, args, named)
        seen.add(kernel.__name__)

    patches = [mock.patch.object(holder, "launch", compared) for holder in holders()]
    on_h100 = mock.patch.object(devices, "INTERPRETED", devices.H200)

    expected = {
        "add_rows_kernel", "backward_target_kernel", "forward_descriptors_kernel", "one_pass_rows_kernel",
        "one_pass_rows_step_kernel", "one_pass_vector_kernel", "run_batches_kernel", "run_grid_kernel",
        "run_resident_kernel", "sgd_kernel", "sgd_norm_kernel",
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for patch in (*patches, on_h100, gdcore.use_backend("triton")):
            stack.enter_context(patch)
        for k in (4, 4, 40):
            name = f"K = {k}"
            w = torch.zeros(1, k, requires_grad=True)
            gdcore.linear_mse(torch.zeros(8192, k), w, torch.zeros(8192, 1)).backward()
        name = "step"
        for rate in (0.1, 0.2):
            gdcore.linear_mse_sgd_(torch.zeros(64, 4), torch.zeros(1, 4), torch.zeros(64, 1), lr=rate)
        name = "dX and dY"
        operands = [torch.zeros(128, 128, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        loss = gdcore.linear_mse(*operands, reduction="none")
        loss.backward(torch.zeros_like(loss))
        name = "fit"
        x, y = torch.zeros(100_000, 4), torch.zeros(100_000, 1)
        with contextlib.suppress(RuntimeError):  # the loss that nobody computed need not be a number
            gdcore.fit(x[:100], y[:100], lr=0.1, steps=3, intercept=True)
        with contextlib.suppress(RuntimeError):
            gdcore.fit(x, y, lr=0.1, steps=3, intercept=True)
        with contextlib.suppress(RuntimeError):
            gdcore.fit(x[:100], y[:100], lr=0.1, steps=20, batch_size=10)
        name = "SGD"
        for options in ({}, {"momentum": 0.9, "max_norm": 1.0}):
            p = torch.nn.Parameter(torch.zeros(300, 7))
            optimizer = gdcore.SGD([p], lr=0.1, **options)
            for _ in range(2):
                p.grad = torch.zeros_like(p)
                optimizer.step()
                optimizer.param_groups[0]["lr"] /= 2
    missing = expected - seen
    return found | {"kernels": f"never launched: {sorted(missing)}" if missing else ""}


def check_replays() -> dict[str, str]:
    """Calls from a tape start what calls start of which everything is asked, whatever is aligned, with the same arguments."""
    memory = torch.zeros(3_000_000)

    def noted(kernel, grid, *args, **named) -> None:
        DRIVER.expect(kernel[grid](*args, **named))

    def plain(argument: bytes) -> object:
        """A pointer by its place; that of what is made on the way may be any."""
        value = int.from_bytes(argument[:8], "little")
        place = value - memory.data_ptr()
        return place if 0 <= place < memory.nbytes else "made" if value > 1 << 40 else argument

    def started(odd: str, k: int) -> list[tuple]:
        """What a call's launches are, with one of the operands at an odd address."""
        parts, offset = {}, 0
        for name, shape in {"x": (50_000, k), "w": (1, k), "y": (50_000, 1), "b": (1,)}.items():
            size = math.prod(shape)
            parts[name] = memory[offset + (name == odd) :][:size].view(shape)
            offset += size + 64 - size % 64
        x, w, y, b = parts.values()
        before = DRIVER.launches
        gdcore.linear_mse(x, w.requires_grad_(), y, b)
        return [(*one[:4], *map(plain, one.arguments)) for one in DRIVER.started(before)]

    found: dict[str, str] = {}
    with gdcore.use_backend("triton"), mock.patch.object(devices, "INTERPRETED", devices.H200):
        for k in (4, 40):
            expected = {}
            for odd in ("", "x", "w", "y", "b"):
                recall.forget()
                with contextlib.ExitStack() as stack:
                    for holder in holders():
                        stack.enter_context(mock.patch.object(holder, "launch", noted))
                    started(odd, k)
                expected[odd] = started(odd, k)
            recall.forget()
            for turn, odd in enumerate(("", "", "", "", *"xwybxwyb", "", *"xwyb")):
                said, asked = started(odd, k), expected[odd]
                is_wrong = said != asked or len(said) != 2 or len(said[0]) < 15 or (odd and asked == expected[""])
                found[f"K = {k}, call {turn}"] = f"{said} in place of {asked}" if is_wrong else ""
    return found


if __name__ == "__main__":
    backends.interpreting = lambda: True  # takes tensors on the CPU
    checks = check_table, check_hooks, check_names, check_memory, check_bound, check_kernels, check_replays
    print(json.dumps({check.__name__.removeprefix("check_"): check() for check in checks}))
