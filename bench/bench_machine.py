"""The machine itself: what it moves by copying, in place and as a step does, and multiplies."""

from collections.abc import Callable

from bench.ceilings import CeilingSpec

# Four times what the caches of a core, and of an H200, hold. Products that take tenths of a second
# on two cores, and a few milliseconds on such a GPU.
spec = CeilingSpec({"cpu": 224, "cuda": 1792}, {"cpu": 1536, "cuda": 8192})


def test_machine(replay: Callable[[], None]) -> None:
    replay()
