"""Every optimizer step of the case table: against its reference, and by laws that any must keep.

Longer than other files since all laws share the ways to make and to compare a call.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import regops.functional as RF
import regops.reference
from regops import _C
from regops.testing import (
    Layout,
    StepCall,
    StepCase,
    StepSpec,
    Tolerance,
    assert_step_close,
    make_call,
    make_input,
    step_specs,
    step_tolerance,
)

EXACT = Tolerance(0.0, 0.0, "the same step of the same values")
SPECS = step_specs()
STEPS = 10

ALL = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
LAYOUTS: tuple[Layout, ...] = (
    "contiguous",
    "channels_last",
    "transposed",
    "reversed",
    "misaligned",
    "strided",
)


def _holds(case: StepCase, dtype: torch.dtype) -> bool:
    """Whether the type has the case: float64 keeps states and gradients in float64."""
    return dtype != torch.float64 or case.state_dtype is case.grad_dtype is None


def _cases(rounded: bool = False) -> list[object]:
    return [
        pytest.param(spec, case, id=f"{spec.name}-{case.name}")
        for spec in SPECS.values()
        for case in spec.cases
        if case.rounded or not rounded
    ]


def _cases_by_dtype() -> list[object]:
    return [
        pytest.param(spec, case, dtype, id=f"{spec.name}-{case.name}-{dtype}".replace("torch.", ""))
        for spec in SPECS.values()
        for case in spec.cases
        for dtype in spec.dtypes
        if _holds(case, dtype)
    ]


def _after(
    step: Callable[..., None],
    spec: StepSpec,
    case: StepCase,
    dtype: torch.dtype,
    device: str = "cpu",
    steps: int = STEPS,
) -> StepCall:
    """A call after so many steps, each of other gradients."""
    call = make_call(spec, case, dtype, device)
    for count in range(steps):
        call.new_gradients(count)
        call.run(step)
    return call


@functools.cache
def _reference_after(
    name: str, case_name: str, of_grid: bool, dtype: torch.dtype, device: str
) -> StepCall:
    """Once for all instruction sets."""
    spec = SPECS[name]
    case = next(c for c in (spec.grid if of_grid else spec.cases) if c.name == case_name)
    return _after(spec.reference, spec, case, dtype, device, steps=2 if of_grid else STEPS)


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize(("spec", "case", "dtype"), _cases_by_dtype())
def test_ten_steps_match_reference(
    spec: StepSpec, case: StepCase, dtype: torch.dtype, device: str
) -> None:
    actual = _after(spec.functional, spec, case, dtype, device)
    expected = _reference_after(spec.name, case.name, False, dtype, device)
    assert_step_close(step_tolerance(spec, case, dtype, device), actual, expected)
    counted = 0 if case.kwargs.get("found_inf") else STEPS
    assert all(step == counted for step in actual.state_steps)


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@ALL
def test_every_combination_matches_reference(
    spec: StepSpec, dtype: torch.dtype, device: str
) -> None:
    wrong = {}
    for case in spec.grid:
        if dtype == torch.float32 and case.kwargs["master"] != "none":
            continue  # it asks for nothing there
        try:
            assert_step_close(
                step_tolerance(spec, case, dtype, device),
                _after(spec.functional, spec, case, dtype, device, steps=2),
                _reference_after(spec.name, case.name, True, dtype, device),
            )
        except Exception as error:
            wrong[case.name] = error
    assert not wrong, f"{len(wrong)} of {len(spec.grid)} cases: {wrong}"


@pytest.mark.parametrize(("spec", "case"), _cases(rounded=True))
def test_result_does_not_depend_on_instruction_set(spec: StepSpec, case: StepCase) -> None:
    """To the bit also where it need not equal the reference."""
    before = _C.build_info()["cpu_capability"]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = []
        try:
            for name in _C.build_info()["cpu_capabilities"]:
                _C.set_cpu_capability(name)
                found.append(_after(spec.functional, spec, case, dtype, steps=2))
        finally:
            _C.set_cpu_capability(before)
        for other in found[1:]:
            assert_step_close(EXACT, other, found[0])


@pytest.mark.parametrize(("spec", "case"), _cases())
def test_result_does_not_depend_on_threads(spec: StepSpec, case: StepCase) -> None:
    # Many small tensors, and some of which each is work for several threads.
    shapes = ((3, 30001), (5, 13), (7,), (), (7,), (), (2, 24, 25, 33))
    case = dataclasses.replace(case, shapes=shapes)
    first = make_call(spec, case)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(first.copy())
            for _ in range(2):
                found[-1].run(spec.functional)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_step_close(EXACT, other, found[0])


# Every tensor that a step can have, random numbers of every use among them; (types of parameters
# and states, options).
LAYOUT_CASES: dict[str, tuple[torch.dtype, torch.dtype | None, dict[str, Any]]] = {
    "float32": (torch.float32, None, {"max_norm": 1.5, "ema_decay": 0.9, "grad_scale": 4.0}),
    "float32-states": (torch.float32, torch.bfloat16, {"gradient_noise": (0.1, 0.5)}),
    "float64": (torch.float64, None, {"clip_value": 0.5, "zero_grad": True}),
    "fp32-master": (torch.bfloat16, None, {"master": "fp32", "l1": 0.3}),
    "kahan": (torch.float16, None, {"master": "kahan", "l2": 0.1, "clip_value": 0.5}),
    "stochastic": (
        torch.bfloat16,
        torch.bfloat16,
        {"master": "stochastic", "gradient_noise": (0.1, 0.5), "max_norm": 1.5, "ema_decay": 0.9},
    ),
}


@pytest.mark.parametrize("case_name", LAYOUT_CASES)
@ALL
def test_layouts_change_no_value(spec: StepSpec, case_name: str, device: str) -> None:
    """Each triple of layouts of parameter, gradient and state, to the bit.

    torch's fused step on the CPU is silently wrong where gradient and parameter differ.
    """
    dtype, state_dtype, options = LAYOUT_CASES[case_name]
    if spec.name == "sgdw_step_":
        options = {**options, "momentum": 0.9}
    shapes = ((3, 8, 9, 5), (2, 3, 4, 5))  # more than a block, less than one
    wrong, plain = [], None
    for layouts in itertools.product(LAYOUTS, LAYOUTS, LAYOUTS):
        case = StepCase("", shapes, options, (), None, state_dtype, layouts)
        call = _after(spec.functional, spec, case, dtype, device, steps=2)
        plain = plain or call  # the first of all is all contiguous
        try:
            assert_step_close(EXACT, call, plain)
        except AssertionError as error:
            wrong.append((layouts, str(error)))
    assert not wrong, f"{len(wrong)} triples of layouts, the first: {wrong[0]}"


@ALL
def test_gradient_may_be_expanded(spec: StepSpec, device: str) -> None:
    """As that of a sum is; it is only read."""
    case = StepCase("", ((6, 40), (6, 600)), {"lr": 0.1})
    if spec.name == "sgdw_step_":
        case = dataclasses.replace(case, kwargs={"momentum": 0.5})
    expanded, plain = make_call(spec, case, device=device), make_call(spec, case, device=device)
    expanded.grads = [make_input((6, n), torch.float32, device, "expanded") for n in (40, 600)]
    plain.grads = [grad.contiguous() for grad in expanded.grads]
    for call in (expanded, plain):
        call.run(spec.functional)
    assert_step_close(EXACT, expanded, plain)


@pytest.mark.parametrize(("spec", "case"), _cases())
def test_versions_of_what_is_written_are_counted_up(
    spec: StepSpec, case: StepCase, device: str
) -> None:
    """So that autograd sees it; and of nothing else."""
    call = make_call(spec, case, device=device)
    call.kwargs["lr"] = torch.tensor(0.1, device=device)
    written = call.tensors()
    if not case.kwargs.get("zero_grad") and case.kwargs.get("grad_scale") is None:
        written = {name: one for name, one in written.items() if not name.startswith("grad")}
    others = [value for value in call.kwargs.values() if isinstance(value, Tensor)]
    if not any(name.startswith("grad") for name in written):
        others += call.grads
    before = {name: one._version for name, one in written.items()}
    before_others = [(one._version, one.clone()) for one in others]
    call.run(spec.functional)
    if not case.kwargs.get("found_inf"):
        stale = [name for name, one in written.items() if one._version <= before[name]]
        assert not stale
    for one, (version, values) in zip(others, before_others, strict=True):
        assert one._version == version
        assert torch.equal(one, values)


def _dispatcher_arguments(
    spec: StepSpec, call: StepCall, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, ...]:
    """What the public function hands to the op: the tensors that `call` has."""
    recorded: list[tuple[Any, ...]] = []
    with monkeypatch.context() as patch:
        patch.setattr(_C, spec.name, lambda *arguments: recorded.append(arguments))
        call.run(spec.functional)
    return recorded[0]


def _cases_of_other_tensors() -> list[object]:
    """One case for each set of tensors that a call can have: the first of it."""
    kinds = {"ema_decay", "zero_grad", "grad_scale", "found_inf", "max_grad_norm", "streams"}
    first: dict[object, object] = {}
    for spec in SPECS.values():
        for case in spec.cases:
            tensors = frozenset(kinds & case.kwargs.keys())
            noise, master = "gradient_noise" in case.kwargs, case.kwargs.get("master")
            types = (case.state_dtype, case.grad_dtype, case.layouts[0] == case.layouts[1])
            found = pytest.param(spec, case, id=f"{spec.name}-{case.name}")
            first.setdefault((spec.name, case.empty, tensors, noise, master, types), found)
    return list(first.values())


@pytest.mark.parametrize(("spec", "case"), _cases_of_other_tensors())
def test_opcheck(
    spec: StepSpec, case: StepCase, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = dataclasses.replace(case, shapes=case.shapes[:6])
    for name in ("streams", "first_indices"):
        if name in case.kwargs:
            shorter = {**case.kwargs, name: case.kwargs[name][:6]}
            case = dataclasses.replace(case, kwargs=shorter)
    call = make_call(spec, case, torch.bfloat16, device)
    call.kwargs["lr"] = torch.tensor(0.1, dtype=torch.float64, device=device)
    arguments = _dispatcher_arguments(spec, call, monkeypatch)
    torch.library.opcheck(getattr(torch.ops.regops, spec.name), arguments)


def test_opcheck_of_the_norm(device: str) -> None:
    for shapes in ([(5, 13), (), (0,)], [(3,)]):
        grads = [make_input(shape, torch.float32, device) for shape in shapes]
        torch.library.opcheck(torch.ops.regops.grad_norm, (grads,))


@ALL
def test_dispatcher_op_equals_function(
    spec: StepSpec, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = spec.cases[0]
    ours, ops = make_call(spec, case, device=device), make_call(spec, case, device=device)
    for call in (ours, ops):
        call.kwargs["lr"] = torch.tensor(0.1, device=device)
    ours.run(spec.functional)
    getattr(torch.ops.regops, spec.name)(*_dispatcher_arguments(spec, ops, monkeypatch))
    assert_step_close(EXACT, ops, ours)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_grad_norm": 0.5, "zero_grad": True}, {"gradient_noise": (0.1, 0.5), "l1": 0.1}],
    ids=["plain", "clip", "noise"],
)
@ALL
def test_compiled_equals_eager(spec: StepSpec, options: dict[str, Any], device: str) -> None:
    """In one graph; another learning rate, in a tensor, compiles nothing anew."""
    torch._dynamo.reset()
    case = StepCase("", ((5, 13), (7,), ()), options, ("max_exp_avg_sqs", "momentum_buffers"))
    eager, compiled = make_call(spec, case, device=device), make_call(spec, case, device=device)

    def step(params: Any, grads: Any, states: Any, steps: Any, lr: Tensor) -> Any:
        doubled = [grad * 2 for grad in grads]
        spec.functional(params, doubled, *states, steps, lr=lr, **key, **options)
        return [param + 1 for param in params], doubled

    key = {name: value for name, value in eager.kwargs.items() if name == "key"}
    fast = torch.compile(step, fullgraph=True)
    for count, rate in enumerate((0.1, 0.05, 0.2)):
        lr = torch.tensor(rate, device=device)
        found = []
        with torch._dynamo.config.patch(error_on_recompile=count > 0):
            for call, function in ((eager, step), (compiled, fast)):
                call.new_gradients(count)
                states = (call.params, call.grads, call.states, call.state_steps)
                found.append(function(*states, lr))
        assert_step_close(EXACT, compiled, eager)
        for one, other in zip(*found, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@ALL
def test_learning_rate_may_be_a_tensor(spec: StepSpec, device: str) -> None:
    """Of any shape with one element, float32 or float64; its value counts as the number's does."""
    for shape, dtype in itertools.product([(), (1,)], [torch.float32, torch.float64]):
        case = dataclasses.replace(spec.cases[0], kwargs={**spec.cases[0].kwargs, "lr": 0.125})
        number, tensor = make_call(spec, case, device=device), make_call(spec, case, device=device)
        tensor.kwargs["lr"] = torch.full(shape, 0.125, dtype=dtype, device=device)
        for call in (number, tensor):
            call.run(spec.functional)
        assert_step_close(EXACT, tensor, number)


