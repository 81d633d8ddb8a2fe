"""A provider is right before it is timed.

regops is compared with its reference, under the key that it drew where it draws one; what is left
of an op without its regularization, with the reference that does not train. Providers with other
random numbers obey the op's law instead: a function beside the op's benchmark that says what
every right result has in common. Providers of an op without random numbers are compared with the
reference, to a tolerance that grants other libraries their roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import regops.random
from bench.providers import Call, Inputs, Point, upstream_gradient
from regops import _C
from regops.testing import Results, assert_close, reference_copies, results

SEED = 20110

Lists = list[list[Tensor]]

# Of a loss, besides the 1 that backward begins with: a power of 2, which rounds nothing.
_FACTOR = -0.25

# (what the provider offers, input, output, gradient of the output, gradient of every differentiated
# tensor, by name the op's arguments); raises AssertionError if no right implementation could give
# these.
Law = Callable[..., None]


@dataclass
class Verifier:
    """Raises AssertionError unless a provider's outputs and gradients are right.

    Attributes:
        point: The op, dtype, size and device.
        inputs: What every provider is called on.
        law: For providers whose random numbers are not the reference's.
    """

    point: Point
    inputs: Inputs
    law: Law | None
    _expected: Results | None = field(default=None, init=False)

    def __call__(self, name: str, call: Call) -> None:
        """Verifies a provider.

        Args:
            name: Of the provider.
            call: What it offers; exactly this is timed afterwards.
        """
        spec = self.point.spec
        torch.manual_seed(SEED)
        y = call(self.inputs.x)
        grad = upstream_gradient(y)
        upstream = torch.ones_like(y) if grad is None else grad
        gradients = self._gradients(y, upstream)
        if name in spec.ceilings:
            untrained = self._reference(upstream, training=False)
            tolerance = spec.tolerance[self.point.dtype]
            assert_close(tolerance, Results((y,), gradients, (upstream,)), untrained)
            return
        if spec.keyed and name != "regops":
            self._obeys_law(name, call, y.detach(), upstream, *gradients)
            return
        others = name != "regops" and spec.rival_tolerance
        tolerance = (others or spec.tolerance)[self.point.dtype]
        if self._expected is None or spec.keyed:
            self._expected = self._reference(upstream)
        expected = self._expected
        assert_close(tolerance, Results((y,), gradients, (upstream,)), expected)
        if grad is None:
            # Kernels may treat the 1 apart. What is linear in the upstream gradient needs no
            # second reference.
            y = call(self.inputs.x)
            gradients = self._gradients(y, _FACTOR * upstream)
            scaled = tuple(gradient * _FACTOR for gradient in expected.gradients)
            assert_close(
                tolerance,
                Results((y,), gradients, (upstream,)),
                Results(expected.outputs, scaled, (upstream,)),
            )
        if "inference" in self.point.directions:
            with torch.no_grad():
                y = call(self.inputs.x)
            assert_close(
                tolerance,
                Results((y,), (), (upstream,)),
                Results(expected.outputs, (), (upstream,)),
            )

    def _gradients(self, y: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, self.inputs.differentiated, upstream)

    def _obeys_law(
        self, name: str, call: Call, y: Tensor, grad: Tensor, *gradients: Tensor
    ) -> None:
        if self.law is None:
            raise AssertionError(f"no law says what is right for {name} of {self.point.spec.name}")
        self.law(call, self.inputs.x.detach(), y, grad, *gradients, **self.inputs.arguments)

    def _reference(self, upstream: Tensor, **options: Any) -> Results:
        spec = self.point.spec
        arguments = dict(self.inputs.arguments)
        if spec.keyed:
            torch.manual_seed(SEED)
            arguments["key"] = regops.random.new_key(self.inputs.x.device)
        x, copied = reference_copies(spec, self.inputs.x, arguments)
        return results(spec.reference, x, copied | options, upstream=(upstream,))


def verify_copy(copy: Call, source: Tensor) -> None:
    """Raises AssertionError unless the copy equals its source and is another tensor."""
    copied = copy(source)
    same = torch.equal(copied.view(torch.uint8), source.view(torch.uint8))
    if not same or copied.data_ptr() == source.data_ptr():
        raise AssertionError("the copy differs from its source")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


def verify_stream(written: Lists, read: Lists) -> None:
    """Raises AssertionError unless the stream rewrites all that it must."""
    before = [[tensor.clone() for tensor in tensors] for tensors in written]
    _C.read_write_(written, read)
    for tensors, old in zip(written, before, strict=True):
        for tensor, one in zip(tensors, old, strict=True):
            if not torch.equal(_bytes(tensor), ~_bytes(one)):
                raise AssertionError("the stream did not rewrite its tensors")
