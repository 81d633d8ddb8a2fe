"""Every op of the case table: against its reference, and by the laws that any op must keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regops.random
from regops.testing import (
    Case,
    Layout,
    OpSpec,
    Results,
    Tolerance,
    assert_close,
    differentiated,
    make_input,
    outputs_of,
    reference_copies,
    results,
    specs,
)

KEY_SEED, KEY_OFFSET = 0x0123456789ABCDEF, 0xFEDCBA9876543210  # all words and both sign bits in use
EXACT = Tolerance(0.0, 0.0, "the same op on the same values")

ALL = pytest.mark.parametrize("spec", specs().values(), ids=specs())


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


def _layouts() -> list[object]:
    layouts: tuple[Layout, ...] = (
        "channels_last",
        "transposed",
        "swapped_outer",
        "reversed",
        "misaligned",
        "strided",
    )
    return [
        pytest.param(spec, layout, id=f"{spec.name}-{layout}")
        for spec in specs().values()
        for layout in layouts
        if layout != "channels_last" or len(spec.layout_shape) == 4
    ]


def _opchecked() -> list[object]:
    """(spec, case) of every case that opcheck, which takes a second or so, is run on."""
    return [
        pytest.param(spec, case, id=f"{spec.name}-{case.name}")
        for spec in specs().values()
        for case in spec.cases
        if spec.opcheck_cases is None or case.name in spec.opcheck_cases
        if torch.Size(case.shape).numel() <= 2000 and case.layout != "expanded"
    ]


def _arguments(
    spec: OpSpec, case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    arguments = spec.arguments(case, dtype, device)
    if spec.keyed:
        arguments["key"] = regops.random.key(KEY_SEED, KEY_OFFSET, device)
    return arguments


def _check_against_reference(spec: OpSpec, case: Case, dtype: torch.dtype, device: str) -> Results:
    arguments = _arguments(spec, case, device, dtype)
    input = make_input(case.shape, dtype, device, case.layout).requires_grad_()
    actual = results(spec.functional, input, arguments)
    expected = results(
        spec.reference, *reference_copies(spec, input, arguments), upstream=actual.upstream
    )
    assert_close(spec.tolerance[dtype], actual, expected)
    # Of this type the reference may be far less precise, but it knows what the results are.
    for got, wanted in zip(
        actual.outputs, outputs_of(spec.reference(input, **arguments)), strict=True
    ):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    for tensor, gradient in zip(differentiated(input, arguments), actual.gradients, strict=True):
        assert (gradient.dtype, gradient.shape) == (tensor.dtype, tensor.shape)
    return actual


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize(("spec", "case", "dtype"), _cases_by_dtype())
def test_forward_and_backward_match_reference(
    spec: OpSpec, case: Case, dtype: torch.dtype, device: str
) -> None:
    actual = _check_against_reference(spec, case, dtype, device)
    if spec.elementwise:
        input = make_input(case.shape, dtype, device, case.layout)
        assert actual.outputs[0].stride() == torch.empty_like(input).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", [s for s in specs().values() if s.grid], ids=lambda s: s.name)
def test_every_combination_matches_reference(spec: OpSpec, dtype: torch.dtype, device: str) -> None:
    wrong = {}
    for case in spec.grid:
        try:
            _check_against_reference(spec, case, dtype, device)
        except Exception as error:
            wrong[case.name] = error
    assert not wrong, f"{len(wrong)} of {len(spec.grid)} cases: {wrong}"


@pytest.mark.parametrize(("spec", "case"), _cases())
def test_result_does_not_depend_on_threads(spec: OpSpec, case: Case, threads: int) -> None:
    arguments = _arguments(spec, case)
    input = make_input(case.shape, torch.float32, layout=case.layout).requires_grad_()
    several = results(spec.functional, input, arguments)
    torch.set_num_threads(1)  # the fixture resets it
    alone = results(spec.functional, input, arguments)
    assert_close(EXACT if spec.reproducible else spec.tolerance[input.dtype], several, alone)


@pytest.mark.parametrize(("spec", "case"), _cases())
def test_input_is_not_written(spec: OpSpec, case: Case, device: str) -> None:
    arguments = _arguments(spec, case, device)
    input = make_input(case.shape, torch.float32, device, case.layout)
    tensors = [input, *(value for value in arguments.values() if isinstance(value, Tensor))]
    before = [(tensor.clone(), tensor._version) for tensor in tensors]
    spec.functional(input, **arguments)
    spec.functional(input.detach().requires_grad_(), **arguments)
    for tensor, (values, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, values)
        assert tensor._version == version


@pytest.mark.parametrize(("spec", "case"), _cases(most=150, writable=True))
def test_gradcheck_and_gradgradcheck(spec: OpSpec, case: Case, device: str) -> None:
    arguments = _arguments(spec, case, device, torch.float64)
    input = make_input(case.shape, torch.float64, device, case.layout).requires_grad_()
    learned = [name for name, value in arguments.items() if getattr(value, "requires_grad", False)]

    def call(x: Tensor, *others: Tensor) -> Any:
        return spec.functional(x, **{**arguments, **dict(zip(learned, others, strict=True))})

    inputs = differentiated(input, arguments)
    if sum(tensor.numel() for tensor in inputs) > 150:
        pytest.skip("too many elements for difference quotients of each")
    if not all(output.isfinite().all() for output in outputs_of(call(*inputs))):
        pytest.skip("nan has no difference quotient")
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    # Along random directions: all pairs of directions would take a minute a case.
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize(("spec", "case"), _opchecked())
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(spec: OpSpec, case: Case, requires_grad: bool, device: str) -> None:
    arguments = _arguments(spec, case, device)
    for name in spec.schemas:
        leaf = make_input(case.shape, torch.float32, device, case.layout)
        leaf.requires_grad_(requires_grad)
        # An op in place refuses a leaf that requires grad.
        input = leaf.clone() if name.endswith("_") else leaf
        op = getattr(torch.ops.regops, name).default
        torch.library.opcheck(op, spec.opcheck(name, input, arguments))


@pytest.mark.parametrize(("spec", "layout"), _layouts())
def test_layout_changes_no_value(spec: OpSpec, layout: Layout, device: str) -> None:
    case = Case("layout", spec.layout_shape, spec.cases[0].kwargs, layout)
    if not spec.elementwise:  # sums in another order
        _check_against_reference(spec, case, torch.float32, device)
        return
    arguments = _arguments(spec, case, device)
    plain = spec.functional(make_input(case.shape, torch.float32, device), **arguments)
    other = spec.functional(make_input(case.shape, torch.float32, device, layout), **arguments)
    assert torch.equal(plain, other)


@pytest.mark.parametrize("dynamic", [False, True])
@ALL
def test_compiled_equals_eager(spec: OpSpec, dynamic: bool, device: str) -> None:
    torch._dynamo.reset()

    def step(x: Tensor, **arguments: Any) -> Any:
        once = spec.functional(x * 2, **arguments)
        return spec.functional(once + 1, **arguments) if spec.elementwise else once

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    for shape in ((33, 7), (40, 9)):
        input = make_input(shape, torch.float32, device).requires_grad_()
        arguments = spec.arguments(Case("", shape, spec.cases[0].kwargs), input.dtype, device)
        found, states = [], []
        for function in (step, compiled):
            torch.manual_seed(5)
            found.append(results(function, input, arguments))
            states.append(torch.rand(3))
        eager, after = found
        assert_close(spec.tolerance[input.dtype], after, eager)
        assert torch.equal(*states)


@pytest.mark.parametrize("spec", [s for s in specs().values() if s.keyed], ids=lambda s: s.name)
def test_forward_keeps_only_the_key(spec: OpSpec, device: str) -> None:
    saved: list[Tensor] = []
    case = Case("", (1000,), spec.cases[0].kwargs)
    arguments = spec.arguments(case, torch.float32, device)
    input = make_input(case.shape, torch.float32, device).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = spec.functional(input, **arguments)
    # What the caller holds anyway costs nothing.
    own = {tensor.data_ptr() for tensor in differentiated(input, arguments)}
    assert sum(tensor.nbytes for tensor in saved if tensor.data_ptr() not in own) == 16
    output.sum().backward()
