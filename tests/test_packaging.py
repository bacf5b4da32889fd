"""The wheel, installed in a fresh environment: gdcore.kernels and gdcore.bench are there, `kernels` and `bench` are not."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch

ROOT = pathlib.Path(__file__).parent.parent

CHECK = """
import importlib.util
for name in ("kernels", "bench", "tests"):
    spec = importlib.util.find_spec(name)
    assert spec is None or "gdcore" not in str(spec.origin), spec
import gdcore, gdcore.kernels.configs, gdcore.bench
from importlib import resources
assert resources.files("gdcore.kernels").joinpath("resources.json").is_file()
assert resources.files("gdcore.bench").joinpath("data", "thermometer.json").is_file()
assert resources.files("gdcore").joinpath("py.typed").is_file()
assert resources.files("gdcore").joinpath("measured", "none.json").is_file()
import torch
loss = gdcore.linear_mse(torch.randn(2_000_000, 3), torch.randn(2, 3).requires_grad_(), torch.randn(2_000_000, 2))
loss.backward()
import gdcore.kernels.one_pass_rows, gdcore.kernels.sgd
p = torch.ones(3, requires_grad=True)
p.grad = torch.ones(3)
gdcore.SGD([p], lr=0.1, momentum=0.9).step()
gdcore.linear_mse_sgd_(torch.randn(9, 3), torch.zeros(2, 3), torch.randn(9, 2), lr=0.1)
assert gdcore.fit(torch.randn(9, 2), torch.randn(9), lr=0.1, steps=3).losses.shape == (3,)
import gdcore.kernels.run_resident
assert resources.files("gdcore.bench").joinpath("data", "resnet50.json").is_file()
print(gdcore.__file__)
"""


def run(*command, **options):
    answer = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, **options)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("gdcore", "kernels", "bench"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_one_top_level_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"gdcore"}
    assert any(name.startswith("gdcore/kernels/") for name in names)
    assert any(name.startswith("gdcore/bench/") for name in names)
    assert not any("test_" in name for name in names if name.startswith("gdcore/kernels"))


def test_the_wheel_says_what_it_needs(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    for line in ("Name: gdcore", "Requires-Python: >=3.11", "Requires-Dist: torch>=2.9", "Provides-Extra: bench"):
        assert line in metadata
    assert 'Requires-Dist: triton>=3.6; platform_system == "Linux"' in metadata


def test_installed_in_a_fresh_environment(wheel, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = pathlib.Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel)
    # torch and Triton are gigabytes: take them from where they are. A path file adds no editable installs.
    (site / "torch.pth").write_text(str(pathlib.Path(torch.__file__).parent.parent))
    where = run(python, "-c", CHECK, cwd=tmp_path).strip()
    assert pathlib.Path(where).is_relative_to(site)


def test_versions_agree():
    import gdcore

    assert f'version="{gdcore.__version__}"' in (ROOT / "setup.py").read_text()
    assert f"## {gdcore.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_lock_names_the_pair_that_torch_ships_with():
    lock = (ROOT / "constraints.txt").read_text().split()
    assert "torch==2.13.0" in lock
    assert "triton==3.7.1" in lock
