"""Maps the `.loc` directives of a PTX file to lines of the CUDA source."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from .errors import SourceLine

_LOC = re.compile(
    r"\.loc\s+(\d+) (\d+) (\d+)(?:, function_name \S+, inlined_at (\d+) (\d+) (\d+))?"
)


@cache
def _is_library_header(file: str) -> bool:
    """Whether a file belongs to the CUDA toolkit or the compiler rather than to the project."""
    path = Path(file)
    return path.is_relative_to("/usr/include") or any(
        (folder / "cuda_runtime_api.h").exists() for folder in path.parents
    )


class LineTable:
    """The `.file` table and the chain of inlined calls behind each place.

    A frame `2 7 5, inlined_at 2 20 7` says that the caller stands at `2 20 7`; that place has
    itself appeared in an earlier `.loc`, with the caller's caller.
    """

    def __init__(self, text: str) -> None:
        files = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M)
        self.files = {int(number): name for number, name in files}
        self.callers: dict[tuple[int, int, int], tuple[int, int, int]] = {}

    def resolve(self, directive: str, previous: SourceLine) -> SourceLine:
        """Innermost line outside of CUDA's own headers; line 0 keeps the previous line."""
        match = _LOC.match(directive)
        if not match:
            raise ValueError(f"unknown .loc directive: {directive!r}")
        numbers = [int(group) for group in match.groups() if group is not None]
        place = (numbers[0], numbers[1], numbers[2])
        if len(numbers) == 6:
            self.callers[place] = (numbers[3], numbers[4], numbers[5])
        else:
            self.callers.pop(place, None)
        if place[1] == 0:
            return previous
        for _ in range(64):
            caller = self.callers.get(place)
            if caller is None or not _is_library_header(self.files.get(place[0], "?")):
                break
            place = caller
        return SourceLine(self.files.get(place[0], "?"), place[1])
