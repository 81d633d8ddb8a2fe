"""Every op of the case table: against its reference, and by the laws that any op must keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import regops.random
from regops.testing import Case, OpSpec, make_input, specs

KEY_SEED, KEY_OFFSET = 0x0123456789ABCDEF, 0xFEDCBA9876543210  # all words and both sign bits in use


def _cases(most: int | None = None, writable: bool = False) -> list[object]:
    """(spec, case) of every case with at most so many elements, each with memory of its own."""
    return [
        pytest.param(spec, case, id=f"{spec.name}-{case.name}")
        for spec in specs().values()
        for case in spec.cases
        if (most is None or torch.Size(case.shape).numel() <= most)
        and not (writable and case.layout == "expanded")
    ]


def _cases_by_dtype() -> list[object]:
    return [
        pytest.param(spec, case, dtype, id=f"{spec.name}-{case.name}-{dtype}".replace("torch.", ""))
        for spec in specs().values()
        for case in spec.cases
        for dtype in spec.dtypes
    ]


def _arguments(spec: OpSpec, case: Case, device: str = "cpu") -> dict[str, object]:
    if not spec.keyed:
        return dict(case.kwargs)
    return {**case.kwargs, "key": regops.random.key(KEY_SEED, KEY_OFFSET, device)}


def _assert_close(spec: OpSpec, actual: Tensor, expected: Tensor) -> None:
    tolerance = spec.tolerance[expected.dtype]
    torch.testing.assert_close(
        actual, expected, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True
    )
    if tolerance.rtol == tolerance.atol == 0:  # to the sign of zero
        assert torch.equal(actual.signbit(), expected.signbit())


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize(("spec", "case", "dtype"), _cases_by_dtype())
def test_forward_and_backward_match_reference(
    spec: OpSpec, case: Case, dtype: torch.dtype, device: str
) -> None:
    arguments = _arguments(spec, case, device)
    input = make_input(case.shape, dtype, device, case.layout).requires_grad_()
    expected_input = input.detach().clone().requires_grad_()
    output = spec.functional(input, **arguments)
    expected = spec.reference(expected_input, **arguments)
    assert output.stride() == torch.empty_like(input).stride()
    _assert_close(spec, output, expected)

    gradient = make_input(case.shape, dtype, device, seed=1)
    (actual_gradient,) = torch.autograd.grad(output, input, gradient)
    (expected_gradient,) = torch.autograd.grad(expected, expected_input, gradient)
    _assert_close(spec, actual_gradient, expected_gradient)


@pytest.mark.parametrize(("spec", "case"), _cases())
def test_result_does_not_depend_on_threads(spec: OpSpec, case: Case, threads: int) -> None:
    input = make_input(case.shape, torch.float32, layout=case.layout)
    output = spec.functional(input, **_arguments(spec, case))
    _assert_close(spec, output, spec.reference(input, **_arguments(spec, case)))


@pytest.mark.parametrize(("spec", "case"), _cases())
def test_input_is_not_written(spec: OpSpec, case: Case, device: str) -> None:
    input = make_input(case.shape, torch.float32, device, case.layout)
    before = input.clone()
    spec.functional(input, **_arguments(spec, case, device))
    assert torch.equal(input, before)
    assert input._version == 0 or case.layout in ("misaligned", "strided")


@pytest.mark.parametrize(("spec", "case"), _cases(most=150, writable=True))
def test_gradcheck_and_gradgradcheck(spec: OpSpec, case: Case, device: str) -> None:
    arguments = _arguments(spec, case, device)
    input = make_input(case.shape, torch.float64, device, case.layout).requires_grad_()

    def call(x: Tensor) -> Tensor:
        return spec.functional(x, **arguments)

    assert torch.autograd.gradcheck(call, input, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, input)


@pytest.mark.parametrize(("spec", "case"), _cases(most=2000, writable=True))
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(spec: OpSpec, case: Case, requires_grad: bool, device: str) -> None:
    arguments = _arguments(spec, case, device)
    for name in spec.schemas:
        leaf = make_input(case.shape, torch.float32, device, case.layout)
        leaf.requires_grad_(requires_grad)
        # An op in place refuses a leaf that requires grad.
        input = leaf.clone() if name.endswith("_") else leaf
        torch.library.opcheck(getattr(torch.ops.regops, name), (input, *arguments.values()))


@pytest.mark.parametrize(
    "name", ["channels_last", "transposed", "swapped_outer", "reversed", "misaligned", "strided"]
)
@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_layout_changes_no_value(spec: OpSpec, name: str, device: str) -> None:
    case = Case("layout", (2, 24, 9, 16), spec.cases[0].kwargs)
    arguments = _arguments(spec, case, device)
    plain = spec.functional(make_input(case.shape, torch.float32, device), **arguments)
    other = spec.functional(make_input(case.shape, torch.float32, device, name), **arguments)
    assert torch.equal(plain, other)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("spec", specs().values(), ids=specs())
def test_compiled_equals_eager(spec: OpSpec, dynamic: bool, device: str) -> None:
    torch._dynamo.reset()
    kwargs = spec.cases[0].kwargs

    def step(x: Tensor) -> Tensor:
        return spec.functional(spec.functional(x * 2, **kwargs) + 1, **kwargs)

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    for shape in ((33, 7), (40, 9)):
        input = make_input(shape, torch.float32, device).requires_grad_()
        results = []
        for function in (step, compiled):
            torch.manual_seed(5)
            output = function(input)
            (gradient,) = torch.autograd.grad(output.sum(), input)
            results.append((output, gradient, torch.rand(3)))  # and the same state afterwards
        for eager, after in zip(*results, strict=True):
            torch.testing.assert_close(after, eager, rtol=0, atol=0)


@pytest.mark.parametrize("spec", [s for s in specs().values() if s.keyed], ids=lambda s: s.name)
def test_forward_keeps_only_the_key(spec: OpSpec, device: str) -> None:
    saved: list[Tensor] = []
    input = make_input((1000,), torch.float32, device).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = spec.functional(input, **spec.cases[0].kwargs)
    assert sum(tensor.nbytes for tensor in saved) == 16
    output.sum().backward()
