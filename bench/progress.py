"""Live progress of a run: what is timed now, and when it will be done."""

from __future__ import annotations

import time

import pytest
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.profiles import PROFILES, AnyPoint

# Before any is measured: the parts of a point's time that are not its budget. Making and comparing
# results takes about so many seconds for each provider's element, and compiling one so many.
_SECONDS_PER_ELEMENT, _SECONDS_PER_PROVIDER = 3e-8, 0.3

# Points after which what they took tells more about the machine than the guess does.
_GUESSED_POINTS = 3


def expected_seconds(point: AnyPoint, budget_s: float) -> float:
    """A guess of what a point takes, good enough to weigh points by."""
    numel = point.facts["numel"]
    each = _SECONDS_PER_PROVIDER + numel * _SECONDS_PER_ELEMENT
    return budget_s * len(point.directions) + each * len(point.providers)


class Estimate:
    """How long the rest takes, by what the points until now took against their guesses."""

    def __init__(self, guesses: list[float]):
        self._rest = sum(guesses)
        self._guessed = self._taken = 0.0
        self._points = 0

    def done(self, guess: float, seconds: float) -> None:
        """A point took some seconds."""
        self._rest -= guess
        self._guessed += guess
        self._taken += seconds
        self._points += 1

    def skip(self, guess: float) -> None:
        """A point was taken from a journal."""
        self._rest -= guess

    @property
    def remaining(self) -> float:
        """Seconds."""
        known = self._points > _GUESSED_POINTS
        return max(0.0, self._rest) * (self._taken / self._guessed if known else 1.0)


class LiveProgress:
    """A pytest plugin: a bar with the current benchmark in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console):
        self._console = console
        self._start = time.perf_counter()
        self._point: AnyPoint | None = None
        self._began = self._start
        self._said: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rest]}"),
            console=console,
            # A thread that refreshes the bar would take the interpreter from what is being timed.
            auto_refresh=False,
            disable=not console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Starts the bar with the number of points."""
        budget_s = PROFILES[session.config.getoption("--bench-profile")].budget_s
        points = dict.fromkeys(item.callspec.params["place"].point for item in session.items)
        self._guesses = {point: expected_seconds(point, budget_s) for point in points}
        self._estimate = Estimate(list(self._guesses.values()))
        self._progress.start()
        self._task = self._progress.add_task("starting", total=len(points), rest="")

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Names the point that is measured now: at its first test, all its providers are."""
        point = item.callspec.params["place"].point
        if point is self._point:
            return
        self._finish()
        self._point, self._began = point, time.perf_counter()
        name = point.group("-".join(point.directions))
        rest = f"about {_minutes(self._estimate.remaining)} left"
        self._progress.update(self._task, description=name, rest=rest, refresh=True)
        if not self._console.is_terminal:
            elapsed = time.perf_counter() - self._start
            line = f"{elapsed:6.1f} s, {rest}: {name}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Says at once, and once, why a provider was not timed."""
        if report.failed:
            self._progress.console.print(f"{report.nodeid}\n{report.longrepr}", markup=False)
        elif report.skipped:
            reason = str(report.longrepr[2]).removeprefix("Skipped: ")
            if reason not in self._said:
                self._said.add(reason)
                self._progress.console.print(reason, markup=False, highlight=False)

    def pytest_sessionfinish(self) -> None:
        """Removes the bar."""
        self._finish()
        self._progress.stop()

    def _finish(self) -> None:
        if self._point is None:
            return
        guess, seconds = self._guesses[self._point], time.perf_counter() - self._began
        # What takes a hundredth of its budget was not measured now.
        if seconds < guess / 100:
            self._estimate.skip(guess)
        else:
            self._estimate.done(guess, seconds)
        self._progress.update(self._task, advance=1, refresh=True)
        self._point = None


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