@pytest.mark.parametrize(("spec", "case"), _cases())
def test_meta_tensors_pass_and_are_checked(spec: StepSpec, case: StepCase) -> None:
    call = make_call(spec, case, torch.bfloat16)

    def to_meta(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to("meta")
        return [to_meta(one) for one in value] if isinstance(value, list) else value

    meta = StepCall(
        to_meta(call.params),
        to_meta(call.grads),
        to_meta(call.states),
        to_meta(call.state_steps),
        {name: to_meta(value) for name, value in call.kwargs.items()},
    )
    meta.run(spec.functional)
    meta.grads[0] = torch.empty(9, device="meta")
    with pytest.raises(ValueError, match="grads"):
        meta.run(spec.functional)


@ALL
def test_fake_tensors_pass(spec: StepSpec) -> None:
    with FakeTensorMode():
        call = make_call(spec, dataclasses.replace(spec.cases[0], shapes=((3, 4), (5,))))
        call.run(spec.functional)
        assert RF.grad_norm(call.grads).shape == ()


@ALL
def test_no_parameters_are_no_work(spec: StepSpec) -> None:
    call = make_call(spec, StepCase("", ()))
    call.run(spec.functional)
    call.kwargs["max_grad_norm"] = 1.0
    call.run(spec.functional)


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_norm_matches_reference(dtype: torch.dtype, layout: Layout, device: str) -> None:
    """Sums in float64: within a few of its ulp, in any order."""
    shapes = [(2, 24, 9, 16), (3, 3, 3, 3), (1, 1, 1, 1)]
    grads = [make_input(shape, dtype, device, layout, seed=k) for k, shape in enumerate(shapes)]
    grads += [make_input(shape, dtype, device) for shape in [(), (0,), (100001,)]]
    norm = RF.grad_norm(grads)
    assert (norm.dtype, norm.shape, norm.device.type) == (torch.float64, (), device)
    torch.testing.assert_close(norm, regops.reference.grad_norm(grads), rtol=1e-14, atol=0)


def test_norm_does_not_depend_on_threads() -> None:
    grads = [make_input(shape, torch.float32) for shape in [(3, 70001), (7,), (500000,)]]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(RF.grad_norm(grads))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_norm_of_what_overflows_its_own_type() -> None:
    """Where the norm in float16 is infinite."""
    assert RF.grad_norm([torch.full((256,), 60000.0, dtype=torch.float16)]) == 16 * 60000
    assert RF.grad_norm([]) == 0
    assert RF.grad_norm([torch.tensor([1.0, torch.inf])]).isinf()
    assert RF.grad_norm([torch.tensor([1.0, torch.nan])]).isnan()
