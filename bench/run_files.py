"""Files of runs as they are named on a command line, and what a run is known by in words."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from bench.summary import Summary, load


class RunFile(NamedTuple):
    """A run, and the file that it was read from."""

    path: Path
    summary: Summary


def run_file(argument: str) -> RunFile:
    """For argparse's `type`: a `summary.json`, or pytest-benchmark's JSON of a run of this package.

    Raises:
        argparse.ArgumentTypeError: There is no such file, or it is something else; argparse prints
            it and exits with 2.
    """
    path = Path(argument)
    try:
        return RunFile(path, load(path))
    except OSError as error:
        reason = f"{path}: {error.strerror}; `python -m bench` writes such a file"
    except json.JSONDecodeError as error:
        reason = f"{path}: not JSON: {error}"
    except ValueError as error:
        reason = str(error)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{path}: not of a run of `python -m bench` ({type(error).__name__}: {error})"
    raise argparse.ArgumentTypeError(reason)


def described(summary: Summary) -> str:
    """Where, when and of what a run was made, in a line."""
    machine = summary.machine
    commit, _, dirty = summary.commit.partition("-")
    source = f"commit {commit[:7]}{' with changes' if dirty else ''}" if commit else ""
    facts = (
        machine["gpu"],
        machine["processor"],
        f"{machine['threads']} threads",
        machine["cpu_capability"],
        f"torch {machine['torch']}",
        f"regops {machine['regops']}",
        source,
        f"profile {summary.profile}",
        summary.created,
    )
    return ", ".join(fact for fact in facts if fact)
