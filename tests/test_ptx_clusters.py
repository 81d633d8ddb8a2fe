"""The interpreter runs clusters of blocks, and names what is wrong with one."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.ptx import Device, compile_cuda, require_nvcc
from tests.test_ptx_interpreter import SAMPLES, run

LEGAL = SAMPLES / "cluster_legal.cu"


def legal_kernels():
    """(kernel, expected values) of every kernel of cluster_legal.cu."""
    for value, kernel in re.findall(r"// VALUE: (.*)\n__global__ void (\w+)\(", LEGAL.read_text()):
        yield pytest.param(kernel, value, id=kernel)


@pytest.fixture(scope="module")
def library():
    require_nvcc()
    return compile_cuda([LEGAL])


@pytest.mark.parametrize("order", ["forward", "reverse", 1])
@pytest.mark.parametrize(("kernel", "value"), list(legal_kernels()))
def test_legal_kernel_is_silent_and_right(library, kernel, value, order):
    out = run(Device(library, order), "run_legal", kernel)
    case = re.search(rf"CASE\({kernel}, (\d+), \d+, (\d+), \d+\)", LEGAL.read_text())
    t = np.arange(256)
    expected = np.broadcast_to(eval(value, {"t": t, "where": np.where}), 256)
    np.testing.assert_array_equal(out, np.where(t < int(case[1]) * int(case[2]), expected, 0))
