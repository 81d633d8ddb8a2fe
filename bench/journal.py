"""What a run has measured so far, on disk: an interrupted run goes on where it stopped.

A line of JSON for each point, written when all of it is measured. What was measured by another
build of regops, with another torch or profile, or on another machine, is not taken.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import regops
from bench.measure import Outcome
from bench.memory import Memory
from bench.timing import Recorded
from regops import _C


class Journal:
    """Outcomes by point and provider.

    Args:
        path: The file; None keeps nothing.
        profile: Name of the profile: how long was measured.
        resume: Take what the file has; otherwise it begins anew.
    """

    def __init__(self, path: Path | None, profile: str, resume: bool):
        self._path = path
        self._source = [profile, _fingerprint()]
        self._known: dict[str, dict[str, Outcome]] = {}
        if path and path.exists() and resume:
            self._load(path)
        elif path:
            path.unlink(missing_ok=True)

    def __len__(self) -> int:
        """Points that were taken or measured."""
        return len(self._known)

    def find(self, point: str, providers: list[str]) -> dict[str, Outcome] | None:
        """Outcomes of a point, if it was measured with these providers: they took turns."""
        found = self._known.get(point, {})
        return found if found.keys() == set(providers) else None

    def add(self, point: str, outcomes: dict[str, Outcome]) -> None:
        """Keeps the outcomes of a point."""
        self._known[point] = outcomes
        if self._path:
            of_point = {name: asdict(outcome) for name, outcome in outcomes.items()}
            with self._path.open("a") as file:
                file.write(json.dumps([self._source, point, of_point]) + "\n")

    def _load(self, path: Path) -> None:
        for line in path.read_text().splitlines():
            try:
                source, point, outcomes = json.loads(line)
            except ValueError:  # the line that was being written when the run was killed
                with path.open("a") as file:
                    file.write("\n")
                continue
            if source == self._source:
                self._known[point] = {name: _outcome(outcome) for name, outcome in outcomes.items()}


def _outcome(content: dict[str, Any]) -> Outcome:
    recorded = {name: Recorded(**one) for name, one in content["recorded"].items()}
    memory = Memory(**content["memory"]) if content["memory"] else None
    return Outcome(**{**content, "recorded": recorded, "memory": memory})


def _fingerprint() -> str:
    """Of all that decides what a time means: code, torch, processor and threads."""
    digest = hashlib.sha256()
    library = Path(_C.__file__)
    for path in sorted([library, *library.parent.rglob("*.py")]):
        digest.update(path.read_bytes())
    facts = (torch.__version__, platform.node(), regops.info()["processor"])
    digest.update(repr((*facts, torch.get_num_threads())).encode())
    if torch.cuda.is_available():
        digest.update(torch.cuda.get_device_name().encode())
    return digest.hexdigest()[:16]
