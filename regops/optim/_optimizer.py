"""What `AdamW` and `SGDW` add to torch's classes: options, a key, checkpoints, averages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from regops.optim._options import (
    GROUP_DEFAULTS,
    OPTIMIZER_DEFAULTS,
    OptimizerOptions,
    check_group,
    check_options,
    key_numbers,
    needs_key,
)
from regops.optim._state import conform, unwrap, wrap
from regops.optim._step import Step
from regops.random import new_key


class FusedOptimizer(Step):
    """Base of the optimizers here, beside torch's class of the same rule."""

    _torch_class: type[torch.optim.Optimizer] | None = None  # that `regops.convert_` made it from

    # ---- construction ----------------------------------------------------------------------------

    def _set_options(self, options: OptimizerOptions) -> None:
        """After torch's constructor: the rest of the arguments."""
        name = type(self).__name__
        if unknown := options.keys() - OptimizerOptions.__annotations__.keys():
            unexpected = sorted(unknown)[0]
            raise TypeError(f"regops.optim.{name}: unexpected keyword argument {unexpected!r}")
        if self.defaults["differentiable"]:
            raise ValueError(
                f"regops.optim.{name}: expected differentiable=False, got True: its step has no "
                f"derivative; torch.optim's has"
            )
        given: dict[str, Any] = dict(options)
        key = given.pop("key", None)
        check_options(name, given)
        if given.get("error_if_nonfinite") and given.get("max_grad_norm") is None:
            raise ValueError(
                f"regops.optim.{name}: expected max_grad_norm with error_if_nonfinite, got none; "
                "max_grad_norm=math.inf computes the norm and clips nothing"
            )
        for option, default in OPTIMIZER_DEFAULTS.items():
            setattr(self, option, given.pop(option, default))
        self.grad_norm = None
        self.defaults.update(GROUP_DEFAULTS, **given)
        numbers = None if key is None else key_numbers(name, key)
        for group in self.param_groups:
            self._complete(group)
            if numbers is not None:
                group["key"] = numbers
        self._key()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of torch; the group may hold the options marked (group) in `OptimizerOptions`."""
        super().add_param_group(param_group)
        if "master" not in self.defaults:  # in torch's constructor
            return
        try:
            self._complete(param_group)
            self._key()
        except BaseException:
            self.param_groups.pop()
            raise

    def _complete(self, group: dict[str, Any]) -> None:
        check_group(type(self).__name__, group)
        for option in GROUP_DEFAULTS:
            group.setdefault(option, self.defaults[option])
        check_options(type(self).__name__, group)
        if group["decay"] == "independent" and "base_lr" not in group:
            # A scheduler may have set lr already.
            group["base_lr"] = float(group.get("initial_lr", group["lr"]))
        if group["decay"] == "independent" and not group["base_lr"] > 0:
            raise ValueError(
                f'regops.optim.{type(self).__name__}: expected lr > 0 with decay="independent", '
                f"got {group['base_lr']}"
            )

    def _key(self) -> Tensor | None:
        """The key, if random numbers are in use; drawn if there is none yet."""
        if not any(map(needs_key, self.param_groups)):
            return None
        numbers = next((g["key"] for g in self.param_groups if g.get("key") is not None), None)
        if numbers is None:
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                raise ValueError(
                    f"regops.optim.{type(self).__name__}: expected key=, the same on every "
                    "process, for its random numbers: with a key of its own each process would "
                    "draw others, and copies of a parameter would drift apart"
                )
            numbers = new_key().tolist()
        for group in self.param_groups:
            group["key"] = numbers
        return torch.tensor(numbers, dtype=torch.int64)

    # ---- checkpoints -----------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state of this optimizer, or of torch's of the same rule.

        Moments, averages and masters keep their precision. Options that a group in `state_dict`
        lacks stay as they are; those that it has are loaded, as torch does.

        Args:
            state_dict: From `state_dict()`.
        """
        # Registered last, so that it sees what other hooks made of the dict.
        handle = self.register_load_state_dict_pre_hook(lambda _, loaded: wrap(loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        own = {option: getattr(self, option) for option in (*OPTIMIZER_DEFAULTS, "_torch_class")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of `load_state_dict`, which has groups to keep options of, and of pickle, without."""
        unwrap(state["state"])
        current = self.__dict__.get("param_groups") or [{}] * len(state["param_groups"])
        defaults = state.get("defaults") or self.defaults
        for group, kept in zip(state["param_groups"], current, strict=True):
            for option in (*GROUP_DEFAULTS, "base_lr", "key"):
                default = kept.get(option, defaults.get(option, GROUP_DEFAULTS.get(option)))
                if option in GROUP_DEFAULTS or default is not None:
                    group.setdefault(option, default)
            check_options(type(self).__name__, group)
        super().__setstate__(state)
        self.__dict__.setdefault("grad_norm", None)
        for group in self.param_groups:
            for param in group["params"]:
                if of_param := self.state.get(param):
                    conform(param, group, of_param)

    # ---- averages --------------------------------------------------------------------------------

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """Parameters hold their moving averages inside, and what they held before again outside.

        For evaluation with `ema_decay`. Values are exchanged in place, so it takes a copy of the
        parameters in memory. A parameter that was not stepped yet keeps its value.

        Raises:
            RuntimeError: No group has an `ema_decay`; already inside.

        Example:
            >>> import torch, regops.optim
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = regops.optim.AdamW(model.parameters(), ema_decay=0.999)
            >>> with optimizer.averaged_parameters():
            ...     output = model(torch.ones(3, 2))
        """
        name = type(self).__name__
        if all(group["ema_decay"] is None for group in self.param_groups):
            raise RuntimeError(f"regops.optim.{name}: expected ema_decay for averaged_parameters()")
        if self.__dict__.get("_averaged"):
            raise RuntimeError(f"regops.optim.{name}: averaged_parameters() inside itself")
        kept: list[tuple[Tensor, Tensor]] = []
        self._averaged = True
        try:
            with torch.no_grad():
                for group in self.param_groups:
                    for param in group["params"]:
                        average = self.state.get(param, {}).get("ema")
                        if average is not None:
                            kept.append((param, param.detach().clone()))
                            param.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for param, value in kept:
                    param.copy_(value)
            self._averaged = False
