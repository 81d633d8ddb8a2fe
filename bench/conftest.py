"""Hands measurements to pytest-benchmark: one test per provider, one group per comparison.

A benchmark module needs a `spec`, of an op or a step, and a test that calls `replay`; an op that
draws random numbers also a `law` (see `bench.verify`). The first test of an op, dtype and size
measures all its providers and directions in turns, the others replay what was recorded then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

import regops
from bench.measure import Outcome, measure
from bench.neighbours import Patience
from bench.profiles import PROFILES, Profile
from bench.providers import Point
from bench.steps import StepPoint
from bench.timing import replay_timer
from bench.verify import Law
from regops.testing import Direction

_NOT_TIMED = pytest.StashKey[dict[str, str]]()
_PATIENCE = pytest.StashKey[Patience]()
_LOAD = pytest.StashKey[float]()
_MEASURED = pytest.StashKey[dict[Point | StepPoint, dict[str, Outcome]]]()


class _Place(NamedTuple):
    """What one test stands for."""

    point: Point | StepPoint
    direction: Direction
    provider: str


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("regops benchmarks")
    group.addoption(
        "--bench-profile",
        choices=sorted(PROFILES),
        default=os.environ.get("REGOPS_BENCH_PROFILE", "default"),
        help="how much to measure (or REGOPS_BENCH_PROFILE); default: %(default)s",
    )
    group.addoption(
        "--bench-device",
        action="append",
        help="cpu or cuda, may be repeated; default: the CPU and, where there is one, the GPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_NOT_TIMED] = {}
    config.stash[_MEASURED] = {}
    config.stash[_PATIENCE] = Patience()
    config.stash[_LOAD] = os.getloadavg()[0]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    profile = _profile(metafunc.config)
    spec = metafunc.module.spec
    places = [
        _Place(point, direction, provider)
        for device in _devices(metafunc.config)
        for point in profile.points(spec, device)
        for direction in point.directions
        for provider in point.providers
    ]
    ids = [f"{place.point.group(place.direction)}-{place.provider}" for place in places]
    metafunc.parametrize("place", places, ids=ids)


@pytest.fixture
def replay(request: pytest.FixtureRequest, place: _Place) -> Callable[[], None]:
    """Fails with the reason if the provider was not timed, otherwise feeds pytest-benchmark."""
    law = getattr(request.module, "law", None)
    absent = _absent(place.point, place.provider)

    def run() -> None:
        if absent:
            request.config.stash[_NOT_TIMED][request.node.name] = absent
            pytest.skip(absent)
        outcome = _measured(request.config, place.point, law)[place.provider]
        if outcome.error:
            request.config.stash[_NOT_TIMED][request.node.name] = outcome.error
            pytest.fail(outcome.error, pytrace=False)
        recorded = outcome.recorded[place.direction]
        request.node.add_marker(
            pytest.mark.benchmark(
                group=place.point.group(place.direction), timer=replay_timer(recorded.durations)
            )
        )
        benchmark = request.getfixturevalue("benchmark")
        benchmark.extra_info.update(_facts(place, outcome))
        benchmark.pedantic(
            lambda: None, rounds=len(recorded.durations), iterations=recorded.repeats
        )

    return run


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    output_json["regops"] = {
        "profile": _profile(config).name,
        "load_average": config.stash[_LOAD],
        "info": regops.info(),
        "not_timed": config.stash[_NOT_TIMED],
    }


def _profile(config: pytest.Config) -> Profile:
    return PROFILES[config.getoption("--bench-profile")]


def _devices(config: pytest.Config) -> list[str]:
    available = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return config.getoption("--bench-device") or available


def _absent(point: Point | StepPoint, provider: str) -> str | None:
    if isinstance(point, StepPoint) and point.too_large:
        return f"{provider}: {point.too_large}"
    peer = point.peers.get(provider)
    return f"{provider}: {peer.module} is not importable" if peer and not peer.importable else None


def _measured(
    config: pytest.Config, point: Point | StepPoint, law: Law | None
) -> dict[str, Outcome]:
    measured = config.stash[_MEASURED]
    if point not in measured:
        present = [name for name in point.providers if not _absent(point, name)]
        measured[point] = measure(point, present, _profile(config), law, config.stash[_PATIENCE])
    return measured[point]


def _facts(place: _Place, outcome: Outcome) -> dict[str, Any]:
    point = place.point
    info = regops.info()
    return {
        "op": point.op,
        "direction": place.direction,
        "dtype": point.dtype_name,
        "size": point.case.name,
        "device": point.device,
        "provider": place.provider,
        **point.facts,
        "numel": point.case.numel,
        "in_cache": point.case.in_cache,
        "bytes_moved": point.bytes_moved(place.direction),
        "bytes_formula": point.spec.bytes_formula,
        "others_cpu_share": outcome.others[place.direction],
        "forward_peak_bytes": outcome.memory.peak if outcome.memory else None,
        "forward_to_backward_bytes": outcome.memory.state if outcome.memory else None,
        "full_peak_bytes": outcome.memory.full_peak if outcome.memory else None,
        "extra_bytes": outcome.memory.extra if outcome.memory else None,
        "threads": info["threads"],
        "isa": info["cpu_capability"],
        "regops": info["regops"],
        "torch": info["torch"],
        "python": info["python"],
    }
