"""One optimizer step by the CUDA kernels: interpreted, and as it must be."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regops.reference.adamw import adamw_step_
from regops.reference.sgdw import sgdw_step_
from tests.cuda_library import call, interpreted
from tests.ptx import Device

DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
MASTER_CODES = {"none": 0, "fp32": 1, "kahan": 2, "stochastic": 3}
STORAGE = {8: torch.int64, 4: torch.int32, 2: torch.int16}
OPERANDS = ("param", "grad", "first", "second", "largest", "master", "ema")
MAX_DIMS = 12


class _Options(ctypes.Structure):
    """regops::StepOptions."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("rule", "param", "grad", "state", "master")),
        *((name, ctypes.c_double) for name in ("beta1", "beta2", "eps", "momentum", "dampening")),
        ("nesterov", ctypes.c_bool),
        *((name, ctypes.c_double) for name in ("weight_decay", "l1", "l2")),
        ("maximize", ctypes.c_bool),
        ("max_grad_norm", ctypes.c_double),
        ("clip_value", ctypes.c_double),
        ("noise_variance", ctypes.c_double),
        ("noise_decay", ctypes.c_double),
        ("max_norm", ctypes.c_double),
        ("ema_decay", ctypes.c_double),
        ("zero_grad", ctypes.c_bool),
    )


