"""The interpreter runs clusters of blocks, and names what is wrong with one."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.ptx import A100, H200, Device, compile_cuda, require_nvcc
from tests.test_ptx_interpreter import (
    KERNEL,
    SAMPLES,
    check_bug,
    check_legal,
    legal_kernels,
    seeded_bugs,
)

BUGS, LEGAL = SAMPLES / "cluster_bugs.cu", SAMPLES / "cluster_legal.cu"


@pytest.fixture(scope="module")
def library():
    require_nvcc()
    return compile_cuda([BUGS, LEGAL])


@pytest.mark.parametrize(("kernel", "line", "message"), list(seeded_bugs(BUGS)))
def test_seeded_bug_is_named_with_its_line(library, kernel, line, message):
    check_bug(Device(library), BUGS, kernel, line, message)


@pytest.mark.parametrize("order", ["forward", "reverse", 1])
@pytest.mark.parametrize(("kernel", "value"), list(legal_kernels(LEGAL)))
def test_legal_kernel_is_silent_and_right(library, kernel, value, order):
    check_legal(Device(library, order), LEGAL, kernel, value)


def test_every_sample_kernel_is_tested():
    for path, tested in ((BUGS, seeded_bugs(BUGS)), (LEGAL, legal_kernels(LEGAL))):
        assert set(KERNEL.findall(path.read_text())) == {param.id for param in tested}


@pytest.fixture(scope="module")
def launches():
    require_nvcc()
    return compile_cuda([SAMPLES / "cluster_launches.cu"])


def floats(device, count):
    array = np.zeros(count, np.float32)
    return array, device.register(array)


def three(*values):
    return (ctypes.c_uint * 3)(*values)


@pytest.mark.parametrize("order", ["forward", "reverse", 1])
def test_places_in_three_dimensions(launches, order):
    grid, cluster = np.array([6, 4, 2]), np.array([3, 2, 1])
    device = Device(launches, order)
    out, pointer = floats(device, grid.prod())
    assert device.call("run_places", pointer, three(*grid), three(*cluster)) == 0
    for x, y, z in np.ndindex(*grid):
        inner, outer = np.array([x, y, z]) % cluster, np.array([x, y, z]) // cluster
        counts = grid // cluster
        rank = inner[0] + cluster[0] * (inner[1] + cluster[1] * inner[2])
        number = outer[0] + counts[0] * (outer[1] + counts[1] * outer[2])
        digits = rank + inner @ [10, 100, 1000] + 10000 * number + 100000 * 6
        assert out[x + grid[0] * (y + grid[1] * z)] == digits


def test_a_block_alone_is_a_cluster(launches):
    device = Device(launches)
    out, pointer = floats(device, 3)
    assert device.call("run_places_plainly", pointer, 3) == 0
    assert out.tolist() == [100000, 110000, 120000]


INVALID_VALUE, NO_KERNEL_IMAGE, NOT_SUPPORTED, INVALID_CLUSTER_SIZE = 1, 209, 801, 912


@pytest.mark.parametrize(
    ("grid", "cluster"),
    [
        ((6, 1, 1), (4, 1, 1)),
        ((4, 3, 1), (2, 2, 1)),
        ((9, 1, 1), (9, 1, 1)),
        ((4, 1, 1), (0, 1, 1)),
    ],
)
def test_wrong_cluster_is_a_launch_error(launches, grid, cluster):
    device = Device(launches)
    _, pointer = floats(device, 64)
    assert device.call("run_places", pointer, three(*grid), three(*cluster)) == INVALID_CLUSTER_SIZE
    assert not device.launched


def test_kernel_with_a_cluster_of_its_own(launches):
    device = Device(launches)
    out, pointer = floats(device, 4)
    assert device.call("run_fixed", pointer, 4) == 0
    assert out.tolist() == [1, 2, 1, 2]
    assert device.call("run_fixed", pointer, 3) == INVALID_CLUSTER_SIZE
    assert device.call("run_fixed_as", pointer, 4, 4) == INVALID_CLUSTER_SIZE


def test_large_shared_memory_and_large_clusters_need_their_attributes(launches):
    device = Device(launches)
    out, pointer = floats(device, 16)
    # Of 227 KB, 1 KB is static.
    largest = 226 * 1024 // 4
    assert device.call("run_large_shared", pointer, 2, 2, 47 * 256, 0, 0) == 0
    assert device.call("run_large_shared", pointer, 2, 2, 47 * 256 + 1, 0, 0) == INVALID_VALUE
    assert device.call("run_large_shared", pointer, 2, 2, largest + 1, 1, 0) == INVALID_VALUE
    assert device.call("run_large_shared", pointer, 8, 8, largest, 1, 0) == 0
    assert out[:8].tolist() == [1 + 28] * 8
    assert device.call("run_large_shared", pointer, 16, 16, 64, 0, 0) == INVALID_CLUSTER_SIZE
    assert device.call("run_large_shared", pointer, 16, 16, 64, 0, 1) == 0
    assert out.tolist() == [1 + 120] * 16


def run_if_any(architecture, properties, launcher):
    source = SAMPLES / "cluster_if_any.cu"
    device = Device(compile_cuda([source], architecture=architecture), properties=properties)
    (out, pointer), values = floats(device, 4), np.arange(1, 5, dtype=np.float32)
    return device.call(launcher, pointer, device.register(values)), out.tolist()


def test_device_without_clusters():
    require_nvcc()
    assert run_if_any("compute_90", H200, "run_if_any") == (0, [10] * 4)
    assert run_if_any("compute_80", A100, "run_if_any") == (0, [1, 2, 3, 4])
    assert run_if_any("compute_80", A100, "run_anyway")[0] == NOT_SUPPORTED
    assert run_if_any("compute_90", A100, "run_if_any")[0] == NO_KERNEL_IMAGE


def test_queries(launches):
    device = Device(launches)
    numbers = [ctypes.c_int(-1) for _ in range(4)]
    assert device.call("query_clusters", *map(ctypes.byref, numbers)) == 0
    active, largest, shared, threads = (number.value for number in numbers)
    assert (active, largest, shared, threads) == (2 * 132 // 4, 8, 1024, 1024)


# Major, minor, multiprocessors, opt-in shared memory of a block, clusters.
@pytest.mark.parametrize(
    ("properties", "expected"),
    [(H200, [9, 0, 132, 227 * 1024, 1]), (A100, [8, 0, 108, 163 * 1024, 0])],
)
def test_device_attributes(launches, properties, expected):
    device = Device(launches, properties=properties)
    which, values = (ctypes.c_int * 5)(75, 76, 16, 97, 120), (ctypes.c_int * 5)()
    assert device.call("query_attributes", which, values, 5) == 0
    assert list(values) == expected
