"""tools/gpu_check.sh, with programs in place of python3 and compute-sanitizer that only say so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "gpu_check.sh"
SYSTEM = ("basename", "dirname", "mkdir", "nproc", "sh", "sleep", "tail", "timeout")
STEPS = ["build", "device", "tests", "memcheck", "racecheck"]
# Writes down its arguments, and fails where they contain what $FAIL_ON says.
STAND_IN = """#!/bin/sh
echo "$(basename "$0") $* CACHING=$PYTORCH_NO_CUDA_MEMORY_CACHING CUDA=$REGOPS_CUDA" >> "$CALLS"
case "$*" in *"${FAIL_ON:-nothing fails}"*) echo "it is broken"; exit 3;; esac
case "$*" in *get_device_capability*) echo 90;; *"$SLOW"*) sleep "${SLEEP:-0}";; esac
"""


@dataclass
class Outcome:
    """What the script did."""

    status: int
    output: str
    rows: dict[str, str]
    calls: list[str]


@pytest.fixture
def check(tmp_path: Path):
    """Runs the script with stand-ins for these programs, and of the others only what it needs."""

    def run(*steps: str, programs: tuple[str, ...] = ("python3", "compute-sanitizer"), **settings):
        commands = tmp_path / "bin"
        commands.mkdir()
        for name in programs:
            (commands / name).write_text(STAND_IN)
            (commands / name).chmod(0o755)
        for name in SYSTEM:
            (commands / name).symlink_to(shutil.which(name))
        calls = tmp_path / "calls"
        calls.touch()
        environment = {"PATH": commands, "OUT": tmp_path / "out", "CALLS": calls}
        environment |= {"SLOW": "never slow"} | settings
        command = [shutil.which("bash"), SCRIPT, *steps]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        table = done.stdout.partition("step       result")[2].splitlines()[1:-1]
        rows = {line[:10].strip(): line[11:].strip() for line in table}
        return Outcome(done.returncode, done.stdout, rows, calls.read_text().splitlines())

    return run


def called(outcome: Outcome, what: str) -> str:
    (call,) = (each for each in outcome.calls if what in each)
    return call


def test_all_passes(check, tmp_path: Path) -> None:
    outcome = check()
    assert outcome.status == 0
    assert list(outcome.rows) == STEPS
    for row in outcome.rows.values():
        result, seconds = row.split()
        assert result == "passed"
        assert seconds.isdigit()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{s}.txt" for s in STEPS}
    assert called(outcome, "build_ext").endswith("setup.py build_ext --inplace CACHING= CUDA=1")
    assert "-m gpu" in called(outcome, "-n 4 --dist loadfile")
    for tool in ("memcheck", "racecheck"):
        call = called(outcome, f"--tool {tool}")
        assert call.startswith("compute-sanitizer ")
        assert "python3 -m pytest -q -m gpu" in call
        assert "CACHING=1" in call


@pytest.mark.parametrize(
    ("step", "argument"),
    [("tests", "--dist"), ("memcheck", "memcheck"), ("racecheck", "racecheck")],
)
def test_failure_is_said_and_the_rest_is_run(check, step: str, argument: str) -> None:
    outcome = check(FAIL_ON=argument)
    assert outcome.status == 1
    assert outcome.rows[step].startswith("FAILED: exit status 3")
    assert "it is broken" in outcome.output
    assert sum("passed" in row for row in outcome.rows.values()) == len(STEPS) - 1


@pytest.mark.parametrize(
    ("step", "argument"), [("build", "build_ext"), ("device", "get_device_name")]
)
def test_nothing_runs_without_a_build_and_a_gpu(check, step: str, argument: str) -> None:
    outcome = check(FAIL_ON=argument)
    assert outcome.status == 1
    assert outcome.rows[step].startswith("FAILED")
    assert outcome.rows["all others"].startswith("not run")
    assert not any("pytest" in call for call in outcome.calls)


def test_sanitizer_may_be_missing(check) -> None:
    outcome = check(programs=("python3",))
    assert outcome.status == 0
    assert outcome.rows["memcheck"].startswith("not run: no compute-sanitizer")
    assert outcome.rows["racecheck"].startswith("not run: no compute-sanitizer")
    assert outcome.rows["tests"].startswith("passed")


def test_pytest_may_be_alone(check) -> None:
    """Without pytest-xdist, one process."""
    outcome = check("tests", FAIL_ON="import xdist")
    assert outcome.status == 0
    assert "--dist" not in called(outcome, "-m pytest")


def test_steps_are_chosen(check) -> None:
    outcome = check("tests")
    assert list(outcome.rows) == ["device", "tests"]
    assert not any("build_ext" in call for call in outcome.calls)


def test_unknown_step(check) -> None:
    outcome = check("tests", "benchmark")
    assert outcome.status == 2
    assert outcome.calls == []


def test_step_that_does_not_end(check) -> None:
    outcome = check("tests", SLOW="pytest", SLEEP="60", LIMIT="1")
    assert outcome.status == 1
    assert outcome.rows["tests"].startswith("FAILED: over 1 s")


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_short_lists_are_not_empty(check, tmp_path: Path, tool: str) -> None:
    """What is selected where there is a GPU, which collecting tests takes on trust."""
    call = called(check(tool), f"--tool {tool}")
    expression, _, files = call.partition(" -k ")[2].partition(" tests/")
    tests = [f"tests/{each}" for each in files.partition(" CACHING")[0].split(" tests/")]
    (tmp_path / "with_gpu.py").write_text("import torch\ntorch.cuda.is_available = lambda: True\n")
    options = ["-q", "--collect-only", "-m", "gpu", "-k", expression, "-p", "with_gpu"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *tests],
        cwd=SCRIPT.parents[1],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stdout.splitlines() if "::" in line]
    assert found, done.stdout + done.stderr
    assert all("cuda" in name and "baseline" in name for name in found)
    for what in ("cross_entropy-", "dropconnect_linear-", "adamw_step_-", "sgdw_step_-"):
        assert any(what in name for name in found), what
    assert len(found) < 800
