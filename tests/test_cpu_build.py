"""What the CPU objects must keep: no wide instruction outside its own namespace, no bad access."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from regops import _C

ROOT = Path(__file__).parents[1]
KERNELS = [
    path for path in sorted(ROOT.glob("csrc/cpu/*.cpp")) if "foreach_isa.h" in path.read_text()
]


@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_no_wide_function_can_leak_to_other_files(source: Path, tmp_path: Path) -> None:
    """A weak symbol compiled for AVX-512 might be the copy that an older machine then calls."""
    target = tmp_path / "kernel.o"
    compiler = os.environ.get("CXX", "g++")
    subprocess.check_call(
        [
            compiler,
            "-O3",
            "-std=c++20",
            "-w",
            "-fPIC",
            "-I",
            "csrc",
            "-c",
            str(source),
            "-o",
            target,
        ],
        cwd=ROOT,
    )
    symbols = subprocess.check_output(["nm", "-C", str(target)], text=True).splitlines()
    assert any("baseline::" in line for line in symbols)
    assert not [line for line in symbols if re.search(r" [WVu] ", line)]


def test_work_is_spread_over_torchs_threads(threads: int) -> None:
    assert _C.parallel_threads() == threads


@pytest.mark.parametrize("name", _C.build_info()["cpu_capabilities"])
def test_environment_chooses_the_instruction_set(name: str) -> None:
    command = [sys.executable, "-c", "import regops; print(regops.info()['cpu_capability'])"]
    environment = {**os.environ, "REGOPS_CPU_CAPABILITY": name}
    output = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
    assert output.strip() == name


def test_unknown_instruction_set_is_an_error() -> None:
    command = [sys.executable, "-c", "import regops; regops.info()"]
    environment = {**os.environ, "REGOPS_CPU_CAPABILITY": "avx1024"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "baseline, avx2 or avx512, got avx1024" in result.stderr
    with pytest.raises(RuntimeError, match="got sse9"):
        _C.set_cpu_capability("sse9")
