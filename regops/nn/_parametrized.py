"""Parametrized modules that can be pickled.

`torch.nn.utils.parametrize` gives a module a class made at run time, shares it between deep copies
(removal from one copy then breaks the others) and forbids to pickle it. Here that class is made
again instead.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def make_picklable(host: nn.Module) -> None:
    """Lets a module that has just been parametrized be pickled and deep-copied."""
    made_class: Any = type(host)
    made_class.__reduce_ex__ = _reduce
    made_class.__setstate__ = _set_state
    if "__deepcopy__" in vars(made_class):  # torch's; one that the module's own class has stays
        del made_class.__deepcopy__


def _reduce(host: nn.Module, protocol: int) -> tuple[Any, ...]:
    plain_class: Any = parametrize.type_before_parametrizations(host)
    if hasattr(plain_class, "__getstate__"):  # of object, too, from Python 3.11 on
        state = plain_class.__getstate__(host)
    else:
        state = vars(host).copy()
    return _new_parametrized, (plain_class,), state


def _new_parametrized(plain_class: type[nn.Module]) -> nn.Module:
    host = plain_class.__new__(plain_class)
    parametrize._inject_new_class(host)
    make_picklable(host)
    return host


def _set_state(host: Any, state: dict[str, Any]) -> None:
    plain_class: Any = type(host).__bases__[0]
    plain_class.__setstate__(host, state)
    for attribute in host.parametrizations:
        parametrize._inject_property(host, attribute)
