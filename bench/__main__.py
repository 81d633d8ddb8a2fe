"""`python -m bench`: times, writes `bench/out/`, trains the example, and reports.

Ctrl-C ends the timing; what was measured by then is reported.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import report
from bench.profiles import PROFILES

ROOT = Path(__file__).parent.parent


class LiveProgress:
    """A pytest plugin: a bar with the current benchmark in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console):
        self._console = console
        self._start = time.perf_counter()
        self._group = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            # A thread that refreshes the bar would take the interpreter from what is being timed.
            auto_refresh=False,
            disable=not console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Starts the bar with the number of benchmarks."""
        self._progress.start()
        self._task = self._progress.add_task("starting", total=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Names the group that runs now: all its providers are measured at its first test."""
        group = nodeid.partition("[")[2].rpartition("-")[0]
        if group != self._group:
            self._group = group
            self._progress.update(self._task, description=group, refresh=True)
            if not self._console.is_terminal:
                elapsed = time.perf_counter() - self._start
                self._console.print(f"{elapsed:6.1f} s  {group}", highlight=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts a benchmark; says at once why one was not timed."""
        if report.failed or report.skipped:
            reason = str(report.longrepr[2] if report.skipped else report.longrepr)
            self._progress.console.print(f"{report.nodeid}\n{reason}", markup=False)
        if report.when == "teardown":
            self._progress.update(self._task, advance=1, refresh=True)

    def pytest_sessionfinish(self) -> None:
        """Removes the bar."""
        self._progress.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a profile.

    Returns:
        0 if everything was timed and the example ran, otherwise pytest's or the example's status.
    """
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="default")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    results, digits = options.out / "benchmark.json", options.out / "digits.json"
    for stale in (results, digits):
        stale.unlink(missing_ok=True)

    # Its own handle on the terminal, because pytest captures the usual one while a test runs.
    console = Console(file=os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8"))
    status = int(
        pytest.main(
            [
                str(ROOT / "bench"),
                f"--rootdir={ROOT}",
                "--bench-profile",
                options.profile,
                f"--benchmark-json={results}",
                "--benchmark-quiet",
                # Its place is taken by the progress; the project's addopts would need it.
                "-pno:terminal",
                "-oaddopts=",
                "-pno:cacheprovider",
            ],
            plugins=[LiveProgress(console)],
        )
    )
    if status == pytest.ExitCode.INTERRUPTED:
        console.print("interrupted: reporting what was measured")
    else:
        status = status or _train(digits, PROFILES[options.profile].epochs)
    if not results.exists():
        console.print("nothing was timed, so there is nothing to report")
        return status or 1
    # Relative, if it can be: shorter to read, and to click on in a terminal.
    here = results.relative_to(Path.cwd()) if results.is_relative_to(Path.cwd()) else results
    report.main([str(here)])
    return status


def _train(result: Path, epochs: int) -> int:
    # Its own process: training has other memory and threads than what was just timed left behind.
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples" / "digits.py"),
            f"--epochs={epochs}",
            f"--json={result}",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
