"""A slice of a larger tensor takes its part of that tensor's one mask: regops::dropout_shard."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import regops.random
import regops.reference
from regops.testing import Layout, lay_out, make_input

KEY = regops.random.key(5)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
shard = torch.ops.regops.dropout_shard.default

# Shape of the whole, and where the part begins and ends in each dimension.
SLICES = {
    "range": ((1000,), ((13, 900),)),
    "rows": ((40, 50), ((7, 33), (0, 50))),
    "columns": ((40, 50), ((0, 40), (11, 37))),
    "aligned-columns": ((40, 64), ((0, 40), (16, 48))),
    "box": ((6, 20, 24), ((1, 5), (3, 19), (8, 21))),
    "middle": ((6, 20, 24), ((0, 6), (5, 10), (0, 24))),
    "one-column": ((40, 50), ((0, 40), (49, 50))),
    "one-element": ((4, 5, 6), ((3, 4), (2, 3), (5, 6))),
    "five-ways": ((3, 4, 5, 6, 7), ((1, 3), (1, 3), (1, 4), (2, 6), (3, 7))),
    "empty": ((6, 20), ((2, 2), (0, 20))),
    "scalar": ((), ()),
}


def cut(name: str, whole: Tensor) -> tuple[Tensor, int, list[int]]:
    """The part, the index of its first element, and the strides of the whole's indices."""
    _, ranges = SLICES[name]
    strides = torch.empty(whole.shape, device="meta").stride()
    first = sum(begin * stride for (begin, _), stride in zip(ranges, strides, strict=True))
    return whole[tuple(slice(*each) for each in ranges)], first, list(strides)


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("p", [0.3, 3e-6, 0.0, 1.0])
def test_a_slice_has_its_part_of_the_mask(name: str, dtype: torch.dtype, p: float) -> None:
    whole = make_input(SLICES[name][0], dtype)
    expected, _, _ = cut(name, regops.reference.dropout(whole, p, key=KEY))
    part, first, strides = cut(name, whole)
    for input in (part, part.contiguous(), part.mT.contiguous().mT if part.dim() > 1 else part):
        output = shard(input, p, KEY, first, strides)
        assert torch.equal(output, expected)
        assert output.stride() == torch.empty_like(input).stride()


@pytest.mark.parametrize("layout", ["channels_last", "swapped_outer", "reversed"])
def test_a_slice_in_another_memory_order(layout: Layout) -> None:
    whole = make_input((4, 16, 6, 8), torch.float32)
    expected = regops.reference.dropout(whole, 0.3, key=KEY)[:, 4:13, 2:]
    part = lay_out(whole[:, 4:13, 2:].contiguous(), layout)
    output = shard(part, 0.3, KEY, 4 * 48 + 2 * 8, whole.stride())
    assert torch.equal(output, expected)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_large_slices_on_any_number_of_threads(dim: int) -> None:
    whole = make_input((16, 128, 512), torch.float32)
    expected = regops.reference.dropout(whole, 0.3, key=KEY)
    parts = []
    first = 0
    for part in whole.split(whole.shape[dim] // 3, dim):  # the last is shorter
        parts.append(shard(part.contiguous(), 0.3, KEY, first, whole.stride()))
        first += part.shape[dim] * whole.stride(dim)
    assert torch.equal(torch.cat(parts, dim), expected)


def test_indices_beyond_32_bits() -> None:
    part = torch.ones(3, 777)
    first, stride = (1 << 33) - 5, 1 << 32
    output = shard(part, 0.5, KEY, first, [stride, 1])
    for row, expected in enumerate(output):
        begin = first + row * stride
        bits = regops.reference.philox.random_bits(KEY, 777, 16, begin)
        assert torch.equal(expected != 0, bits >= 1 << 15)


def test_gradients_have_the_mask_of_the_slice() -> None:
    part, first, strides = cut("box", make_input(SLICES["box"][0], torch.float64))
    part = part.clone().requires_grad_()
    output = shard(part, 0.3, KEY, first, strides)
    upstream = torch.randn_like(output).requires_grad_()
    (gradient,) = torch.autograd.grad(output, part, upstream, create_graph=True)
    assert torch.equal(gradient, shard(upstream, 0.3, KEY, first, strides))
    (second,) = torch.autograd.grad(gradient.sum(), upstream)
    assert torch.equal(second, shard(torch.ones_like(part), 0.3, KEY, first, strides))


def test_compiled_for_every_slice_at_once() -> None:
    torch._dynamo.reset()
    whole = make_input((12, 20), torch.float32)
    expected = regops.reference.dropout(whole, 0.3, key=KEY)

    @torch.compile(fullgraph=True, dynamic=True)
    def call(part: Tensor, first: int, strides: tuple[int, int]) -> Tensor:
        output: Tensor = shard(part, 0.3, KEY, first, strides) * 2
        return output

    for begin, end in ((2, 7), (3, 12), (0, 4)):
        part = whole[:, begin:end].contiguous().requires_grad_()
        output = call(part, begin, (20, 1))
        assert torch.equal(output, 2 * expected[:, begin:end])
        (gradient,) = torch.autograd.grad(output.sum(), part)
        assert torch.equal(gradient != 0, expected[:, begin:end] != 0)


def test_opcheck() -> None:
    part, first, strides = cut("box", make_input(SLICES["box"][0], torch.float32))
    for input in (part, part.clone().requires_grad_()):
        torch.library.opcheck(shard, (input, 0.3, KEY, first, strides))


def test_wrong_arguments() -> None:
    x = torch.ones(3, 4)
    with pytest.raises(ValueError, match="expected a stride for each of 2 dimensions, got"):
        shard(x, 0.5, KEY, 0, [1])
    with pytest.raises(ValueError, match=r"expected p in \[0, 1\], got 1.5"):
        shard(x, 1.5, KEY, 0, [4, 1])
    with pytest.raises(TypeError, match=r"expected key of dtype torch.int64"):
        shard(x, 0.5, KEY.float(), 0, [4, 1])
    part = torch.ones(2, 2, 2, 2, 2, 2, 2)
    with pytest.raises(NotImplementedError, match="along at most 4 dimensions"):
        shard(part, 0.5, KEY, 0, [3**k for k in range(7)][::-1])
