"""Fixtures that every test file shares, and what is judged of a whole run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from regops import _C
from tests.cuda_library import LAUNCHED, has_nvcc, library
from tests.launch_paths import LaunchShape, missing_paths

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
CAPABILITIES = tuple(_C.build_info()["cpu_capabilities"])
# What torch tests its own ops with needs this package, which torch does not ask for.
HAS_EXPECTTEST = importlib.util.find_spec("expecttest") is not None
collect_ignore = [] if HAS_EXPECTTEST else ["test_opinfo.py", "test_optim_torch.py"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device there is."""
    name: str = request.param
    return name


@pytest.fixture(params=CAPABILITIES)
def cpu_capability(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this processor runs, in use for the test."""
    before = _C.build_info()["cpu_capability"]
    _C.set_cpu_capability(request.param)
    yield request.param
    _C.set_cpu_capability(before)


@pytest.fixture(params=(1, 2, 3))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Several thread counts, in use for the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums then have one order, and small products do not wait for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Minutes each. First, so that one process does not end long after the others.
_LONG = (
    "sanitizers",
    "packaging",
    "barrier_mutations",
    "dropconnect_interpreted",
    "cuda_build",
    "sass",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first, and marks the tests that need a GPU."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("device") == "cuda":
            item.add_marker("gpu")
        if item.get_closest_marker("gpu") and "cuda" not in DEVICES:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    names = [f"test_{name}.py" for name in _LONG]
    place = {name: index for index, name in enumerate(names)}
    items.sort(key=lambda item: place.get(item.path.name, len(names)))


# ---- a kernel that is not launched, or not in every way, fails the run ---------------------------

_COLLECTED: set[str] = set()
_MISSING_PATHS: list[str] = []


def pytest_collection_finish(session: pytest.Session) -> None:
    """Notes which files there are tests of."""
    _COLLECTED.update(item.path.name for item in session.items)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes over what a process of pytest-xdist's has run."""
    launched, collected = getattr(node, "workeroutput", {}).get("kernels", ((), ()))
    LAUNCHED.update(LaunchShape(*shape) for shape in launched)
    _COLLECTED.update(collected)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Judges, if all files that launch kernels took part."""
    if hasattr(session.config, "workeroutput"):
        launched = [tuple(shape) for shape in sorted(LAUNCHED)]  # what processes can send
        session.config.workeroutput["kernels"] = (launched, sorted(_COLLECTED))
        return
    folder = session.config.rootpath / "tests"
    launching = {path.name for path in folder.glob("test_*_interpreted.py")}
    launching |= {"test_philox.py", "test_random.py"}
    if has_nvcc() and launching <= _COLLECTED and not session.shouldstop:
        _MISSING_PATHS[:] = missing_paths(library().kernels, LAUNCHED)
        if _MISSING_PATHS:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what no test covers, and what this machine could not test."""
    for problem in _MISSING_PATHS:
        terminalreporter.write_line(problem, red=True)
    for report in terminalreporter.getreports("passed"):
        registers = [int(text.split()[0]) for _, text in report.user_properties if "regi" in text]
        if registers:
            name = report.nodeid.split("[")[-1].rstrip("]")
            most = f"{len(registers)} kernels, {min(registers)} to {max(registers)} registers"
            terminalreporter.write_line(f"{name}: {most}, no spill")
    if "cuda" not in DEVICES:
        terminalreporter.write_line("CUDA kernels: compiled and interpreted, not run on a GPU")
    if not HAS_EXPECTTEST:
        terminalreporter.write_line("torch's own cases: not run, the package expecttest is missing")
    for name in ("avx2", "avx512"):
        if name not in CAPABILITIES:
            terminalreporter.write_line(f"{name} kernels: not run, this processor lacks the set")
