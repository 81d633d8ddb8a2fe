"""A step is right before it is timed: parameters, state and averages after two of them.

The reference runs in float64, piece by piece. The tolerance grants everyone the roundings of what
is stored, at every step, and others two kinds of arithmetic that regops does in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import regops.reference
from bench.step_providers import Stepper, state_names
from bench.steps import StepPoint, Workload
from regops.testing import StepCall

# Of the gradients, step by step: powers of 2, exact in every type.
_FACTORS = (1.0, 0.5)

# Elements that the reference computes at a time: ten temporaries of float64 stay small.
_PIECE = 1 << 20

# Relative to a result: a few operations in an order of their own.
_ORDER = 1e-5

# What others are granted. Of a change: compiled steps correct the bias in float32, where 1 - 0.999
# has four digits. Of a clipped gradient: torch's norm of 16M float32 values is 7e-4 off, and its
# square goes into a moment.
_BIAS, _NORM = 1e-4, 2e-3


class StepVerifier:
    """Raises AssertionError unless what a provider's steps write is right.

    Args:
        point: What they step.
        work: On what.
    """

    def __init__(self, point: StepPoint, work: Workload) -> None:
        self._point = point
        self._work = work
        self._states = state_names(point)
        self._expected: dict[str, list[Tensor]] = {}

    def __call__(self, name: str, stepper: Stepper) -> None:
        """Verifies a provider.

        Args:
            name: Of the provider.
            stepper: What it offers, ready for its first step.
        """
        if not self._expected:
            self._expected = _expected(self._point, self._work.start)
        self._work.reset()
        for factor in _FACTORS:
            self._work.fill_gradients(factor)
            stepper.run()
        written = stepper.written()
        of_states = [tensors[0].dtype for what, tensors in written.items() if what != "param"]
        coarsest = max(torch.finfo(dtype).eps for dtype in (torch.float32, *of_states))
        clipped = "max_grad_norm" in self._point.case.kwargs
        norm = _NORM if clipped and name != "regops" else 0.0
        of_change = 16 * coarsest + norm + (0.0 if name == "regops" else _BIAS)
        for what, tensors in written.items():
            # A parameter shows only in its change what is off in a gradient.
            rtol = _ORDER + (norm if what in self._states else 0.0)
            for index, (got, wanted) in enumerate(zip(tensors, self._expected[what], strict=True)):
                change = self._largest_change(index)
                atol = of_change * change
                if what in self._states:  # terms of which one cancels another
                    atol = torch.finfo(got.dtype).eps * wanted.abs().max().item()
                _assert_near(f"{what} {index} of {name}", got, wanted, rtol, atol)
        if self._point.case.kwargs.get("zero_grad"):
            for param in self._work.params:
                if param.grad is None or param.grad.count_nonzero():
                    raise AssertionError(f"{name} did not clear the gradients")

    def _largest_change(self, index: int) -> float:
        """Of a parameter's elements, in all steps."""
        begin = self._work.start.params[index]
        return (self._expected["param"][index] - begin).abs().max().item()


def _assert_near(what: str, got: Tensor, wanted: Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(
        got.double(),
        wanted,
        # Two operations a step may round, and to either side.
        rtol=rtol + 2 * len(_FACTORS) * torch.finfo(got.dtype).eps,
        atol=atol,
        msg=lambda message: f"{what} differs from the reference: {message}",
    )


def _expected(point: StepPoint, start: StepCall) -> dict[str, list[Tensor]]:
    """What every step writes, by name, in float64."""
    names = ["param", *state_names(point)]
    averaged = "ema_decay" in point.case.kwargs
    names += ["ema"] if averaged else []
    results: dict[str, list[Tensor]] = {name: [] for name in names}
    norm = regops.reference.grad_norm(start.grads)
    for param, grad in zip(start.params, start.grads, strict=True):
        pieces: dict[str, list[Tensor]] = {name: [] for name in names}
        for call in _pieces(point, param, grad, averaged):
            begin = call.grads[0].clone()
            for factor in _FACTORS:
                call.grads[0].copy_(begin).mul_(factor)
                call.kwargs["grad_norm"] = norm * factor
                call.run(point.spec.reference)
            lists = [call.params, *filter(None, call.states)]
            lists += [call.kwargs["emas"]] if averaged else []
            for name, (tensor,) in zip(names, lists, strict=True):
                pieces[name].append(tensor)
        for name in names:
            results[name].append(torch.cat(pieces[name]).view(param.shape))
    if "masters" in start.kwargs:
        results["master_param"] = results["param"]
    return results


def _pieces(point: StepPoint, param: Tensor, grad: Tensor, averaged: bool) -> Iterator[StepCall]:
    options = {
        name: value
        for name, value in point.case.kwargs.items()
        if name not in ("master", "masters", "emas")  # float64 needs no master
    }
    for piece, of_grad in zip(
        param.flatten().split(_PIECE), grad.flatten().split(_PIECE), strict=True
    ):
        real = piece.double()
        states = [
            [] if name in point.case.empty else [torch.zeros_like(real)]
            for name in point.spec.states
        ]
        emas = {"emas": [torch.zeros_like(real)]} if averaged else {}
        yield StepCall(
            [real.clone()],
            [of_grad.double()],
            states,
            [torch.zeros((), device=param.device)],
            {**options, **emas},
        )
