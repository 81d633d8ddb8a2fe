"""One key, one mask: over instruction sets, threads, dtypes, strides, compilers and devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import regops.functional as RF
import regops.random
from regops import _C
from regops.reference.dropout import keep_mask
from regops.testing import Layout, make_input
from tests.conftest import CAPABILITIES, DEVICES
from tests.test_cuda_interpreted import run_interpreted

SHAPE, P, KEY = (4, 24, 10, 130), 0.3, (12345, 678)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = tuple(name for name in get_args(Layout) if name != "expanded")


@pytest.fixture(scope="module")
def mask() -> Tensor:
    return keep_mask(regops.random.key(*KEY), torch.Size(SHAPE), P)


@pytest.fixture
def restored() -> Iterator[None]:
    """Puts instruction set and thread count back."""
    capability, threads = _C.build_info()["cpu_capability"], torch.get_num_threads()
    yield
    _C.set_cpu_capability(capability)
    torch.set_num_threads(threads)


def _ones(dtype: torch.dtype, layout: Layout, device: str) -> Tensor:
    """Ones in a memory layout; the test of a mask is which of them are left."""
    return make_input(SHAPE, dtype, device, layout).fill_(1)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_eager(dtype: torch.dtype, layout: Layout, device: str, mask: Tensor) -> None:
    input = _ones(dtype, layout, device)
    for capability, threads in itertools.product(CAPABILITIES, (1, 2, 5)):
        _C.set_cpu_capability(capability)
        torch.set_num_threads(threads)
        output = RF.dropout(input, P, key=regops.random.key(*KEY))
        assert torch.equal(output.cpu() != 0, mask), (capability, threads)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_and_checkpointed(
    dtype: torch.dtype, layout: Layout, device: str, mask: Tensor
) -> None:
    """In forward, and in the gradient that recomputation gives."""
    torch._dynamo.reset()
    key = regops.random.key(*KEY)

    def eager(x: Tensor) -> Tensor:
        return RF.dropout(x, P, key=key)

    def checkpointed(x: Tensor) -> Tensor:
        return checkpoint(eager, x, use_reentrant=False, preserve_rng_state=False)

    compiled = torch.compile(eager, fullgraph=True)
    for capability, call in itertools.product(CAPABILITIES, (checkpointed, compiled)):
        _C.set_cpu_capability(capability)
        input = _ones(dtype, layout, device).requires_grad_()
        output = call(input)
        (gradient,) = torch.autograd.grad(output, input, torch.ones_like(output))
        assert torch.equal(output.cpu() != 0, mask), capability
        assert torch.equal(gradient.cpu() != 0, mask), capability


@pytest.mark.parametrize("layout", ["contiguous", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_interpreted_cuda(dtype: torch.dtype, layout: Layout, mask: Tensor) -> None:
    """Other layouts: tests/test_cuda_interpreted.py."""
    output = run_interpreted(_ones(dtype, layout, "cpu"), P, key=KEY)
    assert torch.equal(output != 0, mask)
