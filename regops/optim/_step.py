"""One fused step, whatever the rule: checks, state, the norm, and a call of the op a batch.

Host time counts: a loop over 1000 parameters costs 0.8 ms, so where all of a group are alike they
are collected without one.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from regops import _C
from regops._distributed import is_distributed
from regops.optim import _shards
from regops.optim._batch import Batch
from regops.optim._options import check_options, needs_key
from regops.optim._state import check_complete, new_entry


class Step(torch.optim.Optimizer):
    """The step of every optimizer here.

    Attributes:
        max_grad_norm: See `OptimizerOptions`; may be changed between steps.
        error_if_nonfinite: Likewise.
        grad_norm: Norm of all gradients in the last step, before clipping, 0-d; None without
            `max_grad_norm`. Not finite where GradScaler skipped the step.
    """

    _op: ClassVar[str]
    max_grad_norm: float | None
    error_if_nonfinite: bool
    grad_norm: Tensor | None

    # GradScaler hands over its scale and what it found; the op unscales in its one pass.
    _step_supports_amp_scaling = True

    def _moments(self, group: dict[str, Any]) -> Sequence[str]:
        """State entries of the rule, in the op's order."""
        raise NotImplementedError

    def _moment_lists(self, lists: Sequence[list[Tensor]]) -> Sequence[list[Tensor]]:
        """As many lists as the op takes."""
        raise NotImplementedError

    def _rule(self, group: dict[str, Any]) -> Sequence[float | bool]:
        """The rule's own numbers, in the op's order."""
        raise NotImplementedError

    def _key(self) -> Tensor | None:
        """The key, if random numbers are in use."""
        raise NotImplementedError

    def _complete(self, group: dict[str, Any]) -> None:
        """Checks a group's options, and gives it those it lacks."""
        raise NotImplementedError

    # Nothing is left to fuse in one call of an op: a compiler breaks its graph here, as it does in
    # torch's step.
    @_disable_dynamo  # torch.compiler.disable would import the compiler with this file
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient.

        Everything is checked before anything is written: after an error parameters, state and step
        counts are what they were.

        Args:
            closure: Evaluates the model again, and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: A hyper-parameter out of range.
            RuntimeError: Sparse or complex gradients; a norm that is not finite, with
                `error_if_nonfinite`; a step inside `averaged_parameters`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        return loss

    def _step(self) -> None:
        self._check_mode()
        created: list[tuple[Tensor, str]] = []
        done = False
        try:
            key = self._key()
            batches = self._collect(key is not None, created)
            norm = self._norm(batches)
            calls = [self._arguments(batch, norm, key) for batch in batches]
            if len(calls) > 1:  # one call checks itself
                check = getattr(_C, "check_" + self._op)
                for call in calls:
                    check(*call)
            op = getattr(_C, self._op)
            for call in calls:
                op(*call)
                done = True
        except BaseException as error:
            if not done:
                self._remove(created)
            self._refuse_sparse()
            if isinstance(error, (TypeError, ValueError)):
                self._refuse_types(error)
            raise
        self.grad_norm = norm

    def _check_mode(self) -> None:
        if self.__dict__.get("_averaged"):
            raise RuntimeError(
                f"regops.optim.{type(self).__name__}: expected no step inside averaged_parameters()"
            )
        if "capturable" not in self.defaults:
            return
        self._accelerator_graph_capture_health_check()
        for group in self.param_groups:
            # torch's error, word for word
            if group["capturable"] and any(p.is_cpu for p in group["params"]):
                raise AssertionError(
                    "If capturable=True, params and state_steps must be on supported devices: "
                    "['cuda']."
                )

    def _collect(self, random: bool, created: list[tuple[Tensor, str]]) -> list[Batch]:
        """Parameters with gradients and their state, by call; state is created where missing."""
        states = self.state
        plain = (torch.nn.Parameter, Tensor)
        batches: list[Batch] = []
        known, of_known = list(states), list(states.values())
        start = 0
        for group in self.param_groups:
            moments = self._moments(group)
            stop = start + len(group["params"])
            whole = Batch.of_all(group, moments, known[start:stop], of_known[start:stop])
            if whole is not None:
                if random:
                    whole.streams = list(range(start, stop))
                    whole.first_indices = [0] * (stop - start)
                batches.append(whole)
                start = stop
                continue
            by_kind: dict[Any, Batch] = {}
            batch: Batch | None = None  # mostly the last one's
            params = group["params"]
            for position, param in enumerate(params, start):
                grad = param.grad
                if grad is None:
                    continue
                distributed = type(param) not in plain and is_distributed(param)
                sharding = None
                if distributed or type(grad) is not Tensor:
                    grad = _shards.aligned_gradient(param, grad)
                    sharding = _shards.sharding_of(param)
                if (
                    batch is None
                    or param.dtype is not batch.dtype
                    or grad.dtype is not batch.grad_dtype
                    or param.device != batch.device
                    or sharding != batch.sharding
                ):
                    kind = (param.device, param.dtype, grad.dtype, sharding)
                    batch = by_kind.get(kind)
                    if batch is None:
                        batch = by_kind[kind] = Batch(group, param, grad, sharding, moments)
                state = states[param]
                try:
                    entries = batch.read(state)
                except KeyError:
                    for entry in batch.entries:
                        if entry not in state:
                            check_complete(type(self).__name__, entry, state)
                            state[entry] = new_entry(entry, param, group)
                            created.append((param, entry))
                    entries = batch.read(state)
                if random:
                    stream, first = _shards.random_place(param, position)
                    batch.streams.append(stream)
                    batch.first_indices.append(first)
                if distributed:
                    if group["max_norm"] is not None:
                        _shards.check_rows(type(self).__name__, param)
                    batch.append(map(_shards.local, (param, grad, *entries)))
                else:
                    batch.append((param, grad, *entries))
            start = stop
            batches += by_kind.values()
        return batches

    def _norm(self, batches: list[Batch]) -> Tensor | None:
        """Norm of all unscaled gradients."""
        if self.max_grad_norm is None:
            return None
        check_options(type(self).__name__, {"max_grad_norm": self.max_grad_norm})
        grads: dict[Any, list[Tensor]] = {}
        for batch in batches:
            grads.setdefault((batch.device, batch.sharding), []).extend(batch.columns[1])
        norms = {kind: _C.grad_norm(of_kind) for kind, of_kind in grads.items()}
        if len(norms) == 1 and next(iter(norms))[1] is None:
            norm = next(iter(norms.values()))
        elif norms:
            squares = [_shards.reduced_squares(norm, kind[1]) for kind, norm in norms.items()]
            norm = sum(square.to(squares[0].device) for square in squares).sqrt()  # type: ignore[union-attr]
        else:
            norm = torch.zeros((), dtype=torch.float64)
        scale, found_inf = self._scaling(norm.device)
        if scale is not None:
            norm = norm / scale
        # GradScaler skips the step, and lowers its scale, where gradients are not finite.
        skipped = self.error_if_nonfinite and found_inf is not None and found_inf != 0
        if self.error_if_nonfinite and not skipped and not norm.isfinite():
            raise RuntimeError(
                f"regops.optim.{type(self).__name__}: expected gradients of finite norm, got "
                f"{norm.item()}; error_if_nonfinite=False would scale them by it"
            )
        return norm

    def _scaling(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """GradScaler's scale and finding, if it runs the step."""
        return (
            _on(device, getattr(self, "grad_scale", None)),
            _on(device, getattr(self, "found_inf", None)),
        )

    def _arguments(self, batch: Batch, norm: Tensor | None, key: Tensor | None) -> tuple[Any, ...]:
        """Of the op."""
        group = batch.group
        params, grads, steps, *rest = batch.columns
        moments, rest = rest[: batch.moments], rest[batch.moments :]
        emas = rest.pop() if group["ema_decay"] is not None else []
        masters = rest.pop() if rest else []
        lr = group["lr"]
        scale, found_inf = self._scaling(batch.device)
        weight_decay, l1 = float(group["weight_decay"]), group["l1"]
        if group["decay"] != "lr":
            if "base_lr" not in group:  # set by hand
                self._complete(group)
            weight_decay, l1 = weight_decay / group["base_lr"], l1 / group["base_lr"]
        variance, noise_decay = group["gradient_noise"] or (0.0, 0.0)
        return (
            params,
            grads,
            *self._moment_lists(moments),
            steps,
            masters,
            emas,
            _on(batch.device, lr) if isinstance(lr, Tensor) else float(lr),
            None if norm is None else _on(batch.device, norm),
            scale,
            found_inf,
            key if needs_key(group) else None,
            *self._rule(group),
            weight_decay,
            bool(group["maximize"]),
            self.max_grad_norm,
            group["clip_value"],
            l1,
            group["l2"],
            variance,
            noise_decay,
            group["max_norm"],
            group["ema_decay"],
            group["zero_grad"],
            batch.master,
            batch.streams,
            batch.first_indices if any(batch.first_indices) else [],
        )

    def _refuse_sparse(self) -> None:
        """Of a failed step: says clearly what torch's dispatcher does not."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.grad.layout != torch.strided:
                    raise RuntimeError(
                        f"regops.optim.{type(self).__name__}: expected dense gradients, got a "
                        f"sparse one ({param.grad.layout}) of shape {tuple(param.shape)}"
                    ) from None

    def _refuse_types(self, error: Exception) -> None:
        """Of a failed step: names the option, where the binding lists every tensor."""
        name = type(self).__name__
        for group in self.param_groups:
            check_options(name, group)
            for option in ("lr", "weight_decay", "eps", "momentum", "dampening"):
                value = group.get(option, 0.0)
                if not isinstance(value, (numbers.Real, Tensor)):
                    raise TypeError(
                        f"regops.optim.{name}: expected {option} a number, got {value!r}"
                    ) from None
            betas = group.get("betas", (0.0, 0.0))
            if not isinstance(betas, (tuple, list)) or len(betas) != 2:
                raise TypeError(
                    f"regops.optim.{name}: expected betas of two numbers, got {betas!r}"
                ) from None
        if "incompatible function arguments" in str(error):
            raise TypeError(
                f"regops.optim.{name}: a parameter group holds a value of a wrong type: "
                + ", ".join(
                    f"{option}={value!r}"
                    for group in self.param_groups
                    for option, value in group.items()
                    if option != "params"
                )
            ) from None

    def _remove(self, created: list[tuple[Tensor, str]]) -> None:
        """Removes state that a failed step made."""
        for param, entry in created:
            self.state[param].pop(entry, None)
            if not self.state[param]:
                del self.state[param]


def _on(device: torch.device, value: Any) -> Any:
    """A number's tensor where a call may read it: on its device, or on the host."""
    if not isinstance(value, Tensor):
        return None
    return value if value.device == device or value.is_cpu else value.to(device)
