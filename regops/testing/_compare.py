"""What an op gives, what its reference gives, and how far the two may stand apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from regops.testing._inputs import make_input

if TYPE_CHECKING:
    from regops.testing import OpSpec


@dataclass(frozen=True)
class Tolerance:
    """How far a result may stand from its reference, and why no less can be asked.

    An element is right if |result - reference| <= rtol |reference| + of_largest L, where L is the
    largest finite magnitude in the reference: what a sum cancels leaves errors of the size of its
    terms, and L shrinks with the upstream gradient and the number of rows in a mean as they do.

    Attributes:
        rtol: Relative to the element.
        of_largest: Relative to the largest element.
        reason: Where the figures come from.
        gradient: (rtol, of_largest) of gradients; None: as of outputs.
    """

    rtol: float
    of_largest: float
    reason: str
    gradient: tuple[float, float] | None = None

    @property
    def exact(self) -> bool:
        """Whether every bit must agree."""
        return self.rtol == self.of_largest == 0 and self.gradient in (None, (0.0, 0.0))


class Results(NamedTuple):
    """A call and its derivative.

    Attributes:
        outputs: What it returned.
        gradients: Of each tensor that requires one; see `differentiated`.
        upstream: Gradients of the outputs, of which these are made.
    """

    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    upstream: tuple[Tensor, ...]


def outputs_of(returned: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a call returned, always as a tuple."""
    return (returned,) if isinstance(returned, Tensor) else tuple(returned)


def differentiated(input: Tensor, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The input and every argument that requires grad, in order."""
    tensors = (value for value in arguments.values() if isinstance(value, Tensor))
    return (input, *(tensor for tensor in tensors if tensor.requires_grad))


def results(
    function: Callable[..., Any],
    input: Tensor,
    arguments: Mapping[str, Any],
    upstream: tuple[Tensor, ...] | None = None,
) -> Results:
    """Calls and differentiates.

    Args:
        function: Called as `function(input, **arguments)`.
        input: Requires grad.
        arguments: Those that require grad are differentiated too.
        upstream: Gradients of the outputs; by default standard normal values.
    """
    outputs = outputs_of(function(input, **arguments))
    if upstream is None:
        upstream = tuple(
            make_input(tuple(output.shape), output.dtype, output.device, seed=seed)
            for seed, output in enumerate(outputs, 1)
        )
    of_outputs = [one.to(output.dtype) for one, output in zip(upstream, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, differentiated(input, arguments), of_outputs)
    return Results(outputs, gradients, upstream)


def reference_copies(
    spec: OpSpec, input: Tensor, arguments: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Copies of a call's inputs for the reference: of float64 unless the op must equal it exactly.

    So the reference adds no rounding of its own. Which tensors require grad is copied as well.
    """
    exact = spec.tolerance[input.dtype].exact

    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        copy = value.detach().clone()
        if copy.is_floating_point() and not exact:
            copy = copy.double()
        return copy.requires_grad_(value.requires_grad)

    return copied(input), {name: copied(value) for name, value in arguments.items()}


def assert_close(tolerance: Tolerance, actual: Results, expected: Results) -> None:
    """Raises AssertionError, naming what differs, unless all is within the tolerance."""
    of_outputs = (tolerance.rtol, tolerance.of_largest)
    for what, got, wanted, (rtol, of_largest) in (
        ("output", actual.outputs, expected.outputs, of_outputs),
        ("gradient", actual.gradients, expected.gradients, tolerance.gradient or of_outputs),
    ):
        for index, (one, other) in enumerate(zip(got, wanted, strict=True)):
            name = what if len(wanted) == 1 else f"{what} {index}"
            if tolerance.exact:
                assert_equal(name, one, other)
            else:
                assert_near(name, one, other, rtol, of_largest)


def assert_near(what: str, got: Tensor, wanted: Tensor, rtol: float, of_largest: float) -> None:
    """Raises AssertionError unless each element is within the bound of `Tolerance`."""
    finite = wanted[wanted.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    # Rounded to a type, and scaled and rounded again, a tiny result stands off by this much.
    numbers = torch.finfo(got.dtype)
    least = 2 * numbers.smallest_normal * numbers.eps
    torch.testing.assert_close(
        got.to(wanted.dtype),
        wanted,
        rtol=rtol,
        atol=of_largest * largest + least,
        equal_nan=True,
        msg=lambda message: f"{what} differs from the reference: {message}",
    )


def assert_equal(what: str, got: Tensor, wanted: Tensor) -> None:
    """Raises AssertionError unless every bit agrees, up to a nan's."""
    if _same_bits(got, wanted):
        return  # tenfold faster than to find out what would differ
    torch.testing.assert_close(
        got,
        wanted,
        rtol=0.0,
        atol=0.0,
        equal_nan=True,
        msg=lambda message: f"{what} differs from the reference: {message}",
    )
    if not torch.equal(got.signbit(), wanted.signbit()):
        raise AssertionError(f"{what} differs from the reference in the sign of a zero or nan")


def _same_bits(got: Tensor, wanted: Tensor) -> bool:
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(got.itemsize)
    if bits is None or got.dtype != wanted.dtype:
        return False
    return torch.equal(got.detach().view(bits), wanted.detach().view(bits))
