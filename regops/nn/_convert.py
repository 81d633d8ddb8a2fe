"""`convert_` and `revert_` of models: each module's class is changed, and nothing else of it."""

from __future__ import annotations

import dis
import inspect
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

import regops.nn
from regops._report import ConversionReport, Left, Swapped, class_name
from regops._swaps import LEFT_MODULES, MODULE_SWAPS, Swap

Row = Swap[nn.Module]


def convert_modules(model: nn.Module) -> ConversionReport:
    """`regops.convert_` of a model."""
    rows: dict[nn.Module, Row] = {}
    left: list[Left] = []
    already: list[str] = []
    names = _names(model)
    for module, name in names.items():
        plain_class = parametrize.type_before_parametrizations(module)
        row = next((each for each in MODULE_SWAPS if each.torch_class is plain_class), None)
        if row is not None:
            why = _why_bound(module) or row.why_left(module)
            if why is None:
                rows[module] = row
        elif isinstance(module, tuple(each.own_class for each in MODULE_SWAPS)):
            already.append(name)
            continue
        else:
            why = _why_unknown(module)
        if why is not None:
            left.append(Left(name, _kind(module), why))
    swapped = _swap(names, rows, to_torch=False)
    return ConversionReport("convert_", swapped, tuple(left), tuple(already))


def revert_modules(model: nn.Module) -> ConversionReport:
    """`regops.revert_` of a model."""
    rows: dict[nn.Module, Row] = {}
    left: list[Left] = []
    already: list[str] = []
    own_classes: tuple[Any, ...] = tuple(getattr(regops.nn, name) for name in regops.nn.__all__)
    names = _names(model)
    for module, name in names.items():
        plain_class = parametrize.type_before_parametrizations(module)
        row = next((each for each in MODULE_SWAPS if each.own_class is plain_class), None)
        if row is not None:
            why = _why_bound(module) or _why_own(module, row) or row.why_left(module)
            if why is None:
                rows[module] = row
            else:
                left.append(Left(name, _kind(module), why))
        elif plain_class in own_classes:
            left.append(Left(name, _kind(module), "torch has no such module"))
        elif isinstance(module, own_classes):
            left.append(Left(name, _kind(module), _subclass_of(module, own_classes)))
        elif any(plain_class is each.torch_class for each in MODULE_SWAPS):
            already.append(name)
    swapped = _swap(names, rows, to_torch=True)
    return ConversionReport("revert_", swapped, tuple(left), tuple(already))


# ---- what to swap --------------------------------------------------------------------------------


def _names(model: nn.Module) -> dict[nn.Module, str]:
    """Each module once, with all its names: one by each module that holds it."""
    first = {module: prefix for prefix, module in model.named_modules()}
    names: dict[nn.Module, list[str]] = {module: [] for module in first}
    names[model].append("")
    for module, prefix in first.items():
        for key, child in module._modules.items():
            if child in names:
                names[child].append(f"{prefix}.{key}" if prefix else key)
    return {module: ", ".join(of_module) for module, of_module in names.items()}


def _why_bound(module: nn.Module) -> str | None:
    """Accelerate's hooks, for one, replace `forward` on the object; the class's is then unused."""
    if "forward" in vars(module):
        return "its forward was replaced on the object, and would go on with the old class's"
    return None


def _why_own(module: nn.Module, row: Row) -> str | None:
    options = [
        f"{option}={getattr(module, option)!r}"
        for option, value in row.own_options.items()
        if getattr(module, option) != value
    ]
    return f"torch has no {', '.join(options)}" if options else None


def _why_unknown(module: nn.Module) -> str | None:
    """Of a module of no class in the table; None: it has nothing to do with our ops."""
    torch_classes = tuple(row.torch_class for row in MODULE_SWAPS)
    if isinstance(module, torch.jit.ScriptModule):
        alike = {cls.__name__ for classes, _ in LEFT_MODULES for cls in classes}
        alike |= {cls.__name__ for cls in torch_classes}
        if module.original_name in alike:
            return f"a scripted {module.original_name}: convert before scripting, or not at all"
        return None
    if isinstance(module, torch_classes):
        return _subclass_of(module, torch_classes)
    for classes, why_left in LEFT_MODULES:
        if isinstance(module, classes):
            return why_left(module)
    return _why_number(module) or _why_rate(module)


def _why_number(module: nn.Module) -> str | None:
    """Attributes such as `attention_dropout` and `drop_prob` are mostly a function's argument."""
    numbers = [
        f"{name}={value}"
        for name, value in vars(module).items()
        if "drop" in name.lower() and isinstance(value, float) and 0.0 < value <= 1.0
    ]
    if not numbers:
        return None
    return f"with {', '.join(numbers)} it may drop by a function, which is not swapped"


def _why_rate(module: nn.Module) -> str | None:
    """Attention in transformers does not call the Dropout that it holds: it hands on its p."""
    held = {
        key
        for key, child in module._modules.items()
        if isinstance(child, nn.Dropout) and child.p > 0.0
    }
    read: set[str] = set()
    for cls in type(module).__mro__ if held else ():
        if cls is nn.Module:
            break
        for function in vars(cls).values():
            code = getattr(inspect.unwrap(function), "__code__", None)
            if code is not None and "p" in code.co_names:
                steps = pairwise(dis.get_instructions(code))
                read |= held & {
                    one.argval
                    for one, then in steps
                    if (then.opname, then.argval) == ("LOAD_ATTR", "p")
                }
    if not read:
        return None
    reads = ", ".join(f"{name}.p" for name in sorted(read))
    return f"its code reads {reads}, and may drop by a function, which is not swapped"


def _subclass_of(module: nn.Module, classes: tuple[type, ...]) -> str:
    base = next(cls for cls in type(module).__mro__ if cls in classes)
    return f"a subclass of {class_name(base)}, whose own code may count on that class's"


def _kind(module: nn.Module) -> str:
    return class_name(parametrize.type_before_parametrizations(module))


# ---- swapping ------------------------------------------------------------------------------------


def _swap(
    names: dict[nn.Module, str], rows: dict[nn.Module, Row], *, to_torch: bool
) -> tuple[Swapped, ...]:
    """Everything has been checked."""
    swapped = []
    for module, row in rows.items():
        before = _kind(module)
        for option, value in row.own_options.items():
            if to_torch:
                delattr(module, option)
            else:
                setattr(module, option, value)
        _set_class(module, row.torch_class if to_torch else row.own_class)
        swapped.append(Swapped(names[module], before, _kind(module)))
    return tuple(swapped)


def _set_class(module: nn.Module, plain_class: type[nn.Module]) -> None:
    """Changes the class; of a parametrized module, the one that its class was made from."""
    if parametrize.is_parametrized(module):
        # A new one: torch lets deep copies share the old one, and they stay what they are.
        made = {
            key: value
            for key, value in vars(type(module)).items()
            if key not in ("__dict__", "__weakref__", "__doc__")
        }
        plain_class = type(f"Parametrized{plain_class.__name__}", (plain_class,), made)
    module.__class__ = plain_class
