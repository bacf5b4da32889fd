"""Triton's launches for a GPU on a machine without one: compiled for an H100, launched by a driver that does nothing.

Everything on the host runs as it does beside a GPU: specialisation, compilation, the table of launches, tensor maps, the
launcher in C. Tensors are on the CPU, and nobody computes. Triton chooses its driver once, so this takes a process of its own.
"""

import ctypes
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

SOURCE = pathlib.Path(__file__).with_name("null_driver.c")
BYTES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8, "fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}
TENSOR_MAP, KEPT = 128, 64


def compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")


def environment(folder: pathlib.Path) -> dict[str, str]:
    """For a process that calls activate(); the driver is built into the folder."""
    import triton

    include = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    built = folder / "libcuda.so.1"
    subprocess.run([compiler(), "-shared", "-fPIC", "-O1", f"-I{include}", str(SOURCE), "-o", str(built)], check=True)
    if not (folder / "libcuda.so").exists():
        (folder / "libcuda.so").symlink_to(built.name)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder / "cache"),
        "TRITON_INTERPRET": "0",
    }


def run(script: pathlib.Path, folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    """The script in a process that has the driver."""
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=300)


class Launched(NamedTuple):
    """What the driver was told."""

    function: int
    grid: tuple[int, int, int]
    stream: int
    is_cooperative: bool
    arguments: tuple[bytes, ...]


class _Started(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_long),
        ("grid", ctypes.c_long * 3),
        ("stream", ctypes.c_long),
        ("cooperative", ctypes.c_long),
        ("count", ctypes.c_long),
        ("arguments", (ctypes.c_ubyte * TENSOR_MAP) * 64),
    ]


class Driver:
    """The driver of this process, which has been made Triton's."""

    def __init__(self) -> None:
        import triton
        from triton.backends.nvidia.driver import CudaDriver

        self.device, self.stream, self.library = 0, 7, ctypes.CDLL("libcuda.so.1")
        self.library.null_driver_started.restype = ctypes.c_void_p
        self.library.null_driver_launches.restype = ctypes.c_long
        here = self

        class NullDriver(CudaDriver):
            def __init__(self) -> None:
                super().__init__()
                self.get_device_capability = lambda device=0: (9, 0)
                self.get_current_device = lambda: here.device
                self.set_current_device = lambda device: None
                self.get_current_stream = lambda device: here.stream + 100 * max(device, 0)

        triton.runtime.driver.set_active(NullDriver())

    @property
    def launches(self) -> int:
        return self.library.null_driver_launches()

    def started(self, since: int) -> list[Launched]:
        """The launches since there were so many, KEPT at most."""
        table = (_Started * KEPT).from_address(self.library.null_driver_started())
        return [_read(table[number % KEPT]) for number in range(since, self.launches)]

    def expect(self, compiled: Any) -> None:
        """Of this kernel's launches the arguments are kept."""
        sizes = _sizes(compiled)
        array = (ctypes.c_int * len(sizes))(*sizes)
        self.library.null_driver_expect(ctypes.c_long(compiled.function), array, len(sizes))


def _read(found: _Started) -> Launched:
    arguments = tuple(bytes(found.arguments[i]) for i in range(found.count))
    return Launched(found.function, tuple(found.grid), found.stream, bool(found.cooperative), arguments)


def _sizes(compiled: Any) -> list[int]:
    """The bytes of what a compiled kernel is called with; a descriptor is a tensor map, its sizes and its strides."""
    sizes = []
    for kind in compiled.src.signature.values():
        if kind == "constexpr":
            continue
        if kind.startswith("tensordesc"):
            rank = re.search(r"\[([^]]*)\]", kind)[1].count(",") + 1
            sizes += [TENSOR_MAP] + [4] * rank + [8] * rank
        else:
            sizes.append(8 if kind.startswith("*") else BYTES[kind])
    return sizes
