"""Standard normal numbers by the CUDA kernel, interpreted, against the oracle."""

from __future__ import annotations

import ctypes

import pytest
import torch

import regops.random
from regops.reference.normal import normals
from tests.cuda_library import call, interpreted
from tests.dropconnect_linear_call import KEY, CudaKey
from tests.optimizer_step_call import Memory


@pytest.mark.parametrize("on_device", [False, True], ids=["host-key", "device-key"])
@pytest.mark.parametrize("count", [0, 1, 4, 7, 1025])
def test_normal_numbers(count: int, on_device: bool) -> None:
    device = interpreted()
    memory = Memory(device)
    key = CudaKey(*KEY, None)
    if on_device:
        key = CudaKey(1, 1, memory.address(regops.random.key(*KEY)))
    numbers = torch.full((count + 4,), torch.nan)
    output = ctypes.c_void_p(memory.address(numbers))
    call(device, "regops_normal_cuda", ctypes.byref(key), output, ctypes.c_int64(count), None)
    expected = normals(regops.random.key(*KEY), count)
    # Of a radius of up to 6.8, as docs/randomness.md says.
    assert torch.all((numbers[:count].double() - expected).abs() <= 6.8 * 2e-7)
    assert numbers[count:].isnan().all()
