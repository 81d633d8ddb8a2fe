"""Variants of a CUDA source that lack one barrier each: a test worth its name notices every one of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_BARRIER = re.compile(r"__sync(?:threads|warp)\s*\([^()]*\)\s*;")
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
    """The calls of __syncthreads and __syncwarp in a source, outside of comments."""
    blank = _COMMENT.sub(lambda comment: re.sub(r"[^\n]", " ", comment[0]), text)
    return list(_BARRIER.finditer(blank))


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
                shutil.copyfile(source, target)
            # An empty statement: the barrier may be all that an `if` or a loop has.
            mutated = text[: call.start()] + ";" + text[call.end() :]
            (copies / file.relative_to(root)).write_text(mutated)
            sources = tuple(copies / source.relative_to(root) for source in files)
            yield Mutant(file, line, call[0], sources)
