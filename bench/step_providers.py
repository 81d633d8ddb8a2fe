"""Who is timed where an optimizer steps: regops, torch's ways to do it, other libraries, a ceiling.

Everyone does all of what a case asks for: what an optimizer does not do itself is done around its
step, as user code does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import regops.optim
from bench.steps import FLOAT_STATES, StepPoint, Workload
from bench.timing import Run
from bench.verify import Lists, verify_copy, verify_stream
from regops import _C

_TORCH: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgdw": torch.optim.SGD,
}
REGOPS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": regops.optim.AdamW,
    "sgdw": regops.optim.SGDW,
}
_TORCH_WAYS: dict[str, dict[str, bool]] = {
    "eager": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "compile": {"foreach": True},  # one kernel a parameter; of the loop nothing is fused
}


@dataclass
class Stepper:
    """What a provider offers.

    Attributes:
        run: One step, as its user makes it; exactly this is verified and then timed.
        written: All that a right step writes, by name; names are those of the state.
    """

    run: Run
    written: Callable[[], dict[str, list[Tensor]]]


def build(name: str, point: StepPoint, work: Workload) -> Stepper:
    """What a provider offers for a step, ready for its first one."""
    if name in ("regops", FLOAT_STATES):
        state_dtype = None if name == FLOAT_STATES else point.case.state_dtype
        return _regops(point, work, state_dtype)
    if name in point.peers:
        optimizer = point.peers[name].build(work.params, _rule(point.case.kwargs))
        return _by_hand(point, work, optimizer, foreach=True, peer=True)
    rule = _rule(point.case.kwargs)
    if point.op == "sgdw":
        del rule["weight_decay"]  # decoupled, so by hand
    stepped = work.masters or work.params
    optimizer = _TORCH[point.op](stepped, **rule, **_TORCH_WAYS[name])
    work.adopt(optimizer)
    stepper = _by_hand(point, work, optimizer, foreach=name != "eager")
    if name == "compile":
        # See bench.providers. The step breaks the graph of whoever calls it, hence no fullgraph.
        torch._inductor.config.compile_threads = 1
        torch.compiler.reset()
        stepper.run = torch.compile(stepper.run, dynamic=False)
    return stepper


def _regops(point: StepPoint, work: Workload, state_dtype: torch.dtype | None) -> Stepper:
    options = point.case.kwargs
    extras = {
        name: options[name]
        for name in ("max_grad_norm", "zero_grad", "ema_decay", "master")
        if name in options
    }
    optimizer = REGOPS[point.op](work.params, **_rule(options), **extras, state_dtype=state_dtype)
    work.adopt(optimizer)
    names = state_names(point)
    names += ["ema"] if "ema_decay" in options else []
    names += ["master_param"] if "masters" in work.start.kwargs else []

    def written() -> dict[str, list[Tensor]]:
        states = [optimizer.state[param] for param in work.params]
        return {"param": _data(work.params)} | {
            name: [state[name] for state in states] for name in names
        }

    return Stepper(optimizer.step, written)


def _by_hand(
    point: StepPoint,
    work: Workload,
    optimizer: torch.optim.Optimizer,
    foreach: bool,
    peer: bool = False,
) -> Stepper:
    """An optimizer's step and around it, in user code, what it does not do itself.

    Args:
        point: What to do.
        work: To step.
        optimizer: Of the work's masters, or of its parameters.
        foreach: For all tensors in one call, or one after the other.
        peer: Whether it is another library's, which decays by itself and has states of its own.
    """
    options = point.case.kwargs
    params, grads = _data(work.params), [_grad(param) for param in work.params]
    stepped = work.masters or work.params
    parts: list[Run] = []
    if "max_grad_norm" in options:
        limit = options["max_grad_norm"]
        parts.append(lambda: clip_grad_norm_(work.params, limit, foreach=foreach))
    if work.masters:
        parts.append(lambda: torch._foreach_copy_([_grad(one) for one in work.masters], grads))
    if point.op == "sgdw" and not peer:
        factor = 1.0 - options["lr"] * options["weight_decay"]
        parts.append(
            (lambda: torch._foreach_mul_(_data(stepped), factor))
            if foreach
            else lambda: [one.mul_(factor) for one in _data(stepped)]
        )
    parts.append(optimizer.step)
    written = {"param": params}
    if work.masters:
        masters = written["master_param"] = _data(work.masters)
        parts.append(lambda: torch._foreach_copy_(params, masters))
    if "ema_decay" in options:
        emas = written["ema"] = work.shared("ema", torch.float32)
        weight = 1.0 - options["ema_decay"]
        parts.append(
            (lambda: torch._foreach_lerp_(emas, params, weight))
            if foreach
            else lambda: [ema.lerp_(one, weight) for ema, one in zip(emas, params, strict=True)]
        )
    if options.get("zero_grad"):
        # torch's own, for apex's takes no such argument.
        parts.append(lambda: torch.optim.Optimizer.zero_grad(optimizer, set_to_none=False))
    if not peer:
        for name in state_names(point):
            written[name] = [optimizer.state[one][name] for one in stepped]

    def step() -> None:
        for part in parts:
            part()

    return Stepper(parts[0] if len(parts) == 1 else step, lambda: written)


def _rule(options: Mapping[str, Any]) -> dict[str, Any]:
    """The rule's own numbers, as torch.optim names them."""
    rule = {name: options[name] for name in ("lr", "weight_decay", "momentum") if name in options}
    if "beta1" in options:
        rule["betas"] = options["beta1"], options["beta2"]
    return rule


def state_names(point: StepPoint) -> list[str]:
    """Names of a step's state in an optimizer, in the order of the step's lists."""
    kept = (name for name in point.spec.states if name not in point.case.empty)
    return [name.removesuffix("s") for name in kept]


def _data(params: list[torch.nn.Parameter]) -> list[Tensor]:
    return [param.data for param in params]


def _grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


def stream_lists(point: StepPoint, work: Workload) -> tuple[Lists, Lists]:
    """Tensors to rewrite and tensors to read: together as many bytes as the step moves."""
    call, options = work.start, point.case.kwargs
    written = [call.params, *filter(None, call.states)]
    written += [call.kwargs[name] for name in ("masters", "emas") if name in call.kwargs]
    read = [call.grads] if "max_grad_norm" in options else []
    (written if options.get("zero_grad") else read).append(call.grads)

    # Filled, for pages of zeros that were never written to would all be one page of memory.
    def filled(lists: Lists) -> Lists:
        return [[torch.ones_like(one) for one in each] for each in lists]

    return filled(written), filled(read)


def ceiling(point: StepPoint, work: Workload) -> Run:
    """Moves as many bytes as the step, and computes nothing: in place as it does, or by a copy.

    Verified already.
    """
    if point.ceiling == "copy":
        count = point.bytes_moved("step") // 2
        source = torch.ones(count, dtype=torch.uint8, device=point.device)
        target = torch.empty_like(source)
        verify_copy(target.copy_, source)
        return lambda: target.copy_(source)
    written, read = stream_lists(point, work)
    verify_stream(written, read)
    return lambda: _C.read_write_(written, read)
