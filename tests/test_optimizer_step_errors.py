"""What optimizer steps refuse, in which words; and that they have written nothing then.

Longer than other files since it is a table of every argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import regops.functional as RF
from regops.testing import StepCall, StepCase, StepSpec, make_call, step_specs

SPECS = step_specs()
SHAPES = ((4, 5), (6,))
nan, inf = float("nan"), float("inf")

Change = Callable[[StepCall], None]


def _option(**options: Any) -> Change:
    return lambda call: call.kwargs.update(options)


def _in(name: str, index: int, value: Callable[[Tensor], Any]) -> Change:
    """Puts something else in place of a tensor of a list."""

    def change(call: StepCall) -> None:
        tensors = _list(call, name)
        tensors[index] = value(tensors[index])

    return change


def _list(call: StepCall, name: str) -> list[Any]:
    if name in ("state", "second state"):
        return call.states[name != "state"]
    found: list[Any] = call.kwargs[name] if name in ("masters", "emas") else getattr(call, name)
    return found


def _shorter(name: str) -> Change:
    return lambda call: _list(call, name).__delitem__(-1)


def _cleared(name: str) -> Change:
    return lambda call: _list(call, name).clear()


def _expanded(tensor: Tensor) -> Tensor:
    return tensor.new_zeros(()).expand(tensor.shape)


def _all(*changes: Change) -> Change:
    def change(call: StepCall) -> None:
        for one in changes:
            one(call)

    return change


def _double(tensor: Tensor) -> Tensor:
    return tensor.double()


# What is changed about a correct call of float32 parameters with averages (so `emas` exist); what
# is raised; and what the message says: the argument, what is expected, and what came.
WRONG: dict[str, tuple[Change, type[Exception], str]] = {
    # Lists.
    "fewer-grads": (_shorter("grads"), ValueError, "expected 2 grads .*got 1"),
    "fewer-params": (_shorter("params"), ValueError, "expected 1 grads .*got 2"),
    "fewer-states": (_shorter("state"), ValueError, "expected 2 (exp_avgs|momentum_.*) .*got 1"),
    "fewer-steps": (_shorter("state_steps"), ValueError, "expected 2 state_steps .*got 1"),
    "fewer-emas": (_shorter("emas"), ValueError, "expected 2 emas .*ema_decay, got 1"),
    "no-emas": (_cleared("emas"), ValueError, "expected 2 emas .*ema_decay, got 0"),
    "surplus-emas": (_option(ema_decay=None), ValueError, "expected 0 emas .*ema_decay, got 2"),
    "fewer-streams": (_option(streams=[1]), ValueError, "expected 2 streams, got 1"),
    "more-first-indices": (
        _option(first_indices=[1, 2, 3]),
        ValueError,
        "expected 2 first_indices, got 3",
    ),
    # Tensors.
    "shape-of-grad": (
        _in("grads", 1, lambda t: t[:5]),
        ValueError,
        r"expected grads\[1\] of shape \[6\], got \[5\]",
    ),
    "broadcast-grad": (
        _in("grads", 0, lambda t: t[:1]),
        ValueError,
        r"expected grads\[0\] of shape \[4, 5\], got \[1, 5\]",
    ),
    "shape-of-state": (
        _in("state", 1, lambda t: t[:5]),
        ValueError,
        r"expected (exp_avgs|momentum_buffers)\[1\] of shape \[6\], got \[5\]",
    ),
    "shape-of-ema": (_in("emas", 0, lambda t: t.T), ValueError, r"emas\[0\] of shape .* got \[5"),
    "shape-of-step": (
        _in("state_steps", 1, lambda t: t.new_zeros(2)),
        RuntimeError,
        "state_steps of dtype float32 and one element, got float32 of shape",
    ),
    "dtype-of-step": (
        _in("state_steps", 0, lambda t: t.long()),
        RuntimeError,
        "state_steps of dtype float32 and one element, got int64",
    ),
    "integer-params": (
        _all(_in("params", 0, lambda t: t.int()), _in("params", 1, lambda t: t.int())),
        RuntimeError,
        "expected params of dtype float64, float32, bfloat16 or float16, got int32",
    ),
    "complex-params": (
        _in("params", 0, lambda t: t.to(torch.complex64)),
        RuntimeError,
        "expected params of dtype .*, got complex64",
    ),
    "mixed-params": (
        _in("params", 1, _double),
        RuntimeError,
        "expected params of dtype float32, got float64 at index 1",
    ),
    "complex-grads": (
        _in("grads", 0, lambda t: t.to(torch.complex64)),
        RuntimeError,
        "expected grads of dtype float32, got complex64",
    ),
    "wide-grads": (
        _in("grads", 0, _double),
        RuntimeError,
        "expected grads of dtype float32, got float64",
    ),
    "mixed-grads": (
        _in("grads", 1, lambda t: t.half()),
        RuntimeError,
        "expected grads of dtype float32, got float16 at index 1",
    ),
    "half-states": (
        _all(_in("state", 0, lambda t: t.half()), _in("state", 1, lambda t: t.half())),
        RuntimeError,
        "expected states of dtype float32 or bfloat16, got float16",
    ),
    "mixed-states": (
        _in("state", 1, lambda t: t.bfloat16()),
        RuntimeError,
        "of dtype float32, got bfloat16 at index 1",
    ),
    "dtype-of-ema": (
        _in("emas", 1, lambda t: t.bfloat16()),
        RuntimeError,
        "expected emas of dtype float32, got bfloat16 at index 1",
    ),
    "sparse-grads": (
        _in("grads", 1, lambda t: t.to_sparse()),
        RuntimeError,
        r"expected strided tensors, got Sparse as grads\[1\]",
    ),
    "sparse-params": (
        _in("params", 0, lambda t: t.to_sparse()),
        RuntimeError,
        r"expected strided tensors, got Sparse as params\[0\]",
    ),
    "expanded-param": (
        _in("params", 0, _expanded),
        RuntimeError,
        r"expected params\[0\] without overlapping memory, got an expanded tensor",
    ),
    "expanded-state": (
        _in("state", 1, _expanded),
        RuntimeError,
        r"\[1\] without overlapping memory, got an expanded tensor",
    ),
    "expanded-grad-cleared": (
        _all(_in("grads", 0, _expanded), _option(zero_grad=True)),
        RuntimeError,
        r"expected grads\[0\] without overlapping memory, got an expanded tensor",
    ),
    "expanded-grad-unscaled": (
        _all(_in("grads", 0, _expanded), _option(grad_scale=torch.ones(()))),
        RuntimeError,
        r"expected grads\[0\] without overlapping memory, got an expanded tensor",
    ),
    # Numbers.
    "unknown-master": (
        _option(master="fp8"),
        ValueError,
        'expected master "none", "fp32", "kahan" or "stochastic", got "fp8"',
    ),
    "surplus-masters": (
        _option(masters=[torch.zeros(4, 5), torch.zeros(6)]),
        ValueError,
        "expected 0 masters .*got 2",
    ),
    "ema-decay-above-1": (_option(ema_decay=1.5), ValueError, r"ema_decay in \[0, 1\], got 1.5"),
    "ema-decay-nan": (_option(ema_decay=nan), ValueError, r"ema_decay in \[0, 1\], got nan"),
    "gradient-noise-gamma": (
        _option(gradient_noise=(0.1, nan)),
        ValueError,
        "gamma of gradient_noise to be finite, got nan",
    ),
    "gradient-noise-eta": (
        _option(gradient_noise=(-0.1, 0.5)),
        ValueError,
        "eta of gradient_noise of at least 0, got -0.1",
    ),
    "first-index": (
        _option(first_indices=[0, -3]),
        ValueError,
        "expected first_indices of at least 0, got -3",
    ),
    "lr-of-many": (
        _option(lr=torch.zeros(3)),
        ValueError,
        r"expected lr of one element, got shape \[3\]",
    ),
    "integer-lr": (
        _option(lr=torch.tensor(1)),
        TypeError,
        "expected lr of a floating-point dtype, got int64",
    ),
    "found-inf-of-many": (
        _option(found_inf=torch.zeros(3)),
        ValueError,
        r"expected found_inf of one element, got shape \[3\]",
    ),
    "grad-scale-of-many": (
        _option(grad_scale=torch.zeros(3)),
        ValueError,
        r"expected grad_scale of one element, got shape \[3\]",
    ),
    "shape-of-key": (
        _option(key=torch.zeros(3, dtype=torch.int64), gradient_noise=(0.1, 0.5)),
        ValueError,
        "key",
    ),
    "dtype-of-key": (_option(key=torch.zeros(2), gradient_noise=(0.1, 0.5)), TypeError, "key"),
    # Types and names.
    "unknown-option": (
        _option(wieght_decay=0.1),
        TypeError,
        "unexpected keyword argument '?wieght_decay",
    ),
    "param-is-no-tensor": (_in("params", 0, lambda t: 1.0), TypeError, r"params.*got .*float"),
    "grad-is-none": (_in("grads", 1, lambda t: None), TypeError, r"grads.*got .*None"),
    "state-is-no-tensor": (
        _in("state", 1, lambda t: t.tolist()),
        TypeError,
        "(exp_avgs|momentum_buffers).*got .*list",
    ),
    "step-is-no-tensor": (_in("state_steps", 0, lambda t: 1), TypeError, "state_steps.*got .*int"),
    "lr-is-text": (_option(lr="0.1"), TypeError, "lr.*got .*str"),
    "max-norm-is-text": (_option(max_norm="1"), TypeError, "max_norm.*got .*str"),
    "key-is-a-number": (_option(key=3), TypeError, "key.*got .*int"),
    "master-is-no-text": (_option(master=3), TypeError, "master.*got .*int"),
}
for _name in ("weight_decay", "l1", "l2", "max_grad_norm", "clip_value", "max_norm"):
    for _value in (-0.5, nan):
        WRONG[f"{_name}-{_value}"] = (
            _option(**{_name: _value}),
            ValueError,
            f"expected {_name} of at least 0, got {_value}",
        )

OF_ADAMW: dict[str, tuple[Change, type[Exception], str]] = {
    "beta1-of-1": (_option(beta1=1.0), ValueError, r"expected beta1 in \[0, 1\), got 1"),
    "beta1-nan": (_option(beta1=nan), ValueError, r"expected beta1 in \[0, 1\), got nan"),
    "beta2-negative": (_option(beta2=-0.1), ValueError, r"expected beta2 in \[0, 1\), got -0.1"),
    "eps-negative": (_option(eps=-1e-8), ValueError, "expected eps of at least 0, got -1e-08"),
    "momentum": (_option(momentum=0.9), TypeError, "unexpected keyword argument '?momentum"),
    "fewer-exp-avg-sqs": (
        _shorter("second state"),
        ValueError,
        "expected 2 exp_avg_sqs .*got 1",
    ),
    "fewer-max-exp-avg-sqs": (
        lambda call: call.states[2].append(torch.zeros(4, 5)),
        ValueError,
        "expected 2 max_exp_avg_sqs .*got 1",
    ),
}
OF_SGDW: dict[str, tuple[Change, type[Exception], str]] = {
    "momentum-without-buffers": (
        _cleared("state"),
        ValueError,
        "expected 2 momentum_buffers .*got 0",
    ),
    "buffers-without-momentum": (
        _option(momentum=0.0),
        ValueError,
        "expected 0 momentum_buffers without momentum, got 2",
    ),
    "momentum-negative": (_option(momentum=-1.0), ValueError, "momentum of at least 0, got -1"),
    "momentum-nan": (_option(momentum=nan), ValueError, "momentum of at least 0, got nan"),
    "dampening-inf": (_option(dampening=inf), ValueError, "dampening to be finite, got inf"),
    "nesterov-without-momentum": (
        _all(_option(momentum=0.0, nesterov=True), _cleared("state")),
        ValueError,
        "positive momentum and no dampening with nesterov, got momentum 0 and dampening 0",
    ),
    "nesterov-with-dampening": (
        _option(nesterov=True, dampening=0.5),
        ValueError,
        "positive momentum and no dampening with nesterov, got momentum 0.9 and dampening 0.5",
    ),
    "beta1": (_option(beta1=0.9), TypeError, "unexpected keyword argument '?beta1"),
}

CASES = [
    pytest.param(spec, *case, id=f"{spec.name}-{name}")
    for spec in SPECS.values()
    for name, case in {**WRONG, **(OF_ADAMW if "adamw" in spec.name else OF_SGDW)}.items()
]


def _correct_call(spec: StepSpec, dtype: torch.dtype = torch.float32, **options: Any) -> StepCall:
    momentum = {"momentum": 0.9} if spec.name == "sgdw_step_" else {}
    options = {"ema_decay": 0.9, **momentum, **options}
    return make_call(spec, StepCase("", SHAPES, options, ("max_exp_avg_sqs",)), dtype)


def _check(
    spec: StepSpec, call: StepCall, change: Change, error: type[Exception], message: str
) -> None:
    tensors = list(call.tensors().values())
    change(call)
    tensors += [one for one in call.tensors().values() if isinstance(one, Tensor)]
    before = [(one, one.clone(), one._version) for one in tensors]
    with pytest.raises(error, match=message) as raised:
        call.run(spec.functional)
    assert spec.name in str(raised.value)
    for one, values, version in before:
        assert torch.equal(one.to_dense(), values.to_dense())
        assert one._version == version


def test_the_call_is_correct_otherwise() -> None:
    for spec in SPECS.values():
        call = _correct_call(spec)
        before = call.copy()
        call.run(spec.functional)
        assert not torch.equal(call.params[0], before.params[0])


@pytest.mark.parametrize(("spec", "change", "error", "message"), CASES)
def test_refused_before_anything_is_written(
    spec: StepSpec, change: Change, error: type[Exception], message: str
) -> None:
    _check(spec, _correct_call(spec), change, error, message)


HALF: dict[str, tuple[dict[str, Any], Change, type[Exception], str]] = {
    "no-masters": ({"master": "fp32"}, _cleared("masters"), ValueError, "2 masters .*got 0"),
    "fewer-compensations": ({"master": "kahan"}, _shorter("masters"), ValueError, "2 masters"),
    "masters-of-none": ({"master": "fp32"}, _option(master="none"), ValueError, "0 masters"),
    "masters-of-stochastic": (
        {"master": "fp32"},
        _option(master="stochastic"),
        ValueError,
        "0 masters .*got 2",
    ),
    "dtype-of-master": (
        {"master": "fp32"},
        _in("masters", 1, lambda t: t.bfloat16()),
        RuntimeError,
        "expected masters of dtype float32, got bfloat16 at index 1",
    ),
    "dtype-of-compensation": (
        {"master": "kahan"},
        _in("masters", 0, lambda t: t.float()),
        RuntimeError,
        "expected masters of dtype bfloat16, got float32 at index 0",
    ),
    "shape-of-master": (
        {"master": "fp32"},
        _in("masters", 1, lambda t: t[1:]),
        ValueError,
        r"expected masters\[1\] of shape \[6\], got \[5\]",
    ),
    "expanded-master": (
        {"master": "fp32"},
        _in("masters", 0, _expanded),
        RuntimeError,
        r"expected masters\[0\] without overlapping memory, got an expanded tensor",
    ),
    "other-half-grads": (
        {},
        _in("grads", 0, lambda t: t.half()),
        RuntimeError,
        "expected grads of dtype bfloat16 or float32, got float16",
    ),
}


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_refused_of_half_precision(spec: StepSpec, name: str) -> None:
    options, change, error, message = HALF[name]
    _check(spec, _correct_call(spec, torch.bfloat16, **options), change, error, message)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_bfloat16_states_of_float64_parameters_are_refused(spec: StepSpec) -> None:
    def change(call: StepCall) -> None:
        call.states[:] = [[one.bfloat16() for one in state] for state in call.states]

    message = "expected states of dtype float64, got bfloat16"
    _check(spec, _correct_call(spec, torch.float64), change, RuntimeError, message)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_other_devices_are_refused(spec: StepSpec) -> None:
    """Of the meta device, which every machine has."""
    for name in ("grads", "state", "state_steps", "emas"):
        call = _correct_call(spec)
        tensors = _list(call, name)
        tensors[1] = tensors[1].to("meta")
        before = call.params[0].clone()
        with pytest.raises((RuntimeError, NotImplementedError), match=f"{spec.name}.* on .*meta"):
            call.run(spec.functional)
        assert torch.equal(call.params[0], before)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_op_needs_a_key(spec: StepSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function draws one where none is given; the op, which must be pure, does not."""
    for options in ({"gradient_noise": (0.1, 0.5)}, {"master": "stochastic"}):
        call = _correct_call(spec, torch.bfloat16, **options)
        call.kwargs["key"] = None
        call.run(spec.functional)
        monkeypatch.setattr("regops.functional._step.key_like", lambda tensor: None)
        _check(spec, call, lambda call: None, ValueError, "expected a key .*, got none")
        monkeypatch.undo()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_arguments_that_are_no_lists_are_refused(spec: StepSpec) -> None:
    for name in ("params", "grads", "state_steps"):
        for value in (None, 3, {"a": 1}):
            call = _correct_call(spec)
            setattr(call, name, value)
            with pytest.raises(TypeError, match=f"{spec.name}.*{name}"):
                call.run(spec.functional)


def test_norm_refuses() -> None:
    for grads, error, message in (
        ([torch.ones(3, dtype=torch.int32)], RuntimeError, "grad_norm.*int32"),
        ([torch.ones(3, dtype=torch.complex64)], RuntimeError, "grad_norm.*complex64"),
        ([torch.ones(3).to_sparse()], RuntimeError, "grad_norm.*Sparse"),
        ([torch.ones(3), torch.ones(3, device="meta")], RuntimeError, "grad_norm.*meta"),
        ([torch.ones(3), None], TypeError, "grad_norm.*grads.*None"),
        ([1.0], TypeError, "grad_norm.*grads.*float"),
        (None, TypeError, "grad_norm.*grads.*None"),
    ):
        with pytest.raises(error, match=message):
            RF.grad_norm(grads)  # type: ignore[arg-type]
