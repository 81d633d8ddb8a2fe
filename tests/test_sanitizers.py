"""The extension's CPU side under AddressSanitizer and UndefinedBehaviorSanitizer.

A second build, in build/sanitize, runs the tests of values again in a process of its own. torch's
CPU tensors are exact allocations, so one element too far is seen, with its line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "sanitize"
SHARDED = "tests/test_vocab_parallel_cross_entropy.py"


def _library(name: str) -> str:
    return subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        # The runtime must come before Python's own allocations, and with it the C++ library, whose
        # exceptions it wraps. Python frees little at exit, so leaks are not looked for.
        "LD_PRELOAD": f"{_library('libasan.so')}:{_library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }


@pytest.fixture(scope="module")
def sanitized() -> Path:
    """A folder with the package, its sanitized extension, and the tests."""
    if shutil.which("g++") is None or not os.path.isabs(_library("libasan.so")):
        pytest.skip("needs g++ with libasan")
    for name in ("regops", "tests"):
        shutil.copytree(
            ROOT / name,
            FOLDER / name,
            ignore=shutil.ignore_patterns("*.so", "__pycache__"),
            dirs_exist_ok=True,
        )
    shutil.copy(ROOT / "pyproject.toml", FOLDER)
    subprocess.check_call(
        [
            *(sys.executable, "setup.py", "-q", "build_ext"),
            *("--build-lib", str(FOLDER), "--build-temp", str(FOLDER / "temp")),
        ],
        cwd=ROOT,
        env={**os.environ, "REGOPS_SANITIZE": "address,undefined", "REGOPS_CUDA": "0"},
    )
    return FOLDER


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_sanitizer_sees_a_read_past_the_end(sanitized: Path) -> None:
    code = "import torch, regops._C as C; C.read_past_end(torch.ones(5))"
    result = _run(sanitized, "-c", code)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert "module.cpp" in result.stderr


def _check(folder: Path, *arguments: str) -> None:
    result = _run(folder, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments)
    print(result.stdout[-2000:], result.stderr[-5000:])
    assert result.returncode == 0
    assert " passed" in result.stdout


def test_values_without_a_bad_access(sanitized: Path) -> None:
    """Everything but what compiles (slow there) or needs gigabytes."""
    _check(
        sanitized,
        *("tests/test_ops.py", "tests/test_dropout.py", "tests/test_dropout_shard.py"),
        *("tests/test_random.py", "tests/test_one_mask.py", "tests/test_statistics.py"),
        *("tests/test_cross_entropy.py", "tests/test_linear_cross_entropy.py"),
        SHARDED,
        *("-k", "not compile and not 2_to_the_31 and not 32_bits and not interpreted"),
        *("--deselect", f"{SHARDED}::test_distributed_logits_are_as_those_of_one_process"),
        *("--deselect", f"{SHARDED}::test_process_with_another_number_of_rows_ends_all"),
    )


def test_optimizer_steps_without_a_bad_access(sanitized: Path) -> None:
    """All layouts, types, options and thread counts."""
    _check(
        sanitized,
        *("tests/test_optimizer_steps.py", "tests/test_optimizer_step_math.py"),
        *("-m", "not slow", "-k", "not compile and not opcheck and not every_combination"),
    )
