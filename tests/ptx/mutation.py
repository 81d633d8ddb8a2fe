"""Variants of a CUDA source that lack one barrier each; a good test notices every one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Of a barrier in two halves, the wait: without the arrival it would only be wrong.
_CALLS = (
    r"__sync(?:threads|warp)",
    r"__cluster_barrier_wait",
    r"(?:cg|cooperative_groups)::sync",
    r"[\w:]+(?:\(\))?\s*\.\s*(?:sync|barrier_wait)",
)
_BARRIER = re.compile(rf"(?<![\w:])(?:{'|'.join(_CALLS)})\s*\([^;{{}}]*\)\s*;")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)


@dataclass(frozen=True)
class Mutant:
    """A copy of some sources in which one barrier is missing.

    Attributes:
        file: the file that the barrier was removed from, as it was given.
        line: line of the barrier.
        barrier: the removed call.
        sources: the copies of all files, in the order in which they were given.
    """

    file: Path
    line: int
    barrier: str
    sources: tuple[Path, ...]


def barriers(text: str) -> list[re.Match[str]]:
    """The barriers of warps, blocks and clusters in a source, outside of comments."""
    blank = _COMMENT.sub(lambda comment: re.sub(r"[^\n]", " ", comment[0]), text)
    return list(_BARRIER.finditer(blank))


def _write(path: Path, text: str) -> None:
    """Writes at once or not at all: another test process may read the same copy."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def without_each_barrier(files: Sequence[Path], root: Path, folder: Path) -> Iterator[Mutant]:
    """Writes a copy of the files for each barrier in them, without that barrier.

    Args:
        files: sources and headers; quoted includes between them must be relative.
        root: folder that contains them; copies keep their places relative to it.
        folder: where the copies go.
    """
    for file in files:
        text = file.read_text()
        for call in barriers(text):
            line = text.count("\n", 0, call.start()) + 1
            copies = folder / f"{file.name}_{line}_{call.start()}"
            for source in files:
                target = copies / source.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                # An empty statement: the barrier may be all that an `if` or a loop has.
                mutated = text[: call.start()] + ";" + text[call.end() :]
                _write(target, mutated if source == file else source.read_text())
            sources = tuple(copies / source.relative_to(root) for source in files)
            yield Mutant(file, line, call[0], sources)
