"""A progress bar between launches."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def shown(wanted: bool, steps: int) -> Iterator[Callable[[int], None]]:
    """Yields a function to be told how many steps are done."""
    if not wanted:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("fit"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("fit", total=steps)
        yield lambda done: bar.update(task, completed=done)
