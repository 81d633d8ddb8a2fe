"""What is judged of a whole run: that each kernel was launched, in each way that launchers know."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.cuda_library import ROOT
from tests.launch_paths import SHAPES, WITHOUT_CLUSTERS, LaunchShape, missing_paths
from tests.ptx import CompiledLibrary, Device, compile_cuda, require_nvcc

_ONE = (1, 1, 1)
_PLAIN = LaunchShape("plain", "compute_90", (256, 1, 1), _ONE)


def complete() -> set[LaunchShape]:
    """Launches of made-up kernels, one for each pattern, that leave nothing out."""
    launched = {
        LaunchShape(pattern.replace(".*", "1"), "compute_90", block, cluster)
        for pattern, shapes in SHAPES.items()
        for block, cluster in shapes
    }
    older = {LaunchShape(name, "compute_80", (256, 1, 1), _ONE) for name in WITHOUT_CLUSTERS}
    return launched | older | {_PLAIN}


KERNELS = {shape.kernel for shape in complete()}


def test_nothing_is_missing() -> None:
    assert missing_paths(KERNELS, complete()) == []


def test_kernel_that_is_not_launched() -> None:
    assert missing_paths(KERNELS | {"new"}, complete()) == ["kernel that no test has launched: new"]


@pytest.mark.parametrize(
    "left_out", sorted(complete() - {_PLAIN}), ids=lambda shape: str(shape[2:])
)
def test_way_that_is_not_taken(left_out: LaunchShape) -> None:
    problems = missing_paths(KERNELS, complete() - {left_out})
    assert any("never launched" in each or "no test" in each for each in problems) or (
        problems == [f"{left_out.kernel}: not launched for compute_80"]
    )


def test_way_that_is_not_stated() -> None:
    problems = missing_paths(KERNELS, complete() | {_PLAIN._replace(block=(128, 1, 1))})
    assert len(problems) == 2
    assert all("plain: not stated, but launched in blocks of" in each for each in problems)


@pytest.fixture(scope="module")
def grid() -> CompiledLibrary:
    require_nvcc()
    sample = ROOT / "tests" / "ptx" / "samples" / "grid.cu"
    return compile_cuda([sample], include=[ROOT / "csrc"])


@pytest.mark.parametrize(("x", "y"), [(1, 1), (7, 1), (4, 5)])
def test_blocks_of_two_dimensions(grid: CompiledLibrary, x: int, y: int) -> None:
    """Which no launch of the tests has: the first dimension takes 16777216 blocks."""
    device = Device(grid)
    numbers = np.full(x * y, -1, np.int64)
    assert device.call("run_write_numbers", device.register(numbers), x, y) == 0
    assert numbers.tolist() == list(range(x * y))


@pytest.mark.parametrize("blocks", [1, 2**24 - 1, 2**24, 2**24 + 1, 2**33, 2**39 + 3])
def test_grids_are_large_enough(grid: CompiledLibrary, blocks: int) -> None:
    shape = (ctypes.c_uint * 3)()
    ctypes.CDLL(str(grid.shared_object)).shape_of_grid(ctypes.c_int64(blocks), shape)
    x, y, z = shape
    assert x * y >= blocks > x * (y - 1)
    # The most that a grid may have.
    assert x < 2**31
    assert y < 2**16
    assert z == 1
