"""Cross-entropy: torch's, compiled, regops's, and a copy of as many bytes."""

from collections.abc import Callable

from regops.testing.cross_entropy import spec  # noqa: F401  (read by conftest)


def test_cross_entropy(replay: Callable[[], None]) -> None:
    replay()
