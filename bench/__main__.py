"""The command line, `gdcore-bench` or `python -m gdcore.bench`: run, report, compare, explain, tune, paths, readme."""

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 130
MOST_SEEDS = 1 << 63
EXTRAS = ("rich", "matplotlib")  # what makes tables and pictures
COMMANDS = ("run", "report", "compare", "explain", "tune", "paths", "readme")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> Parser:
    """The commands and their options. With no command it is `run`."""
    from . import compare, explain, paths, selection, tuning

    top = Parser(
        prog="gdcore.bench",
        description="Compares gdcore with stock PyTorch and other peers: parity, speed, memory, training on real data.",
        epilog="Without a command it is run. Its options: python -m gdcore.bench run --help",
    )
    commands = top.add_subparsers(dest="command", metavar="{" + ",".join(COMMANDS) + "}", parser_class=Parser)

    def command(name: str, does: Callable[[argparse.Namespace], int], said: str, more: str = "") -> Parser:
        made = commands.add_parser(name, help=said, description=f"{said[0].upper()}{said[1:]}. {more}")
        made.set_defaults(does=does)
        return made

    statuses = "Exit status: 0; 1 where parity fails or a run differs from published figures; 2 for bad input."
    run = command("run", start_or_resume, "measure (this is the default)", statuses)
    run.add_argument(
        "--profile",
        help="quick (the default: two minutes on two CPU cores), full (under eight minutes on a GPU, longer on a CPU) or "
        "smoke (seconds, tiny sizes)",
    )
    selection.add_arguments(run)
    run.add_argument("--out", type=Path, metavar="FILE", help="the result file (default: bench-results/<time>.json)")
    run.add_argument("--resume", type=Path, metavar="FILE", help="go on with this result file, and its selection")
    run.add_argument("--seed", type=int, metavar="N", help="of the random inputs (default: 0)")
    report = command("report", write_report, "make a page of a result file, to be opened in a browser")
    report.add_argument("result", type=Path, metavar="RESULT.json")
    report.add_argument("--out", type=Path, metavar="PAGE.html", help="default: beside the result file")
    compare.add_arguments(
        command("compare", compare.command, "what became slower, wrong or larger between two results")
    )
    explain.add_arguments(command("explain", explain.command, "what gdcore does with one shape, and why"))
    tuning.add_arguments(command("tune", tuning.command, "search tile configurations for this machine's GPU"))
    paths.add_arguments(
        command("paths", paths.command, "time every path of a shape beside stock on this machine's GPU")
    )
    readme = command("readme", write_readme, "write a result file's figures into README.md and docs/")
    readme.add_argument("result", type=Path, metavar="RESULT.json")
    readme.add_argument(
        "--predict", action="store_true", help="first compute the file's predictions anew, which are no measurements"
    )
    readme.add_argument("--readme", type=Path, default=Path("README.md"), metavar="FILE", help="default: README.md")
    return top


def start_or_resume(options: argparse.Namespace) -> int:
    """`run`: checks what was asked for, then measures."""
    from . import console, machine, runner, selection
    from .results import BadInput, Results, default_path

    asked = selection.selected(options)
    if options.seed is not None and not 0 <= options.seed < MOST_SEEDS:
        raise BadInput(f"--seed is {options.seed}, it must be a whole number from 0 to 2^63 - 1")
    device = machine.device_here()
    here = {
        "machine": machine.describe_machine(device),
        "versions": machine.versions(),
        "commit": machine.commit(),
    }
    try:
        taken = options.out and options.out.is_file() and options.out.stat().st_size and options.out != options.resume
    except OSError as error:
        raise BadInput(f"cannot write {options.out}: {error.strerror}") from error
    if taken:
        raise BadInput(f"{options.out} exists: go on with it by --resume, or give another --out")
    if options.resume:
        if options.seed is not None:
            raise BadInput("--seed cannot change when a run is resumed: the file has its own")
        results = Results.resumed(options.resume, options.out or options.resume, profile=options.profile, **here)
        asked = selection.Selection.from_json(results.document["selection"]) if asked.empty else asked
    else:
        profile = options.profile or "quick"
        given = {"profile": profile, "selection": asked.to_json(), "seed": options.seed or 0}
        given["busy_cores"] = machine.busy_cores()
        results = Results.new(options.out or default_path(), **given, **here)
    out = console.make_console()
    try:
        return runner.run(results, asked, device, out)
    except KeyboardInterrupt:
        if not results.saved:
            out.print("\nInterrupted. Nothing was measured yet.")
            return INTERRUPTED
        results.save()  # it may have come while a row was being saved
        done = len(results.document["cases"])
        out.print(f"\nInterrupted. What was measured is saved: {done} case{'s' * (done != 1)}.", soft_wrap=True)
        return INTERRUPTED
    finally:
        if results.saved:
            out.print(f"\nSaved in {results.path}", soft_wrap=True)
            if not results.document["finished"]:
                out.print(f"Go on with: python -m gdcore.bench --resume {results.path}", soft_wrap=True)
            else:
                out.print(f"As a page: python -m gdcore.bench report {results.path}", soft_wrap=True)


def write_report(options: argparse.Namespace) -> int:
    """`report`: a page that needs nothing but a browser."""
    from . import page
    from .results import read

    out = options.out or options.result.with_suffix(".html")
    page.write(read(options.result), out)
    print(f"wrote {out}")
    return 0


def write_readme(options: argparse.Namespace) -> int:
    """`readme`: the figures of a committed result file, in words, tables and pictures."""
    from . import predict, readme, results

    if options.predict:
        document = results.read(options.result)
        results.write(options.result, document | {"predicted": predict.table()})
    for path in readme.update(options.result, options.readme):
        print(f"wrote {path}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in (*COMMANDS, "-h", "--help"):
        given.insert(0, "run")
    from .results import BadInput

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without × or µ must not end a run
    try:
        options = parser().parse_args(given)
        return options.does(options)
    except BadInput as error:
        print(f"gdcore.bench: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        print(
            f"gdcore.bench: {error.name} is not installed; the benchmark needs: pip install 'gdcore[bench]'",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        with contextlib.suppress(OSError):
            sys.stdout.close()
    return 2


if __name__ == "__main__":
    sys.exit(main())
