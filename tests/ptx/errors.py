"""What the interpreter raises, and the place in the CUDA source that it raises it for."""

from __future__ import annotations

from dataclasses import dataclass


class ParseError(Exception):
    """PTX that the interpreter does not know: never skipped, always named."""


class DeviceError(Exception):
    """A defect that a kernel showed while it ran."""


@dataclass(frozen=True)
class SourceLine:
    """A line of CUDA source."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"
