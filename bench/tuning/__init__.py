"""`tune`: look for faster tile configurations on one's own GPU, and keep them in a table that the library reads.

Nothing is tuned at import or at a first call: this command is the only thing that does, out of place, on tensors of its own.
"""

import argparse
import math
import re

MINUTES = 5.0
INTERRUPTED = 130
DTYPES = ("float32", "bfloat16", "float16", "float64")
FAMILIES = {
    "rows": "one_pass_rows",
    "vector": "one_pass_vector",
    "dot": "one_pass_dot",
    "tall": "one_pass_tall",
    "forward": "forward",
    "backward_input": "backward_input",
    "backward_weight": "backward_weight",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tune`."""
    parser.add_argument(
        "--list", action="store_true", help="compile and show the candidates, run nothing: needs no GPU"
    )
    parser.add_argument("--arch", type=int, choices=(80, 90, 100), help="with --list: for which GPUs (default: 90)")
    parser.add_argument("--family", action="append", choices=tuple(FAMILIES), help="this kernel only; may be repeated")
    parser.add_argument(
        "--dtype", action="append", choices=DTYPES, help="default: float32 and bfloat16; may be repeated"
    )
    parser.add_argument(
        "--size",
        action="append",
        metavar="NxKxM",
        help="rows x features x outputs; may be repeated (default: a selection)",
    )
    parser.add_argument("--tf32", action="store_true", help="float32 products in TensorFloat-32")
    parser.add_argument("--input-gradient", action="store_true", help="for a loss whose input wants a gradient too")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="begin nothing after so long (default: %(default)g)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N candidates for each kernel and size")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that compile (default: one for each core)")
    parser.add_argument("--again", action="store_true", help="tune what is in the table already once more")


def command(options: argparse.Namespace) -> int:
    """Runs `tune`, or `tune --list`.

    Returns
    -------
    int
        0, or 130 where it was interrupted: what had been found by then is kept.

    Raises
    ------
    BadInput
        No CUDA device that the kernels run on, no place for the table, or options that cannot be.
    """
    from ..results import BadInput

    sizes = [_size(text) for text in options.size] if options.size else None
    if not (math.isfinite(options.minutes) and options.minutes > 0):
        raise BadInput(f"--minutes is {options.minutes}: it must be more than 0")
    for name in ("limit", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name} is {value}: it must be at least 1")
    if options.arch and not options.list:
        raise BadInput("--arch goes with --list: tuning is for the GPU that is here")
    from gdcore.backends import interpreting, triton_is_there

    if not triton_is_there():
        raise BadInput("Triton is not installed, so there are no kernels to tune")
    if interpreting():
        raise BadInput("kernels are interpreted in this process: unset TRITON_INTERPRET")
    return _list(options, sizes) if options.list else _tune(options, sizes)


def _size(text: str) -> tuple[int, int, int]:
    from ..results import BadInput

    if not re.fullmatch(r"[1-9]\d{0,11}(x[1-9]\d{0,11}){2}", text):
        raise BadInput(f"--size is {text!r}: it must be rows x features x outputs, such as 1000000x64x1")
    n, k, m = map(int, text.split("x"))
    return n, k, m


def _jobs(options: argparse.Namespace, sizes, device):
    import torch

    from ..results import BadInput
    from . import candidates

    found = candidates.jobs(
        sizes or candidates.SIZES,
        [getattr(torch, name) for name in options.dtype or DTYPES[:2]],
        device,
        families=None if options.family is None else [FAMILIES[name] for name in options.family],
        input_precision="tf32" if options.tf32 else "ieee",
        want_input=options.input_gradient,
    )
    if not found:
        raise BadInput(
            "nothing to tune: at these sizes gdcore launches none of these kernels (gdcore.explain tells what it does)"
        )
    return found


def _list(options: argparse.Namespace, sizes) -> int:
    """Candidates with their compiled resources, and why some would not be timed."""
    import torch
    from rich.console import Console

    from gdcore import devices

    from . import candidates
    from .compile import Compiler, why_dropped

    here = options.arch is None and torch.cuda.is_available()
    device = devices.describe(torch.device("cuda", torch.cuda.current_device())) if here else None
    device = device or devices.KNOWN[options.arch or 90]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Compiled for sm_{device.architecture}, resources as on {device.name}; nothing is run.")
    with Compiler(device, options.workers) as compiler:
        for job in _jobs(options, sizes, device):
            configs = candidates.candidates(job, device, options.limit)
            console.print(f"\n{job}: {len(configs)} candidates")
            shipped = None
            for config, made in zip(configs, compiler(job, configs), strict=True):
                shipped = shipped or made
                reason = why_dropped(job, config, made, configs[0], shipped, compiler.chip)
                verdict = "timed" if reason is None else f"dropped: {reason}"
                if config == configs[0]:
                    verdict = "shipped" if reason is None else f"shipped: {reason}"
                resources = ""
                if "error" not in made:
                    resources = (
                        f"{made['registers']:4} registers {made['shared_bytes']:7} B shared "
                        f"{made['programs_per_sm']:3} programs {made['occupancy']:5.0%}"
                    )
                console.print(f"  {candidates.words(config):36} {resources:50}  {verdict}", markup=False)
    return 0


def _tune(options: argparse.Namespace, sizes) -> int:
    import os

    import torch
    from rich.console import Console

    from gdcore import devices
    from gdcore.backends import backend_for
    from gdcore.tuned import VARIABLE, NoTable, path_for

    from ..results import BadInput

    if not torch.cuda.is_available():
        raise BadInput("tune needs a CUDA device, and there is none here; tune --list shows the candidates without one")
    here = torch.device("cuda", torch.cuda.current_device())
    if backend_for(here) != "triton":
        raise BadInput("gdcore's kernels do not run on this GPU or were switched off, so there is nothing to tune")
    device = devices.describe(here)
    try:
        path = path_for(device)
    except NoTable as error:
        raise BadInput(str(error)) from error
    from ..timing import DeviceClock, interleave
    from .compile import Compiler
    from .search import Operands, Tools, run
    from .table import TableFile

    jobs = _jobs(options, sizes, device)
    table = TableFile(path, device, may_replace=not os.environ.get(VARIABLE))
    console = Console(highlight=False, soft_wrap=True)

    def say(line: str) -> None:
        console.print(line, markup=False)

    say(f"{device.name}: {len(jobs)} kernels and sizes, about {options.minutes:g} min; the table is {path}")
    if table.refused:
        say(f"The table that is there cannot be used: {table.refused}. A new one takes its place.")
    clock = DeviceClock(here)
    with Compiler(device, options.workers) as compiler:
        tools = Tools(
            compiler,
            lambda job: Operands(job, here),
            lambda calls, seconds: interleave(calls, clock, seconds=seconds),
            compiler.chip,
        )
        try:
            left = run(
                jobs, device, table, tools, say, minutes=options.minutes, again=options.again, limit=options.limit
            )
        except KeyboardInterrupt:
            say(f"Interrupted. What was found is kept: {len(table.rows)} entries in {path}. The same command goes on.")
            return INTERRUPTED
    if left:
        say(f"The time is spent. Not tuned: {', '.join(map(str, left))}. The same command goes on with them.")
    say(f"{len(table.rows)} entries in {path}. Programs that start from now on use them.")
    return 0
