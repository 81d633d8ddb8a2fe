"""Building and installing, as users do it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from regops import _C
from tests.ptx import NvccNotFound, find_nvcc

ROOT = Path(__file__).parents[1]


def test_setup_without_torch_says_what_to_do() -> None:
    code = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path('setup.py')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "install torch first" in result.stderr
    assert "pip install --no-build-isolation ." in result.stderr


def test_demanding_cuda_without_nvcc_is_an_error() -> None:
    code = (
        "import pathlib, runpy, torch.utils.cpp_extension;"
        "pathlib.Path.exists = lambda path: False;"
        "runpy.run_path('setup.py')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "REGOPS_CUDA": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "REGOPS_CUDA=1, but no nvcc" in result.stderr


def test_build_has_cuda_where_nvcc_is() -> None:
    """The full extension links on a machine with no GPU and a CPU-only torch."""
    try:
        find_nvcc()
    except NvccNotFound as missing:
        pytest.skip(str(missing))
    if os.environ.get("REGOPS_CUDA") == "0":
        pytest.skip("REGOPS_CUDA=0")
    wanted = os.environ.get("REGOPS_CUDA_ARCHITECTURES", "80;90;100")
    assert _C.build_info()["cuda"] is not None
    assert _C.build_info()["cuda_architectures"] == wanted


def test_wheel_installs_and_imports_elsewhere(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), "."]
    subprocess.check_call([*pip, *build], cwd=ROOT)
    (wheel,) = tmp_path.glob("regops-*.whl")
    target = tmp_path / "site"
    subprocess.check_call([*pip, "install", "--no-deps", "--target", str(target), str(wheel)])
    code = "import regops, torch; print(regops.__file__, regops.functional.dropout(torch.ones(3)))"
    output = subprocess.check_output(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        text=True,
    )
    assert output.startswith(str(target))
    assert (target / "regops" / "py.typed").exists()
