"""One call of the CUDA kernels of cross-entropy: interpreted, and as it must be."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import regops.reference
from regops.reference.cross_entropy import smoothed
from tests.cuda_library import call, interpreted
from tests.ptx import Device

DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
STORAGE = {8: torch.int64, 4: torch.int32, 2: torch.int16}
# What gradients are filled with before: a kernel that leaves one out, or writes beside its rows,
# shows.
UNWRITTEN = 77.0


class _Strides(ctypes.Structure):
    _fields_ = (
        ("outer", ctypes.c_int64),
        ("classes", ctypes.c_int64),
        ("inner", ctypes.c_int64),
    )


class Call(ctypes.Structure):
    """regops::CrossEntropyCall."""

    _fields_ = (
        ("dtype", ctypes.c_int),
        ("outer", ctypes.c_int64),
        ("classes", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("input", ctypes.c_void_p),
        ("input_strides", _Strides),
        ("gradient", ctypes.c_void_p),
        ("gradient_strides", _Strides),
        ("target", ctypes.c_void_p),
        ("target_b", ctypes.c_void_p),
        ("lam", ctypes.c_void_p),
        ("rows_per_lam", ctypes.c_int64),
        ("ignore_index", ctypes.c_int64),
        ("probability_dtype", ctypes.c_int),
        ("probability", ctypes.c_void_p),
        ("probability_gradient", ctypes.c_void_p),
        ("probability_strides", _Strides),
        ("weight", ctypes.c_void_p),
        ("totals", ctypes.c_void_p),
        ("upstream", ctypes.c_void_p),
        ("upstream_stride", ctypes.c_int64),
        ("upstream_lse", ctypes.c_void_p),
        ("keep", ctypes.c_double),
        ("off", ctypes.c_double),
        ("z_loss", ctypes.c_double),
        ("entropy_weight", ctypes.c_double),
        ("loss", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("stream", ctypes.c_bool),
    )


@dataclass
class Problem:
    """One call: arguments as those of `regops.functional.cross_entropy`, and how it is to run.

    Attributes:
        input: (N, C, ...), of any strides.
        target: (N, ...) of classes, or of input's shape.
        gradient: "new", "inplace" or "none".
        gradient_like: a tensor with the strides that the gradient has; by default input's.
        upstream: of the loss; a 0-d tensor or one per row.
        upstream_lse: of lse, one per row.
        hidden: how many elements at the end of input's storage no kernel may touch.
    """

    input: Tensor
    target: Tensor
    weight: Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    smoothing: str = "uniform"
    z_loss: float = 0.0
    entropy_weight: float = 0.0
    target_b: Tensor | None = None
    lam: Tensor | None = None
    mean: bool = True
    num_items: float | None = None
    gradient: str = "new"
    gradient_like: Tensor | None = None
    probability_gradient: bool = False
    upstream: Tensor | None = None
    upstream_lse: Tensor | None = None
    wants_lse: bool = True
    hidden: int = 0

    @property
    def real(self) -> torch.dtype:
        """What losses and sums are in."""
        return torch.promote_types(self.input.dtype, torch.float32)


@dataclass
class Results:
    """What the kernels gave, or should: absent where not asked for."""

    divisor: float
    loss: Tensor
    total: float
    lse: Tensor | None = None
    gradient: Tensor | None = None
    probability_gradient: Tensor | None = None
    launched: set[str] = field(default_factory=set)


def rows_of(tensor: Tensor) -> tuple[int, int, int]:
    """(outer, classes, inner) of (N, C, ...)."""
    return tensor.shape[0], tensor.shape[1], math.prod(tensor.shape[2:])


def _strides(tensor: Tensor) -> _Strides:
    # Trailing dimensions of tests lie as one.
    inner = tensor.stride(-1) if tensor.dim() > 2 else 1
    return _Strides(tensor.stride(0), tensor.stride(1), inner)


class _Memory:
    """Tensors as device memory."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def whole(self, tensor: Tensor) -> np.ndarray:
        storage = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage())
        return storage.view(STORAGE[tensor.element_size()]).numpy()

    def address(self, tensor: Tensor | None, writable: bool = False, hidden: int = 0) -> int | None:
        if tensor is None:
            return None
        whole = self.whole(tensor)
        self.device.register(whole[: whole.size - hidden], writable)
        return tensor.data_ptr()


