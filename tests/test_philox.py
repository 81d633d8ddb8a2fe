"""Philox4x32-10 against the known answers of its authors, in every implementation of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch

from regops import _C
from regops.reference import philox
from tests.cuda_library import call, interpreted

# Random123's kat_vectors, philox4x32 with 10 rounds: counter (4 words), key (2 words), result.
KNOWN_ANSWERS = (
    ("0" * 8, "0" * 8, "0" * 8, "0" * 8, "0" * 8, "0" * 8, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("f" * 8, "f" * 8, "f" * 8, "f" * 8, "f" * 8, "f" * 8, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88",
        "85a308d3",
        "13198a2e",
        "03707344",
        "a4093822",
        "299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
)
Block = tuple[int, int, int]  # key, lower counter, upper counter, of 64 bits each


def _known() -> tuple[list[Block], list[list[int]]]:
    blocks, answers = [], []
    for c0, c1, c2, c3, k0, k1, result in KNOWN_ANSWERS:
        blocks.append((int(k1 + k0, 16), int(c1 + c0, 16), int(c3 + c2, 16)))
        answers.append([int(word, 16) for word in result.split()])
    return blocks, answers


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _by_numpy(blocks: list[Block]) -> list[list[int]]:
    return [
        philox.philox4x32_numpy(key, np.array(low, np.uint64), high).tolist()
        for key, low, high in blocks
    ]


def _by_torch(blocks: list[Block]) -> list[list[int]]:
    columns = [torch.tensor([_signed(b[i]) for b in blocks]) for i in range(3)]
    return philox.philox4x32(*columns).tolist()


def _by_extension(blocks: list[Block]) -> list[list[int]]:
    return [list(_C.philox_block(*block)) for block in blocks]


def _by_interpreted_cuda(blocks: list[Block]) -> list[list[int]]:
    keys = np.array([b[0] for b in blocks], np.uint64)
    counters = np.array([b[1:] for b in blocks], np.uint64)
    words = np.zeros((len(blocks), 4), np.uint32)
    device = interpreted()
    pointers = [
        device.register(keys, writable=False),
        device.register(counters, writable=False),
        device.register(words),
    ]
    call(device, "regops_philox_cuda", *pointers, ctypes.c_int64(len(blocks)), None)
    return words.tolist()


def _by_cuda(blocks: list[Block]) -> list[list[int]]:
    keys = torch.tensor([_signed(b[0]) for b in blocks], device="cuda")
    counters = torch.tensor([[_signed(value) for value in b[1:]] for b in blocks], device="cuda")
    words = torch.zeros(len(blocks), 4, dtype=torch.int32, device="cuda")
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (keys, counters, words)]
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    launcher = ctypes.CDLL(_C.__file__).regops_philox_cuda
    assert launcher(*pointers, ctypes.c_int64(len(blocks)), stream) == 0
    return (words.long() & 0xFFFFFFFF).tolist()


@pytest.mark.gpu
def test_known_answers_on_the_gpu() -> None:
    blocks, answers = _known()
    assert _by_cuda(blocks) == answers


@pytest.mark.parametrize("implementation", [_by_numpy, _by_torch, _by_interpreted_cuda])
def test_known_answers(implementation: Callable[[list[Block]], list[list[int]]]) -> None:
    blocks, answers = _known()
    assert implementation(blocks) == answers


@pytest.mark.usefixtures("cpu_capability")
def test_known_answers_on_every_instruction_set() -> None:
    blocks, answers = _known()
    assert _by_extension(blocks) == answers


@pytest.mark.usefixtures("cpu_capability")
def test_implementations_agree_on_random_counters() -> None:
    random = np.random.default_rng(1)
    blocks = [tuple(int(v) for v in random.integers(0, 1 << 64, 3, np.uint64)) for _ in range(200)]
    expected = _by_numpy(blocks)
    assert _by_torch(blocks) == expected
    assert _by_extension(blocks) == expected


def test_interpreted_cuda_agrees_on_random_counters() -> None:
    random = np.random.default_rng(2)
    blocks = [tuple(int(v) for v in random.integers(0, 1 << 64, 3, np.uint64)) for _ in range(200)]
    assert _by_interpreted_cuda(blocks) == _by_numpy(blocks)


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize(
    "first", [0, 5, (1 << 32) - 70, (1 << 32) - 64, (1 << 32) - 1, 1 << 32, 1 << 40]
)
def test_blocks_of_a_stream_where_counters_carry(first: int) -> None:
    seed, offset = 0x0123456789ABCDEF, 77
    words = _C.variate_blocks(seed, offset, first)
    counters = np.arange(first, first + len(words) // 4, dtype=np.uint64)
    expected = philox.philox4x32_numpy(seed ^ philox.DOMAIN_VARIATES, counters, offset)
    assert words == expected.flatten().tolist()
