"""What `convert_` and `revert_` did: a record, and its table in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn


class Swapped(NamedTuple):
    """An object whose class was changed.

    Attributes:
        name: As of `named_modules`, several joined by ", " where the module has several; "" is the
            argument itself.
        before: Its class, "torch.nn.Dropout".
        after: Its class now, "regops.nn.Dropout".
    """

    name: str
    before: str
    after: str


class Left(NamedTuple):
    """An object that stays what it is, although it drops, or computes a loss, or is an optimizer.

    Attributes:
        name: As of `Swapped`.
        kind: Its class.
        why: In words.
    """

    name: str
    kind: str
    why: str


@dataclass(frozen=True)
class ConversionReport:
    """What `regops.convert_` or `regops.revert_` did; str() is a table.

    Attributes:
        call: "convert_" or "revert_".
        swapped: What was changed.
        left: What was not, and why.
        already: Names of what was already as asked for.

    Example:
        >>> import torch, regops
        >>> print(regops.convert_(torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout2d())))
        regops.convert_: 1 swapped, 1 left, 0 of regops already
        swapped: torch.nn.Dropout -> regops.nn.Dropout
          0
        left: torch.nn.Dropout2d: it drops whole channels
          1
    """

    call: str
    swapped: tuple[Swapped, ...]
    left: tuple[Left, ...]
    already: tuple[str, ...]

    def __str__(self) -> str:
        counts = [f"{len(self.swapped)} swapped", f"{len(self.left)} left"]
        library = "regops" if self.call == "convert_" else "torch"
        counts.append(f"{len(self.already)} of {library} already")
        lines = [f"regops.{self.call}: {', '.join(counts)}"]
        lines += _grouped(
            (f"swapped: {each.before} -> {each.after}", each.name) for each in self.swapped
        )
        lines += _grouped((f"left: {each.kind}: {each.why}", each.name) for each in self.left)
        return "\n".join(lines)


def _grouped(entries: Iterable[tuple[str, str]]) -> list[str]:
    """Names under one heading each: a model of 48 layers has few kinds and many names."""
    groups: dict[str, list[str]] = {}
    for heading, name in entries:
        groups.setdefault(heading, []).append(f"  {name or '(itself)'}")
    return [line for heading, names in groups.items() for line in (heading, *names)]


def class_name(cls: type) -> str:
    """The name by which users know a class: torch.nn.Dropout, not torch.nn.modules.dropout's."""
    import regops

    public = {"torch.nn": nn, "torch.optim": torch.optim}
    public |= {"regops.nn": regops.nn, "regops.optim": regops.optim}
    for place, namespace in public.items():
        if getattr(namespace, cls.__name__, None) is cls:
            return f"{place}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"
