"""The table of what `convert_` swaps. Each row stands beside our class, at the foot of its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import nn
from torch.optim import Optimizer

Swappable = TypeVar("Swappable", bound="nn.Module | Optimizer")


def _never(_: Any) -> None:
    return None


@dataclass(frozen=True)
class Swap(Generic[Swappable]):
    """A class of torch's, and ours, a subclass of it that keeps its attributes and adds some.

    Attributes:
        torch_class: Only objects of exactly this class are swapped.
        own_class: Takes its place; its objects are swapped back.
        own_options: Attributes that only ours has, with the values by which it is as torch's.
        why_left: Why an object of either class must stay; None: it need not.
    """

    torch_class: type[Swappable]
    own_class: type[Swappable]
    own_options: Mapping[str, Any] = field(default_factory=dict)
    why_left: Callable[[Any], str | None] = _never


MODULE_SWAPS: list[Swap[nn.Module]] = []
OPTIMIZER_SWAPS: list[Swap[Optimizer]] = []

# Modules without a row that do the like of what ours do: their classes, and why an object of one
# is left (None: it need not be named). The first row with a class of the object's decides.
LEFT_MODULES: list[tuple[tuple[type[nn.Module], ...], Callable[[Any], str | None]]] = []
