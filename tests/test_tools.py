"""The tools' versions stand in two files; this holds them together."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_pre_commit_runs_the_pinned_versions() -> None:
    pinned = set((ROOT / "requirements-dev.txt").read_text().split())
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    used = {
        requirement
        for repository in config["repos"]
        for hook in repository["hooks"]
        for requirement in hook.get("additional_dependencies", ())
    }
    assert used
    assert used <= pinned


def test_every_pin_is_exact() -> None:
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line
