"""The command line: `python -m gdcore.bench` runs the benchmark, `python -m gdcore.bench readme FILE` writes its figures down."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 130
EXTRAS = ("rich", "matplotlib")  # what only the benchmark needs
COMMANDS = ("run", "readme")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """The commands and their options. With no command it is `run`."""
    top = Parser(
        prog="gdcore.bench",
        description="Compares gdcore with stock PyTorch: parity, speed, memory, training on real data.",
        epilog="Without a command it is run. Its options: python -m gdcore.bench run --help",
    )
    commands = top.add_subparsers(dest="command", metavar="{run,readme}", parser_class=Parser)
    statuses = "Exit status: 0; 1 where parity fails or a training run differs; 2 for bad input."
    run = commands.add_parser("run", help="measure (this is the default)", description=statuses)
    run.add_argument(
        "--profile",
        help="quick (the default, under three minutes on two cores), smoke (seconds, tiny sizes), or sgd (the optimizer "
        "alone, at every size, with a compiled step everywhere: many minutes on a CPU)",
    )
    run.add_argument("--only", metavar="PATTERN", help="only what has this in its name: a part of it, or a shell glob")
    run.add_argument("--out", type=Path, metavar="FILE", help="the result file (default: bench-results/<time>.json)")
    run.add_argument("--resume", type=Path, metavar="FILE", help="go on with this result file")
    run.add_argument("--no-training", action="store_true", help="leave out the training runs")
    readme = commands.add_parser("readme", help="write a result file's figures into README.md and docs/")
    readme.add_argument("result", type=Path, metavar="RESULT.json")
    readme.add_argument("--readme", type=Path, default=Path("README.md"), metavar="FILE", help="default: README.md")
    return top


def start_or_resume(options: argparse.Namespace) -> int:
    """`run`: checks what was asked for, then measures."""
    from . import machine, report, runner
    from .cases import PROFILES
    from .results import BadInput, Results, default_path

    if options.profile is not None and options.profile not in PROFILES:
        raise BadInput(f"unknown profile {options.profile!r}: it must be one of {', '.join(PROFILES)}")
    device = machine.device_here()
    here = {"machine": machine.describe_machine(device), "versions": machine.versions()}
    if options.resume:
        results = Results.resumed(options.resume, options.out or options.resume, profile=options.profile, **here)
    else:
        profile = options.profile or "quick"
        results = Results.new(options.out or default_path(), profile=profile, seed=0, commit=machine.commit(), **here)
    chosen = runner.choose(results.document["profile"], device, options.only, not options.no_training)
    results.save()  # a folder that cannot be written shows now, not after the work
    console = report.make_console()
    report.header(console, results.document, results.path)
    try:
        return runner.run(results, chosen, device, console)
    except KeyboardInterrupt:
        console.print(
            f"\nInterrupted. What was measured is saved: {len(results.document['cases'])} cases.", soft_wrap=True
        )
        return INTERRUPTED
    finally:
        console.print(f"\nSaved in {results.path}", soft_wrap=True)
        if not results.document["finished"]:
            console.print(f"Go on with: python -m gdcore.bench --resume {results.path}", soft_wrap=True)


def write_readme(options: argparse.Namespace) -> int:
    """`readme`: the figures of a committed result file, in words, a table and a picture."""
    from . import readme

    for path in readme.update(options.result, options.readme):
        print(f"wrote {path}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in (*COMMANDS, "-h", "--help"):
        given.insert(0, "run")
    options = parser().parse_args(given)
    from .results import BadInput

    try:
        return write_readme(options) if options.command == "readme" else start_or_resume(options)
    except BadInput as error:
        print(f"gdcore.bench: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        print(
            f"gdcore.bench: {error.name} is not installed; the benchmark needs: pip install 'gdcore[bench]'",
            file=sys.stderr,
        )
    return 2


if __name__ == "__main__":
    sys.exit(main())
