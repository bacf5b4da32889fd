"""Print the table of configurations, and what the compiler made of each row (see the package's docstring)."""

import argparse

from ..resources import table as compiled_figures
from ..shipped import variants
from ..shipped_rows import row_of
from . import ARCHITECTURES, REGIMES, TABLE, Key

HEADER = (
    f"{'regime':10} {'family':32} {'kind':17} arch size  {'tile (N, K, M)':15} warps stages"
    "  registers  shared  programs  compiled as"
)


def representatives(architecture: int) -> dict[Key, tuple[str, dict]]:
    """Row -> name and stored figures of the variant that stands for it: of several, one with the row's very tile, if it is
    not cut for the launch, and of these the one with most registers."""
    ranked: dict[Key, list[tuple[tuple[bool, int], str, dict]]] = {}
    for variant in variants(architecture):
        row = row_of(variant, architecture)
        figures = compiled_figures().get(variant.name, {}).get(str(architecture))
        if row is None or figures is None:
            continue
        rank = (variant.config == TABLE[row[0]], figures["registers"])
        ranked.setdefault(row[0], []).append((rank, variant.name, figures))
    return {key: max(found, key=lambda pair: pair[0])[1:] for key, found in ranked.items()}


def line(regime: str, key: Key, representative: tuple[str, dict] | None) -> str:
    """One row of what is printed."""
    config = TABLE[key]
    tile = " x ".join(str(block) for block in (config.block_n, config.block_k, config.block_m) if block)
    told = (
        f"{regime:10} {key.family:32} {key.kind:17} {key.architecture:4} {key.size or '':4}  {tile:15} "
        f"{config.num_warps:5} {config.num_stages:6}"
    )
    if representative is None:
        return told
    name, figures = representative
    return f"{told}  {figures['registers']:9} {figures['shared_bytes']:7} {figures['programs_per_sm']:9}  {name}"


def main() -> None:
    """The command line."""
    families = sorted({key.family for key in TABLE})
    parser = argparse.ArgumentParser(prog="python -m gdcore.kernels.table", description=__doc__)
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, action="append", help="default: all")
    parser.add_argument("--family", choices=families, action="append", help="default: all")
    arguments = parser.parse_args()
    architectures = arguments.arch or ARCHITECTURES
    compiled = {key: pair for arch in architectures for key, pair in representatives(arch).items()}
    print(HEADER)
    for regime, rows in REGIMES.items():
        for family, kind, shared_by, size, *_ in rows:
            for arch in shared_by:
                if arch in architectures and family in (arguments.family or families):
                    key = Key(family, kind, arch, size)
                    print(line(regime, key, compiled.get(key)))


if __name__ == "__main__":
    main()
