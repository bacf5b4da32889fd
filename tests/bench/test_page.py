"""The report page: all of the document is on it, nothing of the document is markup, and it works in a browser without a network."""

import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gdcore.bench import page
from gdcore.bench.page import charts
from gdcore.bench.results import BadInput
from report_support import document

VOID = {"meta", "input", "br", "link"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CUDA = ("device", "replay", "wall")


class Tree(HTMLParser):
    """What a page holds; fails where tags are not balanced or an id occurs twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.rows: dict[str, list[list[str]]] = {}  # by the table's id; a row's cells as text
        self.shown: Counter[str] = Counter()  # rows that are not hidden, by the table's id
        self._table = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if "id" in attributes:
            assert attributes["id"] not in self.ids, f"twice: {attributes['id']}"
            self.ids.add(attributes["id"])
        if tag == "table":
            self._table = attributes.get("id", "")
        if tag == "tr" and "tbody" in self.open:
            self.rows.setdefault(self._table, []).append([])
            self.shown[self._table] += "hidden" not in attributes
        if tag in ("td", "th") and "tbody" in self.open:
            self.rows[self._table][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text += data
        if "tbody" in self.open and ("td" in self.open or "th" in self.open):
            self.rows[self._table][-1][-1] += data

    def heads(self, table: str) -> list[str]:
        return [row[0] for row in self.rows.get(table, [])]


@pytest.mark.parametrize("columns", [("wall",), CUDA], ids=["one column", "three columns"])
def test_the_page_is_whole_and_needs_nothing_from_elsewhere(columns):
    text = page.html(document(columns))
    tree = Tree(text)
    assert not re.search(r"https?:|url\(|@import|\bsrc=|<link|<iframe", text)
    assert all(found.get("href", "#").startswith("#") for _, found in tree.elements)
    assert sum(tag == "h1" for tag, _ in tree.elements) == 1
    assert all(found.get("aria-label") for tag, found in tree.elements if found.get("role") == "img")
    tables, captions = (sum(tag == name for tag, _ in tree.elements) for name in ("table", "caption"))
    assert tables == captions > 5
    assert all(found.get("scope") for tag, found in tree.elements if tag == "th")


def test_every_case_every_failure_and_every_loss_is_there():
    tree = Tree(page.html(document()))
    expected = ["50,000 × 8 × 2", "3,000 × 8 × 2", "200,000 × 8 × 2", "90,000 × 8 × 2", "70,000 × 8 × 2"]
    for table in ("linear_mse-wall", "linear_mse-peers-wall"):
        assert [head.split(" × 8 × 2")[0] + " × 8 × 2" for head in tree.heads(table)] == expected
    assert len(tree.rows["sgd-wall"]) == len(tree.rows["run-wall"]) == len(tree.rows["predicted"]) == 1
    for text in (
        "CPU figures",
        "Stock wins in 1 of 5 cases",
        "3,000 × 8 × 2 (backward, dW, float32): gdcore reaches 0.80x of its speed",
        "ResNet-50, momentum (float32, bfloat16): fused; gdcore reaches 0.50x of its speed",
        "Parity with float64: 5 of 6 cases pass",
        "Parity FAILS at 70,000 × 8 × 2 (backward, dW, float32): weight is off by 1e+00",
        "No figure for gdcore at 90,000 × 8 × 2 (forward, loss alone, bfloat16): it takes about 70 GiB",
        "diabetes, 300 updates (run, dW, float32): losses differ",
        "gdcore against itself, timed the same way, differs by 1.0 % in the middle case",
        "The clocks were throttled at 3,000 × 8 × 2 (backward, dW, float32): too hot",
        "Twice as long as predicted: calls are the cost.",
        "PREDICTED, not measured",
        "30.0 GB/s",
        "180 GFLOP/s",
        "0.5176",
        "op: backward, sgd",
    ):
        assert text in tree.text, text
    missing = {(row[0], row[1], row[2]) for row in tree.rows["missing"]}
    assert missing == {
        ("all", "skipped", "it takes about 70 GiB"),
        ("gdcore", "no figure", "weight is off by 1e+00"),
        ("gdcore", "failed", "weight is off by 1e+00"),
        ("compiled as one graph", "failed", "RuntimeError: no <compiler> here"),
        ("JAX", "left out", "JAX is not installed"),
    }
    assert [row[2:5] for row in tree.rows["parity-linear_mse"][:2]] == [
        ["0", "3.0e-08", "0.00"],
        ["2.0e-08", "3.0e-08", "0.67"],
    ]


def test_the_heat_map_writes_its_numbers_and_says_more_in_the_tooltip():
    text = page.html(document(CUDA))
    cells = re.findall(r'<a class="heat (\w+)"[^>]*title="([^"]*)"[^>]*href="([^"]*)"[^>]*>([^<]*)', text)
    won = [cell for cell in cells if cell[1].startswith("50,000")]
    assert len(won) == 4  # each case's own clock, and the three
    assert won[0] == (
        "win",
        "50,000 × 8 × 2 (backward, dW, float32): 4.00x (95 %: 3.60 to 4.40) of stock&#x27;s speed, FASTER; "
        "4.00x of stock&#x27;s, the best peer; device time",
        "#search=won",
        "4.00x&nbsp;▲",
    )
    assert any(cell[0] == "loss" and cell[3] == "0.80x&nbsp;▼" for cell in cells)
    assert any(cell[0] == "none" and "70 GiB" in cell[1] for cell in cells)


def test_text_of_the_document_never_becomes_markup():
    evil = "<script>alert(1)</script>\"'&"
    hostile = document(CUDA)
    hostile["machine"] |= {"cpu": evil, "system": evil}
    hostile["versions"][evil] = evil
    hostile["cases"] = {
        f"{name}{evil}": row | {"label": evil, "regime": evil, "data": evil} for name, row in hostile["cases"].items()
    }
    for row in hostile["cases"].values():
        for found in row.get("peers", {}).values():
            found |= {"failure": evil} if "failure" in found else {"no_time": {evil: evil}}
    hostile["host"]["rows"][evil] = {"what": evil, "peers": {evil: {"p50": 1}}}
    tree = Tree(page.html(hostile))
    assert sum(tag == "script" for tag, _ in tree.elements) == 2
    assert evil in tree.text and "alert" not in "".join(tag for tag, _ in tree.elements)
    assert not [name for _, found in tree.elements for name in found if "alert" in name or name.startswith("on")]


def without(*keys: str):
    return lambda found: [found.pop(key) for key in keys]


def only(*names: str):
    return lambda found: found.update(cases={name: found["cases"][name] for name in names})


def each_peer(change):
    return lambda found: [change(one) for row in found["cases"].values() for one in row.get("peers", {}).values()]


OPTIONAL = (
    "op",
    "label",
    "regime",
    "wanted",
    "bytes",
    "flops",
    "floor_seconds",
    "plan",
    "peers",
    "noise",
    "column",
    "best",
)
INCOMPLETE = {
    "nothing at all": lambda found: found.clear(),
    "nothing measured": lambda found: found.update(cases={}, host={}, predicted=[], ceilings=None),
    "not finished": lambda found: found.update(finished=None),
    "all skipped": only("skipped"),
    "all failed": only("wrong"),
    "only the optimizer": only("sgd"),
    "no ceilings": lambda found: found.update(ceilings=None),
    "no product ceilings": lambda found: found.update(ceilings={"read": 1e10}),
    "no facts": without(
        "machine", "versions", "selection", "commit", "created", "seed", "host", "predicted", "attempts"
    ),
    "no times": each_peer(lambda one: one.pop("times", None)),
    "no parity": each_peer(lambda one: one.pop("parity", None)),
    "no memory": each_peer(lambda one: one.pop("peak_bytes", None)),
    "nothing but zero": each_peer(
        lambda one: one.update(peak_bytes=0, parity={"errors": {"a": 0}, "stock_errors": {"a": 0}})
    ),
    "infinite errors": each_peer(lambda one: one.update(parity={"errors": {"a": "inf"}, "stock_errors": {"a": "nan"}})),
    "no optional keys": lambda found: [row.pop(key, None) for row in found["cases"].values() for key in OPTIONAL],
    "nothing but names": lambda found: found.update(cases={"a": {}, "b": {"peers": {"gdcore": {}}}}),
}


@pytest.mark.parametrize("change", INCOMPLETE.values(), ids=INCOMPLETE)
def test_a_document_may_be_incomplete(change):
    found = document()
    change(found)
    tree = Tree(page.html(found))
    assert "What this run found" in tree.text
    assert ("This run is not finished" in tree.text) == (not found.get("finished"))


def test_exact_and_infinite_errors_have_a_place_on_the_plot():
    text = str(charts.errors(document()))
    assert charts.ZERO in text and charts.INFINITE in text and text.count("PARITY FAILS") == 3
    failed = {name: y for y, name in re.findall(r'cy="([^"]*)"[^>]*><title>(\w+) of 70,000', text)}
    assert failed["weight"] == failed["bias"] != failed["loss"]  # inf and NaN at the top
    places = {float(place) for place in re.findall(r'c[xy]="([^"]*)"', text)}
    assert places and min(places) > 0 and max(places) < charts.WIDTH


def test_what_an_axis_cannot_show_stays_inside_it():
    axis = charts.Axis([1e-5, 1.0, 0.0], 100, 700)
    assert [axis(value) for value in (0.0, 1e-300, 1e300, float("inf"))] == [100, 100, 700, 700]


def test_the_page_replaces_a_file_in_one_step(tmp_path):
    page.write(document(), tmp_path / "new" / "page.html")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    Tree((tmp_path / "new" / "page.html").read_text(encoding="utf-8"))


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"^cannot write .*page\.html: .+$"):
        page.write(document(), tmp_path / "file" / "page.html")


def browse(folder: Path, address: str = "", script: str = "") -> tuple[Tree, dict]:
    """The page as Chromium has it after its scripts have run, and the root element's attributes."""
    text = page.html(document(CUDA)).replace("</body>", f"<script>{script}</script></body>")
    (folder / "page.html").write_text(text, encoding="utf-8")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=400,900",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command = [CHROMIUM, *options, "--virtual-time-budget=2000", "--dump-dom", f"file://{folder}/page.html{address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    tree = Tree(done.stdout)
    root = next(found for tag, found in tree.elements if tag == "html")
    assert "data-error" not in root, root["data-error"]
    assert root.get("data-ready") == "yes"
    return tree, root


browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not tried in a browser")


@browser
def test_an_address_searches_sorts_and_chooses_the_clock(tmp_path):
    tree, _ = browse(tmp_path, "#search=50000+DW&verdict=FASTER&column=replay&sort=linear_mse-replay,1,descending")
    assert [row[1] for row in tree.rows["linear_mse-replay"]] == ["1.60 s", "400 ms", "320 ms", "", ""]
    # One case is left, in this clock's three tables, in those of parity (two outputs) and memory.
    assert re.search(r"(?<!\d)6 of \d+ rows", tree.text)
    tables = {"linear_mse-replay", "linear_mse-peers-replay", "linear_mse-noise-replay", "memory-linear_mse"}
    assert {name: tree.shown[name] for name in tables} == dict.fromkeys(tables, 1)
    assert tree.shown["parity-linear_mse"] == 2 and tree.shown["sgd-replay"] == 0


@browser
def test_clicks_sort_both_ways_and_the_search_box_filters_as_one_types(tmp_path):
    script = """
    const head = document.querySelector("#linear_mse-headline thead th:nth-child(3) button");
    const order = () => [...document.querySelectorAll("#linear_mse-headline tbody tr")].map(row => row.dataset.search);
    const root = document.documentElement.dataset, box = document.getElementById("search");
    head.click(); root.up = order(); head.click(); root.down = order();
    root.sorted = head.parentElement.getAttribute("aria-sort");
    box.value = "no such row"; box.dispatchEvent(new Event("input"));
    root.address = location.hash; root.count = document.getElementById("count").value;
    document.querySelector("input[value=wall]").click();
    const blocks = [...document.querySelectorAll("[data-column]")];
    root.blocks = [...new Set(blocks.filter(block => block.checkVisibility()).map(block => block.dataset.column))];
    root.wide = document.documentElement.scrollWidth > innerWidth;
    """
    _, root = browse(tmp_path, script=script)
    assert root["data-up"].split(",") == ["lost", "big", "wrong", "won", "skipped"]
    assert root["data-down"].split(",") == ["won", "wrong", "big", "lost", "skipped"]
    assert root["data-sorted"] == "descending" and root["data-count"] == "Nothing matches"
    assert "search=no+such+row" in root["data-address"]
    assert root["data-blocks"] == "3"  # headline, device, replay, wall
    assert root["data-wide"] == "false", "the page scrolls sideways"
