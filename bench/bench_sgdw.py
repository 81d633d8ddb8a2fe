"""SGDW's step: torch's ways to do it, compiled, regops's, and a stream of as many bytes."""

from collections.abc import Callable

from regops.testing.sgdw import spec  # noqa: F401  (read by conftest)


def test_sgdw(replay: Callable[[], None]) -> None:
    replay()
