"""DropConnect of any parameter of any module: a wrapper around `torch.nn.utils.parametrize`."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

import regops.functional as RF
from regops.nn._parametrized import make_picklable
from regops.random import key_like

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class DropConnect(nn.Module):
    r"""Drops parameters of a module during training: the weight drop of AWD-LSTM, for any module.

    Each call of this module draws one mask for each named parameter and runs `module` with
    W' = M o W / (1 - p) in the place of W, by `regops.functional.dropout`; the gradient goes to W
    through the same mask. All uses of a parameter within a call share its mask: all time steps of a
    recurrent network, all calls of a cell in a loop. In evaluation W itself is used, and nothing is
    drawn.

    - Torch's RNN, LSTM and GRU compute from a list of their own that parametrize does not keep up
      to date; here it holds the masked weights during the call and the parameters after it. On CUDA
      cuDNN compacts the weights of each training call, as their mask is new, and warns so once.
    - Attributes of `module` can be read here (`hidden_size`, `flatten_parameters()`), not set.
    - Outside a call the weight reads as W, in training, too; so `module` called directly drops
      nothing. Activation checkpoints belong around this module: inside it, where weights would be
      read again after the call, backward raises RuntimeError.
    - In `state_dict` a parameter is "module.parametrizations.<name>.original".
      `torch.nn.utils.parametrize.remove_parametrizations` gives the plain module back, with W.
    - Module, copies and state can be pickled, which torch's parametrized modules cannot.
    - A parameter object that is registered under two names is dropped only where it is read by a
      name given here, with a mask for each such name.
    - One object must not be called by two threads at once.

    Merity, Keskar, Socher, "Regularizing and Optimizing LSTM Language Models", ICLR 2018; Wan et
    al., "Regularization of Neural Networks using DropConnect", ICML 2013.

    Args:
        module: Any module. It is changed in place: the named parameters are parametrized.
        names: Name of a parameter, or several, as in `module.named_parameters()`.
        p: Probability of dropping a weight, in [0, 1]; may be set later, too. A tensor of one
            element can be changed in place without recompilation of a compiled module.

    Raises:
        ValueError: p is outside [0, 1] or nan; no name; a name twice; `module` has no such
            parameter, or it is not initialized yet.
        TypeError: `module` is not a module; names are not of str; a parameter is not of type
            float64, float32, bfloat16 or float16.

    Example:
        >>> import torch, regops.nn
        >>> lstm = regops.nn.DropConnect(torch.nn.LSTM(8, 16), "weight_hh_l0", p=0.5)
        >>> output, (h, c) = lstm(torch.randn(5, 2, 8))
        >>> output.shape
        torch.Size([5, 2, 16])
        >>> lstm.hidden_size
        16
    """

    module: nn.Module

    def __init__(
        self, module: nn.Module, names: str | Sequence[str], p: float | Tensor = 0.5
    ) -> None:
        p = _checked_p(p)
        targets = _find(module, names)
        super().__init__()
        self._p = p
        self.names = (names,) if isinstance(names, str) else tuple(names)
        self.module = module
        self._targets = [_Target(host, attribute, _Drop()) for host, attribute in targets]
        for target in self._targets:
            parametrize.register_parametrization(target.host, target.attribute, target.drop)
            make_picklable(target.host)

    @property
    def p(self) -> float | Tensor:
        """Probability of dropping a weight."""
        return self._p

    @p.setter
    def p(self, p: float | Tensor) -> None:
        self._p = _checked_p(p)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `module` returns for the same arguments, with new masks in training."""
        calls_before = [target.drop.call for target in self._targets]  # it may call itself
        _running.depth += 1
        try:
            for target in self._targets:
                target.drop.call = _Call(self._p)
            for target in self._targets:
                target.refresh()
            return self.module(*args, **kwargs)
        finally:
            for target, call in zip(self._targets, calls_before, strict=True):
                target.drop.call = call
            for target in self._targets:
                target.clear()
            _running.depth -= 1

    def _replicate_for_data_parallel(self) -> Any:
        """Refuses: a replica would drop the weights of the module that it was copied from."""
        raise NotImplementedError(
            "regops.nn.DropConnect: expected DistributedDataParallel, got DataParallel, whose "
            "copies of modules share one module's masks"
        )

    def __getattr__(self, name: str) -> Any:
        """Attributes of the wrapped module, for what this one lacks."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # `parametrizations` would make torch take this module for the parametrized one.
            if name.startswith("_") or name in ("module", "parametrizations"):
                raise
            return getattr(self.module, name)

    def extra_repr(self) -> str:
        """The names and p."""
        return f"names={list(self.names)}, p={self._p}"


@dataclass
class _Call:
    """What one call keeps: the key of its mask, and the weight last masked."""

    p: float | Tensor
    key: Tensor | None = None
    weight: Tensor | None = None
    dropped: Tensor | None = None
    grad_enabled: bool = False


class _Drop(nn.Module):
    """The parametrization: the masked weight during a training call, else the weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.call: _Call | None = None

    def forward(self, weight: Tensor) -> Tensor:
        call = self.call
        if call is None or not self.training:
            if self.training and not torch.compiler.is_compiling():
                _refuse_recomputation()
            return weight
        # The weight differs between reads where another parametrization makes it; the mask must
        # not. A result without a graph must not serve a read that needs one.
        if (
            call.dropped is None
            or call.weight is not weight
            or call.grad_enabled != torch.is_grad_enabled()
        ):
            if call.key is None and (isinstance(call.p, Tensor) or 0.0 < call.p < 1.0):
                call.key = key_like(weight)
            call.dropped = RF.dropout(weight, call.p, key=call.key)
            call.weight = weight
            call.grad_enabled = torch.is_grad_enabled()
        return call.dropped

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to the parameter assigns the weight itself."""
        return weight


class _Running(threading.local):
    """How many calls of DropConnect modules are under way in this thread."""

    def __init__(self) -> None:
        self.depth = 0  # the instance's: compiled code checks where it found an attribute


_running = _Running()


def _refuse_recomputation() -> None:
    """Rather than compute the gradient from weights that forward did not use."""
    if _running.depth == 0 and torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "regops.nn.DropConnect: expected activation checkpoints around the DropConnect, got "
            "one inside its module: the mask is gone when backward computes it again"
        )


@dataclass
class _Target:
    """A parameter to drop: the module that holds it, its name there, its parametrization."""

    host: nn.Module
    attribute: str
    drop: _Drop

    def refresh(self) -> None:
        """Reads the weight, now and not inside vmap or no_grad, and shows it to torch's RNNs.

        They compute from `_flat_weights`. They do compare it with the attributes at each call, but
        on a difference move all weights into new memory (flatten_parameters), in place: with two
        calls before backward, the first one's saved weights would have changed.
        """
        self._forget_cached()
        weight = getattr(self.host, self.attribute)
        if isinstance(self.host, nn.RNNBase) and self.attribute in self.host._flat_weights_names:
            index = self.host._flat_weights_names.index(self.attribute)
            self.host._flat_weights[index] = weight
            self.host._flat_weight_refs[index] = weakref.ref(weight)

    def clear(self) -> None:
        """Leaves nothing of a call behind: neither a stale mask nor a graph that fills memory."""
        self._forget_cached()
        if isinstance(self.host, nn.RNNBase):
            self.refresh()

    def _forget_cached(self) -> None:
        """The cache of `parametrize.cached`, where that is on, would outlive the mask."""
        if parametrize._cache_enabled:
            parametrize._cache.pop((id(self.host), self.attribute), None)


# ---- checks --------------------------------------------------------------------------------------


def _checked_p(p: float | Tensor) -> float | Tensor:
    if isinstance(p, bool) or not isinstance(p, (Real, Tensor)):
        got = type(p).__name__
        raise TypeError(f"regops.nn.DropConnect: expected p: float | Tensor, got {got}")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"regops.nn.DropConnect: expected p in [0, 1], got {p}")
    return p if isinstance(p, Tensor) else float(p)


def _find(module: nn.Module, names: str | Sequence[str]) -> list[tuple[nn.Module, str]]:
    """The module that holds each named parameter and the parameter's name there, all checked."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"regops.nn.DropConnect: expected module: torch.nn.Module, got {type(module).__name__}"
        )
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"regops.nn.DropConnect: expected names: str or a sequence of str, got {names!r}"
        )
    if not names:
        raise ValueError("regops.nn.DropConnect: expected names of parameters, got none")
    known = _parameter_names(module)
    found: dict[tuple[int, str], str] = {}
    targets: list[tuple[nn.Module, str]] = []
    for name in names:
        if name not in known:
            raise ValueError(
                f"regops.nn.DropConnect: expected names of parameters of {type(module).__name__}, "
                f"got {name!r}; it has {', '.join(known) or 'none'}"
            )
        path, _, attribute = name.rpartition(".")
        host = module.get_submodule(path)
        first = found.setdefault((id(host), attribute), name)
        if len(found) == len(targets):
            again = "twice" if first == name else f"and {name!r}, which are one"
            raise ValueError(
                f"regops.nn.DropConnect: expected each parameter once, got {first!r} {again}"
            )
        _check_weight(name, host, attribute)
        targets.append((host, attribute))
    return targets


def _parameter_names(module: nn.Module) -> list[str]:
    """Names under which parameters are read; parametrized ones are stored under others."""
    stored = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    return list(
        dict.fromkeys(re.sub(r"parametrizations\.(\w+)\.original\d*$", r"\1", s) for s in stored)
    )


def _check_weight(name: str, host: nn.Module, attribute: str) -> None:
    if isinstance(host._parameters.get(attribute), UninitializedParameter):
        raise ValueError(
            f"regops.nn.DropConnect: expected {name!r} to be initialized; call the lazy module once"
        )
    weight: Tensor = getattr(host, attribute)
    if weight.dtype not in _DTYPES:
        raise TypeError(
            f"regops.nn.DropConnect: expected {name!r} of type float64, float32, bfloat16 or "
            f"float16, got {str(weight.dtype).removeprefix('torch.')}"
        )
