"""Fixtures that every test file shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from regops import _C

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
CAPABILITIES = tuple(_C.build_info()["cpu_capabilities"])


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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves what judges the whole run to its end."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what this machine could not test."""
    for report in terminalreporter.getreports("passed"):
        registers = [int(text.split()[0]) for _, text in report.user_properties if "regi" in text]
        if registers:
            name = report.nodeid.split("[")[-1].rstrip("]")
            most = f"{len(registers)} kernels, {min(registers)} to {max(registers)} registers"
            terminalreporter.write_line(f"{name}: {most}, no spill")
    if "cuda" not in DEVICES:
        terminalreporter.write_line("CUDA kernels: compiled and interpreted, not run on a GPU")
    for name in ("avx2", "avx512"):
        if name not in CAPABILITIES:
            terminalreporter.write_line(f"{name} kernels: not run, this processor lacks the set")
