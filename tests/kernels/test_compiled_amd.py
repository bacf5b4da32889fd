"""Everything that ships compiles for an AMD MI300 too, without spills, with matrix instructions where it should."""

import json
import os
import subprocess
import sys

import pytest

from gdcore.kernels.compiled_amd import SHARED_BYTES, amd_variants

SHIPPED = {variant.name: variant for variant in amd_variants()}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Figures of every variant, compiled once, in processes that do not interpret."""
    path = tmp_path_factory.mktemp("compiled") / "amd.json"
    command = [sys.executable, "-m", "gdcore.kernels.compiled_amd", "--json", str(path)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", SHIPPED)
def test_compiles_without_spills(compiled, name):
    figures = compiled[name]
    assert isinstance(figures, dict), figures
    assert figures["spilled"] == 0
    assert figures["registers"] <= 512
    assert figures["shared_bytes"] <= SHARED_BYTES
    if SHIPPED[name].tensor_cores:
        assert figures["matrix_instructions"] > 0