def like(tensor: Tensor) -> Tensor:
    """A tensor of the same strides, gaps and offset, filled with UNWRITTEN."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    storage = torch.full((size,), UNWRITTEN, dtype=tensor.dtype)
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def run(problem: Problem, device: Device | None = None) -> Results:
    """Prepares, calls and adds up, in the interpreter."""
    device = interpreted() if device is None else device
    memory = _Memory(device)
    x, real = problem.input, problem.real
    outer, classes, inner = rows_of(x)
    by_probability = problem.target.is_floating_point()
    keep, off = smoothed(problem.label_smoothing, problem.smoothing, classes)
    totals = torch.full((2,), UNWRITTEN, dtype=real)
    loss = torch.full((outer * inner,), UNWRITTEN, dtype=real)
    lse = torch.full_like(loss, UNWRITTEN) if problem.wants_lse else None
    gradient = None
    if problem.gradient == "inplace":
        gradient = x
    elif problem.gradient == "new":
        gradient = like(x if problem.gradient_like is None else problem.gradient_like)
    of_probability = like(problem.target) if problem.probability_gradient else None

    arguments = Call(
        dtype=DTYPE_CODES[x.dtype],
        outer=outer,
        classes=classes,
        inner=inner,
        input=memory.address(x, problem.gradient == "inplace", problem.hidden),
        input_strides=_strides(x),
        gradient=memory.address(gradient, writable=True),
        gradient_strides=_strides(x if gradient is None else gradient),
        ignore_index=problem.ignore_index,
        weight=memory.address(problem.weight),
        upstream=memory.address(problem.upstream),
        upstream_stride=int(problem.upstream is not None and problem.upstream.dim() > 0),
        upstream_lse=memory.address(problem.upstream_lse),
        keep=keep,
        off=off,
        z_loss=problem.z_loss,
        entropy_weight=problem.entropy_weight,
        loss=memory.address(loss, writable=True),
        lse=memory.address(lse, writable=True),
    )
    if by_probability:
        arguments.probability_dtype = DTYPE_CODES[problem.target.dtype]
        arguments.probability = memory.address(problem.target)
        arguments.probability_gradient = memory.address(of_probability, writable=True)
        arguments.probability_strides = _strides(problem.target)
    else:
        arguments.target = memory.address(problem.target)
        arguments.target_b = memory.address(problem.target_b)
        arguments.lam = memory.address(problem.lam)
        if problem.lam is not None:
            arguments.rows_per_lam = outer * inner // problem.lam.numel()

    items = None
    if problem.num_items is not None:
        items = torch.tensor([problem.num_items], dtype=real)
    call(
        device,
        "regops_cross_entropy_prepare_cuda",
        ctypes.byref(arguments),
        ctypes.c_bool(problem.mean),
        ctypes.c_void_p(memory.address(items)),
        ctypes.c_void_p(memory.address(totals, writable=True)),
        None,
    )
    arguments.totals = totals.data_ptr()
    call(device, "regops_cross_entropy_cuda", ctypes.byref(arguments), None)
    total = torch.full((1,), UNWRITTEN, dtype=real)
    call(
        device,
        "regops_cross_entropy_total_cuda",
        ctypes.byref(arguments),
        ctypes.c_void_p(memory.address(total, writable=True)),
        None,
    )
    return Results(
        divisor=totals[0].item(),
        loss=loss,
        total=total.item(),
        lse=lse,
        gradient=gradient,
        probability_gradient=of_probability,
        launched=device.launched,
    )


def _divisor(problem: Problem, x: Tensor, target: Tensor, kwargs: dict[str, Any]) -> float:
    """What the oracle divides by: its sum over its mean, of logits for which no loss is 0."""
    if not problem.mean:
        return 1.0
    if problem.num_items is not None:
        return problem.num_items
    kwargs = kwargs | {"z_loss": 1.0, "entropy_weight": 0.0}
    total, mean = (
        regops.reference.cross_entropy(torch.ones_like(x), target, reduction=reduction, **kwargs)
        for reduction in ("sum", "mean")
    )
    return (total / mean).item() if mean == mean else 0.0


def expected(problem: Problem) -> Results:
    """The same from the oracle, in float64."""
    x = problem.input.detach().double().requires_grad_()
    target = problem.target
    if target.is_floating_point():
        target = target.detach().double().requires_grad_()
    names = ("ignore_index", "label_smoothing", "smoothing", "z_loss", "entropy_weight")
    kwargs: dict[str, Any] = {name: getattr(problem, name) for name in names}
    for name in ("weight", "lam"):
        value = getattr(problem, name)
        kwargs[name] = None if value is None else value.double()
    kwargs["target_b"] = problem.target_b

    loss, lse = regops.reference.cross_entropy(
        x, target, reduction="none", return_lse=True, **kwargs
    )
    divisor = _divisor(problem, x, target, kwargs)
    upstream = torch.tensor(1.0) if problem.upstream is None else problem.upstream
    weighted = (loss.flatten() * upstream.double()).sum() / (divisor or 1.0)
    if problem.upstream_lse is not None:
        weighted = weighted + (lse.flatten() * problem.upstream_lse.double()).sum()
    inputs = [x, target] if target.requires_grad else [x]
    gradients = torch.autograd.grad(weighted, inputs)
    return Results(
        divisor=divisor,
        loss=loss.detach().flatten(),
        total=loss.sum().item() / divisor if divisor else math.nan,
        lse=lse.detach().flatten(),
        gradient=gradients[0],
        probability_gradient=gradients[1] if len(gradients) > 1 else None,
    )
