"""What DropConnect refuses: each error names the op, the argument, what was expected and came."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import regops.functional as RF
import regops.nn
import regops.random

nan = float("nan")
LAYER = {"input": torch.ones(4, 5), "weight": torch.ones(3, 5), "bias": torch.ones(3)}
KEY = regops.random.key(1)
GAUSSIAN = {"training": False, "inference": "gaussian"}
BAD_KEY = torch.ones(3, dtype=torch.int64)

# (arguments in place of a good call's, error, words)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "p-negative": ({"p": -0.1}, ValueError, "p in [0, 1], got -0.1"),
    "p-large": ({"p": 1.5}, ValueError, "p in [0, 1], got 1.5"),
    "p-just-large": ({"p": 1.0000001}, ValueError, "p in [0, 1], got 1.0000001"),
    "p-nan": ({"p": nan}, RuntimeError, "p in [0, 1], got nan"),
    "mask": ({"mask": "element"}, ValueError, "mask 'batch' or 'sample', got 'element'"),
    "inference": ({"inference": "max"}, ValueError, "inference 'mean' or 'gaussian', got 'max'"),
    "samples": ({"samples": 0}, ValueError, "samples of 1 or more, got 0"),
    "samples-type": ({"samples": 1.5}, TypeError, "samples: int, got float"),
    "key-shape": ({"key": BAD_KEY}, ValueError, "key of shape (2,), got [3]"),
    "key-dtype": ({"key": torch.ones(2)}, TypeError, "key of dtype torch.int64, got torch.float32"),
    "key-type": ({"key": 7}, TypeError, "expected key: Tensor | None, got int"),
    "key-device": ({"key": KEY.to("meta")}, RuntimeError, "key on cpu, got meta"),
    "key-and-generator": ({"key": KEY, "generator": torch.Generator()}, ValueError, "got both"),
    "weight-scalar": (
        {"weight": torch.ones(())},
        RuntimeError,
        "weight of shape (out_features, in_features), got []",
    ),
    "weight-vector": (
        {"weight": torch.ones(5)},
        RuntimeError,
        "weight of shape (out_features, in_features), got [5]",
    ),
    "weight-three-dims": (
        {"weight": torch.ones(1, 3, 5)},
        RuntimeError,
        "weight of shape (out_features, in_features), got [1, 3, 5]",
    ),
    "input-features": (
        {"input": torch.ones(4, 6)},
        RuntimeError,
        "input of shape (..., 5) beside weight of shape [3, 5], got [4, 6]",
    ),
    "input-scalar": (
        {"input": torch.ones(())},
        RuntimeError,
        "input of shape (..., 5) beside weight of shape [3, 5], got []",
    ),
    "bias-size": (
        {"bias": torch.ones(4)},
        RuntimeError,
        "bias of shape [3] beside weight of shape [3, 5], got [4]",
    ),
    "bias-dims": (
        {"bias": torch.ones(1, 3)},
        RuntimeError,
        "bias of shape [3] beside weight of shape [3, 5], got [1, 3]",
    ),
    "input-type": ({"input": [1.0]}, TypeError, "expected input: Tensor, got list"),
    "weight-type": ({"weight": None}, TypeError, "expected weight: Tensor, got NoneType"),
    "bias-type": ({"bias": 1.0}, TypeError, "expected bias: Tensor | None, got float"),
    "p-type": ({"p": "a"}, TypeError, "expected p: float | Tensor, got str"),
}
# What torch's own layer would take or refuse by itself.
BAD_WHERE_DROPPED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dtype": (
        {"input": torch.ones(4, 5, dtype=torch.int32), "weight": torch.ones(3, 5).int()},
        RuntimeError,
        "input of dtype float64, float32, bfloat16 or float16, got int32",
    ),
    "weight-dtype": (
        {"weight": torch.ones(3, 5, dtype=torch.float64)},
        RuntimeError,
        "weight of the input's dtype, float32, got float64",
    ),
    "bias-dtype": (
        {"bias": torch.ones(3, dtype=torch.float16)},
        RuntimeError,
        "bias of the input's dtype, float32, got float16",
    ),
    "weight-device": (
        {"weight": torch.ones(3, 5, device="meta")},
        RuntimeError,
        "weight on the input's device, cpu, got meta",
    ),
    "input-sparse": (
        {"input": torch.ones(4, 5).to_sparse()},
        NotImplementedError,
        "expected a strided input, got Sparse",
    ),
    "weight-sparse": (
        {"weight": torch.ones(3, 5).to_sparse()},
        NotImplementedError,
        "expected a strided weight, got Sparse",
    ),
}


def _plain(options: dict[str, Any]) -> Any:
    return RF.dropconnect_linear(**options)


def _in_grad(options: dict[str, Any]) -> Any:
    bias = torch.ones(3)  # what is differentiated is a good one
    return torch.func.grad(lambda b: RF.dropconnect_linear(**options).sum() + b.sum())(bias)


def _in_vmap(options: dict[str, Any]) -> Any:
    return torch.vmap(lambda _: RF.dropconnect_linear(**options), randomness="same")(torch.ones(2))


def _calls() -> list[object]:
    ways = {"batch": {}, "sample": {"mask": "sample", "drop_bias": True}, "gaussian": GAUSSIAN}
    return [
        *((name, ways[way]) for way in ways for name in (*BAD, *BAD_WHERE_DROPPED)),
        *((name, {"training": False}) for name in BAD),
    ]


@pytest.mark.parametrize("call", [_plain, _in_grad, _in_vmap])
@pytest.mark.parametrize(("name", "options"), _calls())
def test_a_bad_argument_is_named_and_nothing_is_drawn(
    name: str, options: dict[str, Any], call: Callable[[dict[str, Any]], Any]
) -> None:
    bad, error, words = {**BAD, **BAD_WHERE_DROPPED}[name]
    if "inference" in bad:
        options = {"training": False}
    state = torch.get_rng_state()
    with pytest.raises(error, match=re.escape(words)) as caught:
        call({**LAYER, **options, **bad})
    assert str(caught.value).startswith("regops.dropconnect_linear: expected ")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_is_left_as_it_was_too() -> None:
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()
    for bad, error, _ in BAD_WHERE_DROPPED.values():
        with pytest.raises(error):
            RF.dropconnect_linear(**{**LAYER, **bad}, generator=generator)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ({"p": 1.0}, ValueError, "p in [0, 1), got 1"),
        *(
            bad
            for bad in (*BAD.values(), *BAD_WHERE_DROPPED.values())
            if set(bad[0]) <= {*LAYER, "p"}
        ),
    ],
)
def test_moments_refuse_the_same(bad: dict[str, Any], error: type[Exception], words: str) -> None:
    words = words.replace("float | Tensor", "float")  # p is a number there
    with pytest.raises(error, match=re.escape(words)) as caught:
        RF.dropconnect_moments(**{**LAYER, **bad})
    assert str(caught.value).startswith("regops.dropconnect_moments: expected ")


def test_inference_has_no_variance_where_all_is_dropped() -> None:
    with pytest.raises(ValueError, match=re.escape("expected p in [0, 1), got 1")):
        RF.dropconnect_linear(**LAYER, **GAUSSIAN, p=1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"p": 2.0}, "p in [0, 1], got 2.0"),
        ({"p": nan}, "p in [0, 1], got nan"),
        ({"mask": "x"}, "mask 'batch' or 'sample', got 'x'"),
        ({"inference": "x"}, "inference 'mean' or 'gaussian', got 'x'"),
        ({"samples": 0}, "samples of 1 or more, got 0"),
    ],
)
def test_the_module_refuses_when_it_is_made(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"DropConnectLinear: expected {words}")):
        regops.nn.DropConnectLinear(5, 3, **options)


@pytest.mark.parametrize(
    "name", ["p-large", "p-nan", "mask", "samples", "key-shape", "key-dtype", "input-features"]
)
def test_compiled_code_refuses_too(name: str) -> None:
    torch._dynamo.reset()
    bad, _, words = BAD[name]
    compiled = torch.compile(
        lambda: RF.dropconnect_linear(**{**LAYER, **bad}), backend="eager", fullgraph=True
    )
    with pytest.raises(Exception, match=re.escape(words)):
        compiled()


def _backward(**changed: Any) -> tuple[Tensor, ...]:
    arguments = {
        "grad_output": torch.ones(4, 3),
        "input": LAYER["input"],
        "weight": LAYER["weight"],
        "p": 0.5,
        "key": KEY,
        "mask": "batch",
        "drop_bias": False,
        "output_mask": [True, True, True],
    }
    found: tuple[Tensor, ...] = torch.ops.regops.dropconnect_linear_backward(
        **{**arguments, **changed}
    )
    return found


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ({"grad_output": torch.ones(4, 5)}, RuntimeError, "shape [4, 3], got [4, 5]"),
        ({"grad_output": torch.ones(4, 3).double()}, RuntimeError, "dtype, float32, got float64"),
        ({"mask": "x"}, ValueError, "got 'x'"),
        ({"p": 2.0}, ValueError, "p in [0, 1], got 2"),
        ({"key": BAD_KEY}, ValueError, "key of shape (2,), got [3]"),
    ],
)
def test_the_backward_op_checks_too(
    bad: dict[str, Any], error: type[Exception], words: str
) -> None:
    for device in ("cpu", "meta"):
        moved = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in {**LAYER, "grad_output": torch.ones(4, 3), "key": KEY, **bad}.items()
        }
        moved.pop("bias")
        with pytest.raises(error, match=re.escape(words)):
            _backward(**moved)
