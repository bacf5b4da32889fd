"""A race that Triton's pipeliner can make, found in its own intermediate code.

Hopper's matrix instructions read their operands from shared memory while the loop goes on, so a tile's buffer may be filled
again only when the instruction of the step before has ended: such loads get one buffer more than others. But an operand that
is also read into registers gets no such buffer (Triton 3.6 to 3.9), and the copy of a later step writes where an
instruction still reads. Seen on an H200: gradients that changed from run to run. Load such a tile twice instead.
"""

import re

NAME = r"%[\w#]+"
VIEW = re.compile(rf"({NAME}) = ttg\.memdesc_\w+ ({NAME})")
ALLOCATED = re.compile(rf"({NAME}) = ttg\.local_alloc")
CARRIED = re.compile(rf"({NAME}) = ({NAME})(?=[,)])")  # by a loop, from step to step
PRODUCT = re.compile(rf"ttng\.warp_group_dot ({NAME}), ({NAME})")
READ = re.compile(rf"ttg\.local_load ({NAME})")


def read_twice(ttgir: str) -> list[str]:
    """The buffers that a matrix instruction which is not waited for in its own step and a read into registers share."""
    if not re.search(r"warp_group_dot_wait.*pendings = [1-9]", ttgir):
        return []
    buffers: dict[
        str, tuple[str, int]
    ] = {}  # by the name of a buffer or of a view; regions side by side use names again
    multiplied, read = set(), set()
    for number, line in enumerate(ttgir.splitlines()):
        if found := ALLOCATED.search(line):
            buffers[found[1]] = found[1], number
        elif "iter_args(" in line:
            carried = CARRIED.findall(line[line.index("iter_args(") :])
            buffers |= {name: buffers[first] for name, first in carried if first in buffers}
        elif found := VIEW.search(line):
            buffers[found[1]] = buffers.get(found[2], (found[2], -1))
        elif found := PRODUCT.search(line):
            multiplied |= {buffers[name] for name in found.groups() if name in buffers}
        elif (found := READ.search(line)) and found[1] in buffers:
            read.add(buffers[found[1]])
    return sorted(name for name, _ in multiplied & read)
