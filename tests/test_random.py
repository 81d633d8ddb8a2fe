"""Keys: where they come from, and what is made of them."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

import regops.random
from regops.reference import philox
from tests.cuda_library import call, interpreted

WIDE = (0, 1, -1, 1 << 62, -(1 << 63), 0x0123456789ABCDEF)


def test_key_holds_seed_and_offset() -> None:
    assert regops.random.key(5, 7).tolist() == [5, 7]
    assert regops.random.key((1 << 64) - 1, 1 << 63).tolist() == [-1, -(1 << 63)]
    assert regops.random.key(5).dtype == torch.int64


def test_new_keys_follow_manual_seed(device: str) -> None:
    torch.manual_seed(1)
    first, second = regops.random.new_key(device), regops.random.new_key(device)
    torch.manual_seed(1)
    assert torch.equal(regops.random.new_key(device), first)
    assert not torch.equal(first, second)
    assert first.device.type == device


def test_new_keys_follow_a_generator(device: str) -> None:
    keys = [regops.random.new_key(device, torch.Generator(device).manual_seed(3)) for _ in range(2)]
    assert torch.equal(*keys)


def test_restoring_the_state_repeats_the_key() -> None:
    state = torch.get_rng_state()
    first = regops.random.new_key()
    torch.set_rng_state(state)
    assert torch.equal(regops.random.new_key(), first)


def test_new_keys_do_not_repeat() -> None:
    keys = {tuple(regops.random.new_key().tolist()) for _ in range(10000)}
    assert len(keys) == 10000


@pytest.mark.gpu
def test_generator_of_another_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match="generator on cuda:0, got one on cpu"):
        regops.random.new_key("cuda", torch.Generator())


@pytest.mark.parametrize("data", WIDE)
def test_fold_in_is_the_references(data: int, device: str) -> None:
    key = regops.random.key(0x0123456789ABCDEF, -5, device)
    folded = regops.random.fold_in(key, data)
    assert torch.equal(folded, philox.fold_in(key, data))
    assert folded.device == key.device


def test_fold_in_gives_streams_of_their_own() -> None:
    key = regops.random.key(1)
    children = {tuple(regops.random.fold_in(key, i).tolist()) for i in range(1000)}
    grandchildren = {
        tuple(regops.random.fold_in(regops.random.fold_in(key, i), 0).tolist()) for i in range(1000)
    }
    assert len(children | grandchildren | {(1, 0)}) == 2001


def test_fold_in_refuses_what_is_no_key() -> None:
    with pytest.raises(TypeError, match=r"got torch\.float32"):
        regops.random.fold_in(torch.ones(2), 1)
    with pytest.raises(ValueError, match="shape"):
        regops.random.fold_in(torch.ones(4, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="data of 64 bits"):
        regops.random.fold_in(regops.random.key(1), 1 << 64)


def test_ops_pass_opcheck() -> None:
    torch.library.opcheck(torch.ops.regops.fold_in, (regops.random.key(1), 5))
    # new_key is random by its nature, so only what does not compare two runs.
    torch.library.opcheck(
        torch.ops.regops.new_key,
        (torch.empty(0),),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.parametrize("data", WIDE)
def test_interpreted_cuda_folds_and_stores_the_same_keys(data: int) -> None:
    key = regops.random.key(0x0123456789ABCDEF, -5)
    stored, folded = np.zeros(2, np.int64), np.zeros(2, np.int64)
    device = interpreted()
    stored_pointer, folded_pointer = device.register(stored), device.register(folded)
    seed, offset = (ctypes.c_uint64(value) for value in key.tolist())
    call(device, "regops_store_key_cuda", stored_pointer, seed, offset, None)
    assert stored.tolist() == key.tolist()
    call(device, "regops_fold_in_cuda", stored_pointer, ctypes.c_int64(data), folded_pointer, None)
    assert folded.tolist() == philox.fold_in(key, data).tolist()
