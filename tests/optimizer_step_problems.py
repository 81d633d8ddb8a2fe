"""Optimizer steps for the interpreted kernels, and how far they may be from the oracle."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

import regops.random
from regops.reference.optimizer_step import grad_norm
from tests.optimizer_step_call import Problem, step_expected, step_interpreted

KEY = (0x0123456789ABCDEF, 0x7EDCBA9876543210)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Ends of vectors and groups, several blocks; nothing; 0-d.
SHAPES: list[tuple[int, ...]] = [(1,), (0,), (3, 5), (2048,), (), (4, 523), (4099,)]
SMALL: list[tuple[int, ...]] = [(3, 67), (0,), (5,)]

RULES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw-first-step": {"done": 0, "hyper": {"beta1": 0.0}},
    "sgd": {"rule": "sgdw", "states": 0},
    "momentum": {"rule": "sgdw"},
    "momentum-first-step": {"rule": "sgdw", "done": 0},
    "nesterov": {"rule": "sgdw", "hyper": {"dampening": 0.0, "nesterov": True}},
}


def scalar(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """A 0-d tensor."""
    return torch.tensor(value, dtype=dtype)


# What the plain kernels do too.
PLAIN: dict[str, dict[str, Any]] = {
    "none": {},
    "maximize": {"maximize": True},
    "unscale": {"grad_scale": scalar(3.0)},
    "unscale-zero-grad": {"grad_scale": scalar(3.0), "zero_grad": True},
    "clip-norm": {"max_grad_norm": 0.5},
    "clip-norm-unscale": {"max_grad_norm": 0.5, "grad_scale": scalar(8.0)},
    "below-the-norm": {"max_grad_norm": 1e6},
    "zero-grad": {"zero_grad": True},
    "finite": {"found_inf": scalar(0.0), "zero_grad": True},
}
EXTRAS: dict[str, dict[str, Any]] = {
    "clip-value": {"clip_value": 0.25},
    "l1": {"l1": 20.0},
    "l2": {"l2": 0.1},
    "max-norm": {"max_norm": 2.0},
    "noise": {"gradient_noise": (0.5, 0.55)},
    "ema": {"ema_decay": 0.9},
    "all": {
        "maximize": True,
        "grad_scale": scalar(2.0),
        "max_grad_norm": 30.0,
        "clip_value": 0.75,
        "l1": 2.0,
        "l2": 0.1,
        "max_norm": 2.0,
        "gradient_noise": (0.5, 0.55),
        "ema_decay": 0.9,
        "zero_grad": True,
    },
}
LOW: dict[str, dict[str, Any]] = {
    "master": {"master": "fp32"},
    "kahan": {"master": "kahan"},
    "stochastic": {"master": "stochastic"},
    "state": {"state_dtype": torch.bfloat16},
    "amsgrad-state": {"state_dtype": torch.bfloat16, "states": 3},
    "grad-float32": {"grad_dtype": torch.float32, "grad_scale": scalar(3.0)},
    "master-ema": {"master": "fp32", "ema_decay": 0.9, "max_norm": 2.0, "zero_grad": True},
    "all-random": {
        "master": "stochastic",
        "state_dtype": torch.bfloat16,
        "gradient_noise": (0.5, 0.55),
        "max_norm": 2.0,
    },
}


def shifted(tensor: Tensor, skip: int) -> Tensor:
    """The same, `skip` elements past an aligned address."""
    storage = torch.zeros(tensor.numel() + skip, dtype=tensor.dtype)
    return storage[skip:].view(tensor.shape).copy_(tensor)


def make(
    shapes: list[tuple[int, ...]],
    rule: str = "adamw",
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
    state_dtype: torch.dtype | None = None,
    states: int | None = None,
    done: int = 3,
    hyper: dict[str, Any] | None = None,
    **options: Any,
) -> Problem:
    """A problem of random tensors; `states` and `done` are the numbers of states and past steps."""
    generator = torch.Generator().manual_seed(len(shapes))
    real = torch.promote_types(dtype, torch.float32)
    master = options.get("master", "none")

    def random(kind: torch.dtype, positive: bool = False) -> list[Tensor]:
        tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        return [(x.square() if positive else x).to(kind) for x in tensors]

    params = random(dtype)
    masters = []
    if master == "fp32":
        # Of an eighth of an ulp of bfloat16 more; every 8th parameter was changed since.
        masters = [param.to(real) * (1 + 2.0**-11) for param in params]
        for param in params:
            param.flatten()[::8].mul_(2)
    elif master == "kahan":
        masters = [(param.to(real) * 2.0**-12).to(dtype) for param in params]
    states = (2 if rule == "adamw" else 1) if states is None else states
    of_rule = {"weight_decay": 0.1, "lr": 0.01} | (hyper or {})
    if rule == "sgdw" and states:
        of_rule = {"momentum": 0.9, "dampening": 0.25} | of_rule
    if options.get("gradient_noise") or master == "stochastic" or state_dtype:
        options.setdefault("key", regops.random.key(*KEY))
    return Problem(
        rule,
        params,
        random(grad_dtype or dtype),
        [random(state_dtype or real, i > 0) for i in range(states)],
        [torch.tensor(float(done)) for _ in shapes],
        masters,
        random(real) if options.get("ema_decay") else [],
        of_rule,
        options,
    )


def problem_of(shapes: list[tuple[int, ...]], **arguments: Any) -> Problem:
    """As `make`, with the norm that the public function would pass."""
    problem = make(shapes, **arguments)
    if "max_grad_norm" in arguments:
        norm = grad_norm(problem.grads)
        problem.options["grad_norm"] = norm / arguments.get("grad_scale", 1.0)
    return problem


# A value is a sum of a handful of terms that are not larger than the largest in its tensor, with a
# rounding more or less where the compiler fuses a product and a sum.
ULPS = 8
# Roundings to 16 bits differ by one unit where those few ulp of float32 cross a boundary: 1 element
# in 2^12, of the tensor's largest; more of its small ones.
SHARE = 0.02


def assert_close(actual: Tensor, expected: Tensor, eps: float, what: str) -> None:
    """Within ULPS of the largest value, or one unit of a 16-bit type in a small share."""
    assert actual.dtype == expected.dtype
    a, b = actual.double(), expected.double()
    finite = a.isfinite() & b.isfinite()
    torch.testing.assert_close(a[~finite], b[~finite], equal_nan=True)
    a, b = a[finite], b[finite]
    if not b.numel():
        return
    error = (a - b).abs()
    if actual.element_size() > 2:
        allowed = ULPS * eps * b.abs().max()
        assert (error <= allowed).all(), f"{what}: {error.max()} > {allowed}"
        return
    unit = b.abs() * torch.finfo(actual.dtype).eps + 2.0**-24
    assert (error <= unit).all(), f"{what}: {(error / unit).max()} units"
    assert (error > 0).sum() <= max(2, SHARE * error.numel()), f"{what}: {(error > 0).sum()}"


def compare(actual: Problem, expected: Problem, steps: int = 1) -> None:
    """All tensors of a problem, after so many steps, against the oracle's."""
    real = torch.promote_types(actual.params[0].dtype, torch.float32)
    # Noise is float32 on every device, whatever the parameter's type.
    noise = actual.options.get("gradient_noise")
    eps = steps * torch.finfo(torch.float32 if noise else real).eps
    assert torch.equal(torch.stack(actual.steps), torch.stack(expected.steps))
    for k in range(len(actual.params)):
        ours, theirs = actual.operands(k), expected.operands(k)
        # One product, or a zero.
        a, b = ours.pop("grad"), theirs.pop("grad")
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=f"grad {k}")
        if actual.options.get("master") == "kahan":
            # Where the parameter's rounding differs its error does: their sum counts.
            a, b = (x["param"].to(real) + x.pop("master").to(real) for x in (ours, theirs))
            unit = torch.finfo(theirs["param"].dtype).eps ** 2
            torch.testing.assert_close(a, b, rtol=unit, atol=ULPS * eps)
        for name, tensor in ours.items():
            assert_close(tensor, theirs[name], eps, f"{name} {k}")


def check(problem: Problem, strided: bool = False) -> set[str]:
    """Does the step both ways; returns the launched kernels' names. `problem` ends as the oracle's.

    Strides are kept: tensors are copied storage and all.
    """
    actual = copy.deepcopy(problem)
    step_expected(problem)
    launched = step_interpreted(actual, strided=strided)
    compare(actual, problem)
    return launched


def check_options(shapes: list[tuple[int, ...]], **arguments: Any) -> set[str]:
    """Checks a step of tensors of these shapes, with the arguments of `make`."""
    return check(problem_of(shapes, **arguments))
