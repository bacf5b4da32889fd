"""Where it runs: processor, device, versions, commit, free memory."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import gdcore
from gdcore import devices
from gdcore.backends import chosen


def device_here() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _first_field(path: str, field: str) -> str | None:
    """The value of the first `field: value` line of a /proc file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == field), None)


def describe_machine(device: torch.device) -> dict:
    """What a reader needs in order to judge the figures."""
    total = _first_field("/proc/meminfo", "MemTotal")
    machine = {
        "cpu": _first_field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(int(total.split()[0]) / 2**20, 1) if total else None,
        "system": f"{platform.system()} {platform.machine()}",
        "float32_products": torch.get_float32_matmul_precision(),
        "backend": chosen(),
        "device": "cpu",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "device": "cuda",
            "gpu": properties.name,
            "capability": [properties.major, properties.minor],
            "sms": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": _driver(),
            "tuned": table.path.name if (table := devices.describe(device).tuned) else None,
        }
    return machine


def _driver() -> str | None:
    """The NVIDIA driver's version, from the kernel module or the management library; None where neither tells."""
    text = _first_field("/proc/driver/nvidia/version", "NVRM version")
    if text:
        return next((word for word in text.split() if word[:1].isdigit() and "." in word), text)
    try:
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # not installed, or no permission
        return None
    return version if isinstance(version, str) else version.decode()


def versions() -> dict[str, str | None]:
    """gdcore, Python and what the figures depend on; None where it is missing."""
    found: dict[str, str | None] = {
        "gdcore": gdcore.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in ("triton", "numpy", "scikit-learn", "jax"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found | {"cuda": torch.version.cuda}


def commit() -> str | None:
    """The commit of the checkout, marked `+changes` when files differ from it; None outside of a checkout."""
    root = Path(gdcore.__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    name = git("rev-parse", "--short=12", "HEAD")
    return f"{name}+changes" if name and git("status", "--porcelain", "--untracked-files=no") else name


def busy_cores() -> float | None:
    """How many cores other work has kept busy in the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be allocated on the device; None where it cannot be known."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's own, unused
        return torch.cuda.mem_get_info(device)[0] + kept
    available = _first_field("/proc/meminfo", "MemAvailable")
    known = [int(available.split()[0]) * 1024] if available else []
    group = Path("/sys/fs/cgroup")  # a container's own limit
    with contextlib.suppress(OSError, ValueError):  # no such file, or the limit is the word "max"
        known.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(known, default=None)
