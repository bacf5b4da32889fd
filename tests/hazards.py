"""Judges what compute-sanitizer's racecheck reports: `make sanitize`.

    compute-sanitizer --tool racecheck --print-limit 100000 python tests/sanitize.py | python tests/hazards.py

Where several threads hold the same number, Triton's conversions between layouts let each of them store it to the same place
of shared memory. Racecheck reports that as a race of one store with itself; the values are equal, so that it is none. Such
hazards are counted. Any other is printed, and the exit status is 1; so it is where a report cannot be read, where racecheck
did not come to its end, or where the program that it watched failed.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable

MARK = "========= "  # before each line of compute-sanitizer's own
ACCESS = re.compile(r"(?P<kind>\w+) access at (?:0x\w+ in )?(?P<place>.+?)(?: \[(?P<hazards>\d+) hazards?\])?$", re.I)
FIRST, NEXT = re.compile(r"(?:\w+: )?Race reported between (.*)$"), re.compile(r"and (.*)$")
SUMMARY = re.compile(r"RACECHECK SUMMARY: (\d+) hazards? displayed")
FAILURE = re.compile(
    r"Target application returned an error|Internal Sanitizer Error|Error: .*process|Hazard report limit"
)


def read(lines: Iterable[str]) -> tuple[Counter[str], list[str], bool]:
    """(hazards of a store with itself by place, everything else that is wrong, whether the report has its end)."""
    same: Counter[str] = Counter()
    others: list[str] = []
    race: list[str] = []
    ended = False

    def judge() -> None:
        if not race:
            return
        accesses = [ACCESS.match(text.strip()) for text in race]
        if len(accesses) == 2 and all(accesses):
            first, second = accesses
            writes = first["kind"].lower() == second["kind"].lower() == "write"
            if writes and first["place"] == second["place"] and second["hazards"]:
                same[second["place"]] += int(second["hazards"])
                race.clear()
                return
        others.append("\n    and ".join(race))
        race.clear()

    for line in lines:
        if not line.startswith(MARK.strip()):
            continue
        text = line.removeprefix(MARK.strip()).strip()
        if found := FIRST.match(text):
            judge()
            race.append(found[1])
        elif race and (found := NEXT.match(text)):
            race.append(found[1])
        else:
            judge()
            if SUMMARY.match(text):
                ended = True
            elif FAILURE.search(text) or re.match(r"(Error|Warning): ", text):
                others.append(text)
    judge()
    return same, others, ended


def main() -> int:
    """Passes the report's other lines on, and says what was found."""
    lines = []
    for line in sys.stdin:
        lines.append(line)
        if not line.startswith(MARK.strip()):
            print(line, end="", flush=True)
    same, others, ended = read(lines)
    for place, count in sorted(same.items()):
        print(f"{count} hazards of one store of equal numbers with itself at {place}")
    for other in others:
        print(f"HAZARD {other}")
    if not ended:
        print("racecheck did not come to its end")
    print(f"racecheck: {sum(same.values())} harmless, {len(others)} others")
    return 1 if others or not ended else 0


if __name__ == "__main__":
    sys.exit(main())