class _Tensors(ctypes.Structure):
    """regops::StepTensors."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*OPERANDS, "step")),
        ("numel", ctypes.c_int64),
        ("row", ctypes.c_int64),
        ("stream", ctypes.c_uint64),
        ("first_index", ctypes.c_uint64),
    )


class _Scalars(ctypes.Structure):
    """regops::StepScalars; only its size counts."""

    _fields_ = (
        ("skip", ctypes.c_bool),
        ("values", ctypes.c_double * 8),
        ("keys", 8 * ctypes.c_uint64),
    )


class _Layout(ctypes.Structure):
    """regops::StepLayout."""

    _fields_ = (
        ("dims", ctypes.c_int),
        ("size", ctypes.c_int64 * MAX_DIMS),
        ("stride", ctypes.c_int64 * MAX_DIMS * len(OPERANDS)),
    )


class _Inputs(ctypes.Structure):
    """regops::CudaStepInputs."""

    _fields_ = (
        ("lr", ctypes.c_double),
        ("lr_device", ctypes.c_void_p),
        ("lr_is_float64", ctypes.c_bool),
        ("grad_norm", ctypes.c_void_p),
        ("grad_scale", ctypes.c_void_p),
        ("found_inf", ctypes.c_void_p),
        ("seed", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("key_device", ctypes.c_void_p),
    )


@dataclass
class Problem:
    """One step.

    Attributes:
        rule: "adamw" or "sgdw".
        params: as of the op; so are the other lists.
        states: the rule's lists: first, second and largest, as many as there are.
        hyper: arguments of the rule, lr included.
        options: those of `regops.reference.optimizer_step.Options` but masters and emas.
        key_on_device: whether the kernels read the key from device memory.
    """

    rule: str
    params: list[Tensor]
    grads: list[Tensor]
    states: list[list[Tensor]]
    steps: list[Tensor]
    masters: list[Tensor] = field(default_factory=list)
    emas: list[Tensor] = field(default_factory=list)
    hyper: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    key_on_device: bool = False

    def operands(self, k: int) -> dict[str, Tensor]:
        """Parameter k and what belongs to it, by name."""
        lists = {"param": self.params, "grad": self.grads}
        lists |= dict(zip(OPERANDS[2:5], self.states, strict=False))
        lists |= {"master": self.masters, "ema": self.emas}
        return {name: tensors[k] for name, tensors in lists.items() if tensors}


def step_expected(problem: Problem) -> None:
    """The step by the oracle."""
    options = problem.options | {"masters": problem.masters, "emas": problem.emas}
    step: Callable[..., None] = adamw_step_ if problem.rule == "adamw" else sgdw_step_
    count = 3 if problem.rule == "adamw" else 1
    states: list[list[Tensor]] = [*problem.states, *[[]] * (count - len(problem.states))]
    step(problem.params, problem.grads, *states, problem.steps, **problem.hyper, **options)


class Memory:
    """Tensors as device memory."""

    def __init__(self, device: Device) -> None:
        """Starts with nothing registered."""
        self.device = device

    def address(self, tensor: Tensor | None) -> int | None:
        """Registers the tensor's whole storage; a tensor's kernels may touch no more than that."""
        if tensor is None:
            return None
        storage = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage())
        self.device.register(storage.view(STORAGE[tensor.element_size()]).numpy())
        return tensor.data_ptr()


def _options(problem: Problem) -> _Options:
    options, hyper = problem.options, {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8} | problem.hyper
    variance, decay = options.get("gradient_noise") or (0.0, 0.0)
    code = {name: DTYPE_CODES[tensor.dtype] for name, tensor in problem.operands(0).items()}
    numbers = ("momentum", "dampening", "nesterov", "weight_decay")
    limits = ("max_grad_norm", "clip_value", "max_norm")
    return _Options(
        rule=int(problem.rule == "sgdw"),
        param=code["param"],
        grad=code["grad"],
        state=code.get("first", min(code["param"], 1)),
        master=MASTER_CODES[options.get("master", "none")],
        **{name: hyper[name] for name in ("beta1", "beta2", "eps")},
        **{name: hyper.get(name, 0) for name in numbers},
        **{name: options.get(name, 0) for name in ("l1", "l2", "maximize", "zero_grad")},
        **{name: options.get(name, math.inf) for name in limits},
        noise_variance=variance,
        noise_decay=decay,
        ema_decay=options.get("ema_decay", 0.0),
    )


def _tensors(problem: Problem, memory: Memory) -> ctypes.Array[_Tensors]:
    count = len(problem.params)
    streams = problem.options.get("streams") or range(count)
    firsts = problem.options.get("first_indices") or [0] * count
    tensors = (_Tensors * count)()
    for k, param in enumerate(problem.params):
        addresses = {name: memory.address(x) for name, x in problem.operands(k).items()}
        tensors[k] = _Tensors(
            **addresses,
            step=memory.address(problem.steps[k]),
            numel=param.numel(),
            row=param[0].numel() if param.dim() >= 2 and len(param) else 0,
            stream=streams[k],
            first_index=firsts[k],
        )
    return tensors


def _inputs(problem: Problem, memory: Memory) -> _Inputs:
    inputs = _Inputs()
    lr = problem.hyper["lr"]
    if isinstance(lr, Tensor):
        inputs.lr_device = memory.address(lr)
        inputs.lr_is_float64 = lr.dtype == torch.float64
    else:
        inputs.lr = lr
    for name in ("grad_norm", "grad_scale", "found_inf"):
        setattr(inputs, name, memory.address(problem.options.get(name)))
    key = problem.options.get("key")
    if key is not None and problem.key_on_device:
        inputs.key_device = memory.address(key)
    elif key is not None:
        inputs.seed, inputs.offset = key.tolist()
    return inputs


def _layout(operands: dict[str, Tensor]) -> _Layout:
    layout = _Layout(dims=operands["param"].dim())
    layout.size[: layout.dims] = operands["param"].shape
    for row, name in zip(layout.stride, OPERANDS, strict=True):
        if name in operands:
            row[: layout.dims] = operands[name].stride()
    return layout


def step_interpreted(
    problem: Problem, device: Device | None = None, strided: bool = False
) -> set[str]:
    """The step by the kernels; returns which were launched."""
    device = interpreted() if device is None else device
    memory = Memory(device)
    options, tensors = _options(problem), _tensors(problem, memory)
    inputs, count = _inputs(problem, memory), len(problem.params)
    scalars = torch.full((count, ctypes.sizeof(_Scalars) // 8), -1, dtype=torch.int64)
    common = ctypes.byref(inputs), ctypes.c_void_p(memory.address(scalars)), None
    if strided:
        assert count == 1
        of_kind: Any = ctypes.byref(_layout(problem.operands(0)))
    else:
        of_kind = ctypes.c_int64(count)
    launcher = "regops_optimizer_step_strided_cuda" if strided else "regops_optimizer_step_cuda"
    call(device, launcher, ctypes.byref(options), tensors, of_kind, *common)
    return device.launched
