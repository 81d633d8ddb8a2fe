"""What is special to dropout: its semantics beside torch's, its errors, its limits."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import Tensor

import regops.functional as RF
import regops.nn
import regops.random
import regops.reference
from regops.reference.dropout import threshold as dropout_threshold
from regops.reference.philox import random_bits
from regops.testing import Layout, make_input

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
nan, inf = float("nan"), float("inf")


# ---- semantics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (0.0, False), (1.0, False)])
def test_no_op_returns_the_input_and_draws_nothing(p: float, training: bool, inplace: bool) -> None:
    input = torch.randn(5)
    state = torch.get_rng_state()
    assert RF.dropout(input, p, training, inplace) is input
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_p_of_one_drops_all_and_draws_nothing(dtype: torch.dtype) -> None:
    input = torch.tensor([1.0, nan, inf, -inf, -0.0], dtype=dtype, requires_grad=True)
    state = torch.get_rng_state()
    output = RF.dropout(input, 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    output.sum().backward()
    zeros = torch.zeros(5, dtype=dtype)
    assert torch.equal(output, zeros)
    assert torch.equal(input.grad, zeros)


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_nonfinite_values_go_where_dropped_and_stay_where_kept(
    dtype: torch.dtype, value: float
) -> None:
    key = regops.random.key(3)
    keep = RF.dropout(torch.ones(1000), 0.5, key=key) != 0
    output = RF.dropout(torch.full((1000,), value, dtype=dtype), 0.5, key=key)
    assert (output[~keep] == 0).all()
    kept = torch.full((int(keep.sum()),), value, dtype=dtype)
    assert torch.equal(output[keep].nan_to_num(nan=7.0), kept.nan_to_num(nan=7.0))


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_pattern_is_scaled_and_rounded_as_by_torch(dtype: torch.dtype) -> None:
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    for p in (0.1, 0.9, 1e-4):
        key = regops.random.key(11)
        expected = regops.reference.dropout(patterns, p, key=key)
        output = RF.dropout(patterns, p, key=key)
        torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


def test_in_place_writes_the_input_and_the_gradient_follows() -> None:
    key = regops.random.key(1)
    leaf = torch.randn(1000, requires_grad=True)
    input = leaf * 1
    version = input._version
    output = RF.dropout(input, 0.3, inplace=True, key=key)
    assert output is input
    assert input._version == version + 1
    assert torch.equal(output, RF.dropout(leaf, 0.3, key=key))
    (gradient,) = torch.autograd.grad(output, leaf, torch.ones(1000))
    assert torch.equal(gradient, RF.dropout(torch.ones(1000), 0.3, key=key))


def test_in_place_is_seen_by_autograd() -> None:
    leaf = torch.randn(10, requires_grad=True)
    input = leaf.exp()  # saves its result, which dropout then overwrites
    RF.dropout(input, 0.5, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        input.sum().backward()


def test_in_place_in_inference_mode_is_seen_by_autograd() -> None:
    leaf = torch.randn(10, requires_grad=True)
    saved = leaf.exp()
    with torch.inference_mode():
        RF.dropout(saved, 0.5, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


def test_in_place_on_a_view_reaches_its_base() -> None:
    key = regops.random.key(1)
    leaf = torch.ones(4, 6, requires_grad=True)
    base = leaf * 1
    RF.dropout(base[:, ::2], 0.5, inplace=True, key=key)
    mask = RF.dropout(torch.ones(4, 3), 0.5, key=key)
    assert torch.equal(base[:, ::2], mask)
    assert torch.equal(base[:, 1::2], torch.ones(4, 3))
    (gradient,) = torch.autograd.grad(base.sum(), leaf)
    assert torch.equal(gradient[:, ::2], mask)
    assert torch.equal(gradient[:, 1::2], torch.ones(4, 3))


@pytest.mark.parametrize(("p", "bits"), [(1e-9, 32), (2**-17, 32), (2**-16, 16), (0.1, 16)])
def test_p_in_force(p: float, bits: int) -> None:
    """The fine rule begins where 16 bits end, at both ends, and the scale is that of the rule."""
    for probability in (p, 1 - p):
        threshold, used = dropout_threshold(probability)
        assert used == bits
        assert 0 < threshold < 2**bits
        key = regops.random.key(5)
        output = RF.dropout(torch.ones(1 << 16, dtype=torch.float64), probability, key=key)
        kept = output[output != 0]
        assert torch.equal(kept, torch.full_like(kept, 2**bits / (2**bits - threshold)))


def test_a_p_of_16_bits_is_in_force_as_it_stands() -> None:
    output = RF.dropout(torch.ones(1000, dtype=torch.float64), 0.25)
    assert set(output.tolist()) == {0.0, 1.0 / 0.75}


# ---- keys ----------------------------------------------------------------------------------------


def test_manual_seed_repeats_masks_and_calls_differ() -> None:
    input = torch.ones(1000)
    torch.manual_seed(1)
    first, second = RF.dropout(input), RF.dropout(input)
    torch.manual_seed(1)
    assert torch.equal(RF.dropout(input), first)
    assert torch.equal(RF.dropout(input), second)
    assert not torch.equal(first, second)


def test_generator_is_used_instead_of_the_default_one() -> None:
    input = torch.ones(1000)
    state = torch.get_rng_state()
    outputs = [RF.dropout(input, generator=torch.Generator().manual_seed(9)) for _ in range(2)]
    assert torch.equal(*outputs)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_does_not_depend_on_dtype(dtype: torch.dtype) -> None:
    key = regops.random.key(4)
    expected = RF.dropout(torch.ones(5000), 0.3, key=key) != 0
    assert torch.equal(RF.dropout(torch.ones(5000, dtype=dtype), 0.3, key=key) != 0, expected)


def test_shorter_input_takes_a_prefix_of_the_mask() -> None:
    key = regops.random.key(4)
    long = RF.dropout(torch.ones(5000), 0.3, key=key)
    for size in (1, 7, 8, 9, 255, 256, 257, 4097):
        assert torch.equal(RF.dropout(torch.ones(size), 0.3, key=key), long[:size])


# ---- errors --------------------------------------------------------------------------------------


def _leaf() -> Tensor:
    return torch.ones(3, requires_grad=True)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: RF.dropout(torch.ones(3), -0.1), ValueError, "p in [0, 1], got -0.1"),
        (lambda: RF.dropout(torch.ones(3), 1.5, False), ValueError, "p in [0, 1], got 1.5"),
        (lambda: RF.dropout(torch.ones(3), nan), RuntimeError, "p in [0, 1], got nan"),
        (lambda: regops.nn.Dropout(2.0), ValueError, "p in [0, 1], got 2.0"),
        (lambda: RF.dropout(torch.ones(3, dtype=torch.int32)), RuntimeError, "got int32"),
        (lambda: RF.dropout(torch.ones(3, dtype=torch.bool)), RuntimeError, "got bool"),
        (lambda: RF.dropout(torch.ones(3, dtype=torch.complex64)), RuntimeError, "got complex64"),
        (lambda: RF.dropout(torch.ones(3), 1.0000001), ValueError, "got 1.0000001"),
        (
            lambda: RF.dropout(torch.eye(3).to_sparse()),
            NotImplementedError,
            "strided input, got Spar",
        ),
        (
            lambda: RF.dropout(torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged)),
            NotImplementedError,
            "regops.dropout: expected a strided input, got",
        ),
        (lambda: regops.random.key(1.5), TypeError, "seed of type int, got float"),
        (lambda: RF.dropout([1.0]), TypeError, "expected input: Tensor, got list"),
        (lambda: RF.dropout(torch.ones(3), "a"), TypeError, "expected p: float | Tensor, got str"),
        (lambda: RF.dropout(torch.ones(3), key=torch.ones(2)), TypeError, "got torch.float32"),
        (
            lambda: RF.dropout(torch.ones(3), key=7),
            TypeError,
            "expected key: Tensor | None, got int",
        ),
        (
            lambda: RF.dropout(torch.ones(3), key=torch.ones(3, dtype=torch.int64)),
            ValueError,
            "shape (2,), got [3]",
        ),
        (
            lambda: RF.dropout(torch.ones(3), key=torch.ones(2, dtype=torch.int64, device="meta")),
            RuntimeError,
            "key on cpu, got meta",
        ),
        (
            lambda: RF.dropout(
                torch.ones(3), key=regops.random.key(1), generator=torch.Generator()
            ),
            ValueError,
            "got both",
        ),
        (lambda: RF.dropout(_leaf(), inplace=True), RuntimeError, "leaf tensor of shape [3]"),
        (lambda: RF.dropout(_leaf()[:2], inplace=True), RuntimeError, "view of a leaf"),
        (
            lambda: RF.dropout(torch.ones(1).expand(3), inplace=True),
            RuntimeError,
            "single memory location",
        ),
        (
            lambda: regops.random.key(1 << 64),
            ValueError,
            "seed of 64 bits, got 18446744073709551616",
        ),
    ],
)
def test_bad_input_raises_what_torch_raises_and_names_the_value(
    call: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_nothing_is_written_before_every_check_has_passed() -> None:
    input = torch.ones(100)
    for bad in (torch.ones(2), torch.ones(3, dtype=torch.int64)):
        with pytest.raises((TypeError, ValueError)):
            RF.dropout(input, 0.5, inplace=True, key=bad)
    leaf = torch.ones(100, requires_grad=True)
    with pytest.raises(RuntimeError):
        RF.dropout(leaf, 0.5, inplace=True)
    assert (input == 1).all()
    assert (leaf == 1).all()


def test_integers_pass_through_in_evaluation() -> None:
    input = torch.arange(3)
    assert RF.dropout(input, 0.5, training=False) is input


# ---- module --------------------------------------------------------------------------------------


def test_module_is_torchs_to_its_users() -> None:
    module = regops.nn.Dropout(0.25, inplace=True)
    assert repr(module) == repr(torch.nn.Dropout(0.25, inplace=True))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert (twin.p, twin.inplace, twin.training) == (0.25, True, True)
    input = torch.randn(4)
    assert module.eval()(input) is input
    module.train().p = 3.0  # torch checks at the call, too
    with pytest.raises(ValueError, match=re.escape("got 3")):
        module(input)


def test_subclasses_may_override() -> None:
    class Tagged(Tensor):
        pass

    output = RF.dropout(torch.ones(8).as_subclass(Tagged), 0.5)
    assert isinstance(output, Tagged)


# ---- size ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("layout", ["contiguous", "misaligned", "swapped_outer", "transposed"])
def test_outputs_that_are_stored_past_the_cache(layout: Layout) -> None:
    """From 16 MiB on, where aligned; an odd row length puts runs in every phase."""
    input = make_input((3, 1700, 1001), torch.float32, layout=layout)
    key = regops.random.key(8)
    output = RF.dropout(input, 0.3, key=key)
    assert torch.equal(output, regops.reference.dropout(input, 0.3, key=key))


@pytest.mark.slow
def test_more_than_2_to_the_31_elements() -> None:
    """Indices that 32 bits, signed or not, cannot hold; in place, so that 4 GiB are enough."""
    size, key, window = (1 << 31) + 4099, regops.random.key(8), 5000
    output = RF.dropout(torch.ones(size, dtype=torch.float16), 0.5, inplace=True, key=key)
    for first in (0, (1 << 31) - window // 2, size - window):
        keep = random_bits(key, window, 16, first) >= 1 << 15
        assert torch.equal(output[first : first + window], 2 * keep.half())


@pytest.mark.slow
def test_more_than_2_to_the_31_elements_in_permuted_memory() -> None:
    rows, columns, key = (1 << 16) + 3, 1 << 15, regops.random.key(8)
    output = torch.ones(columns, rows, dtype=torch.float16).t()  # logical (rows, columns)
    RF.dropout(output, 0.5, inplace=True, key=key)
    for row in (0, 1 << 15, rows - 1):
        keep = random_bits(key, columns, 16, row * columns) >= 1 << 15
        assert torch.equal(output[row], 2 * keep.half())
