"""HTML as strings: what is not Markup is escaped, so text from a result document can never become markup."""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

VOID = frozenset(("br", "input", "meta", "link"))


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


class Cell(NamedTuple):
    """A table's cell: what it shows, and the number to sort by where it shows one."""

    content: object
    value: float | None = None
    kind: str | None = None  # a CSS class


def escaped(value: object) -> Markup:
    """Markup as it is, anything else as text."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def joined(parts: Iterable[object], between: str = "") -> Markup:
    """The parts one after another."""
    return Markup(escaped(between).join(escaped(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: Any) -> Markup:
    """An element. `class_` and `data_value` become class and data-value; None and False leave an attribute out."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{joined(children)}</{name}>")


def small(*children: object) -> Markup:
    """A second, quieter line."""
    return tag("small", *children)


def items(lines: Iterable[object]) -> Markup:
    """A list."""
    return tag("ul", *(tag("li", line) for line in lines))


def table(
    name: str,
    caption: str,
    rows: Sequence[Any],
    head: str,
    header: Callable[[Any], object],
    columns: Mapping[str, Callable[[Any], Cell | None]],
    marks: Callable[[Any], Mapping[str, object]] = lambda row: {},
) -> Markup:
    """A table that the page can search and sort, in a box of its own; columns without any content are left out.

    `header` gives a row's heading under `head`, `columns` a cell of a row by heading, where a line break starts a
    quieter second line, and `marks` a row's attributes, by which it is found. Without rows there is no table.
    """
    if not rows:
        return Markup()
    cells = {title: [cell(row) for row in rows] for title, cell in columns.items()}
    cells = {title: found for title, found in cells.items() if any(cell is not None for cell in found)}
    heads = [tag("th", *_lines(title), scope="col") for title in (head, *cells)]
    body = [
        tag("tr", tag("th", header(row), scope="row"), *(_cell(found[i]) for found in cells.values()), **marks(row))
        for i, row in enumerate(rows)
    ]
    inside = tag(
        "table", tag("caption", caption), tag("thead", tag("tr", *heads)), tag("tbody", *body), id=name, class_="data"
    )
    return tag("div", inside, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _lines(title: str) -> list[object]:
    first, *rest = title.split("\n")
    return [first, *(small(line) for line in rest)]


def _cell(cell: Cell | None) -> Markup:
    if cell is None:
        return tag("td")
    value = None if cell.value is None or cell.value != cell.value else f"{cell.value:.9g}".replace("inf", "Infinity")
    return tag("td", cell.content, data_value=value, class_=cell.kind)
