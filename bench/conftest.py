"""Hands measurements to pytest-benchmark: one test per provider, one group per comparison.

A benchmark module needs a `spec`, of an op or a step, and a test that calls `replay`; an op that
draws random numbers also a `law` (see `bench.verify`). The first test of an op, dtype and size
measures all its providers and directions in turns, the others replay what was recorded then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import regops
from bench.journal import Journal
from bench.libraries import absence
from bench.measure import Outcome, measure
from bench.neighbours import Patience
from bench.peers import peer_facts
from bench.profiles import PROFILES, AnyPoint, Profile, Selection
from bench.summary import MACHINE
from bench.timing import replay_timer
from bench.verify import Law
from regops.testing import Direction

_NOT_TIMED = pytest.StashKey[list[dict[str, Any]]]()
_PATIENCE = pytest.StashKey[Patience]()
_LOAD = pytest.StashKey[float]()
_JOURNAL = pytest.StashKey[Journal]()
_OFFERED = pytest.StashKey[dict[str, set[str]]]()


class Place(NamedTuple):
    """What one test stands for."""

    point: AnyPoint
    direction: Direction
    provider: str


# What can be asked for by name: the fields of a Selection, and what they are called in an option.
_BY_NAME = {
    "ops": ("op", "as in dropout"),
    "sizes": ("size", "as in 16M, whatever the profile's limits are"),
    "dtypes": ("dtype", "as in float32"),
    "devices": ("device", "cpu or cuda; default: the CPU and, where there is one, the GPU"),
    "providers": ("provider", "as in eager"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("regops benchmarks")
    group.addoption(
        "--bench-profile",
        choices=sorted(PROFILES),
        default=os.environ.get("REGOPS_BENCH_PROFILE", "default"),
        help="how much to measure (or REGOPS_BENCH_PROFILE); default: %(default)s",
    )
    for option, example in _BY_NAME.values():
        group.addoption(
            f"--bench-{option}", action="append", default=[], help=f"{example}; may be repeated"
        )
    group.addoption("--bench-journal", type=Path, help="keep what was measured in this file")
    group.addoption("--bench-resume", action="store_true", help="take what the journal has")
    group.addoption("--bench-arguments", help="what to record as the command's arguments")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_NOT_TIMED] = []
    config.stash[_PATIENCE] = Patience(_profile(config).patience_s)
    config.stash[_LOAD] = os.getloadavg()[0]
    config.stash[_OFFERED] = {"ops": set(), "sizes": set(), "providers": set()}
    config.stash[_JOURNAL] = Journal(
        config.getoption("--bench-journal"),
        _profile(config).name,
        config.getoption("--bench-resume"),
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    spec = metafunc.module.spec
    selection = selection_of(config)
    points = list(_profile(config).points(spec, selection))
    places = [
        Place(point, direction, provider)
        for point in points
        if not selection.ops or point.op in selection.ops
        for direction in point.directions
        for provider in point.providers
        if not selection.providers or provider in selection.providers
    ]
    offered = config.stash[_OFFERED]
    offered["ops"].add(spec.name.removesuffix("_step_"))
    offered["sizes"].update(case.name for case in getattr(spec, "bench_cases", ()))
    offered["providers"].update(name for point in points for name in point.providers)
    ids = [f"{place.point.group(place.direction)}-{place.provider}" for place in places]
    metafunc.parametrize("place", places, ids=ids)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops what pytest makes of an op with nothing to time; refuses names that nothing has."""
    items[:] = [item for item in items if isinstance(item.callspec.params.get("place"), Place)]
    # What all rows are read by comes first: an interrupted run has it, too.
    items.sort(key=lambda item: item.callspec.params["place"].point.op != MACHINE)
    selection = selection_of(config)
    refuse_unknown(selection, config.stash[_OFFERED])
    ops = {item.callspec.params["place"].point.op for item in items}
    if selection.ops and not ops & (set(selection.ops) - {MACHINE} or {MACHINE}):
        raise pytest.UsageError("nothing to time: what is asked for has no size or type in common")


def refuse_unknown(selection: Selection, offered: Mapping[str, Collection[str]]) -> None:
    """Raises UsageError where a name is none of those that benchmarks have.

    Args:
        selection: What was asked for.
        offered: What there is, by field of the selection.
    """
    for field, names in offered.items():
        unknown = set(getattr(selection, field)) - set(names)
        if unknown:
            raise pytest.UsageError(
                f"no benchmark has the {_BY_NAME[field][0]} {', '.join(sorted(unknown))}; "
                f"there are: {', '.join(sorted(names))}"
            )


@pytest.fixture
def replay(request: pytest.FixtureRequest, place: Place) -> Callable[[], None]:
    """Feeds pytest-benchmark, or says why the provider was not timed: regops must be."""
    law = getattr(request.module, "law", None)
    absent = _absent(place.point, place.provider)

    def run() -> None:
        if absent:
            pytest.skip(absent)
        outcome = _outcome(request.config, place, law)
        if not outcome.right:
            why = "wrong" if outcome.wrong else "failed"
            reason = outcome.wrong or outcome.error or ""
            request.config.stash[_NOT_TIMED].append(
                {**_facts(place), "why": why, "reason": reason.strip().split("\n", 1)[0]}
            )
            text = f"{place.provider} is not timed, {why}: {reason}"
            if place.provider == "regops":
                pytest.fail(text, pytrace=False)
            pytest.skip(text)
        recorded = outcome.recorded[place.direction]
        request.node.add_marker(
            pytest.mark.benchmark(
                group=place.point.group(place.direction), timer=replay_timer(recorded.durations)
            )
        )
        benchmark = request.getfixturevalue("benchmark")
        benchmark.extra_info.update(_facts(place), **_measured(place, outcome))
        benchmark.pedantic(
            lambda: None, rounds=len(recorded.durations), iterations=recorded.repeats
        )

    return run


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    profile = _profile(config)
    arguments = config.getoption("--bench-arguments")
    output_json["regops"] = {
        "profile": profile.name,
        "arguments": arguments.split() if arguments else [f"--profile={profile.name}"],
        "load_average": config.stash[_LOAD],
        "info": regops.info(),
        "peers": peer_facts(),
        "not_timed": config.stash[_NOT_TIMED],
    }


def _profile(config: pytest.Config) -> Profile:
    return PROFILES[config.getoption("--bench-profile")]


def selection_of(config: pytest.Config) -> Selection:
    """What the options ask for by name.

    Raises:
        pytest.UsageError: No such type or device.
    """
    asked = {
        name: tuple(config.getoption(f"--bench-{option}")) for name, (option, _) in _BY_NAME.items()
    }
    for name in asked["dtypes"]:
        if not isinstance(getattr(torch, name, None), torch.dtype):
            raise pytest.UsageError(f"torch has no dtype {name}")
    for name in asked["devices"]:
        kind, _, index = name.partition(":")
        there = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(kind, 0)
        if not (index or "0").isdecimal() or int(index or "0") >= there:
            raise pytest.UsageError(f"no device {name} here")
    available = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    asked["devices"] = asked["devices"] or available
    return Selection(**asked)


def _absent(point: AnyPoint, provider: str) -> str | None:
    if point.too_large:
        return f"{point.op} {point.size}, {point.device}: {point.too_large}"
    peer = point.peers.get(provider)
    return absence(provider, peer) if peer else None


def _outcome(config: pytest.Config, place: Place, law: Law | None) -> Outcome:
    point, journal = place.point, config.stash[_JOURNAL]
    chosen = selection_of(config).providers
    present = [
        name
        for name in point.providers
        if not _absent(point, name) and (not chosen or name in chosen)
    ]
    key = point.group("+".join(point.directions))
    outcomes = journal.find(key, present)
    if outcomes is None:
        outcomes = measure(point, present, _profile(config), law, config.stash[_PATIENCE])
        journal.add(key, outcomes)
    return outcomes[place.provider]


def _facts(place: Place) -> dict[str, Any]:
    """What is known of a test beforehand."""
    point = place.point
    info = regops.info()
    return {
        "group": point.group(place.direction),
        "op": point.op,
        "direction": place.direction,
        "dtype": point.dtype_name,
        "size": point.size,
        "device": point.device,
        "provider": place.provider,
        **point.facts,
        "cache": point.cache,
        "launch": "graph" if point.setting.graph else "calls",
        "bytes_moved": point.bytes_moved(place.direction),
        "flops": point.flops(place.direction),
        "threads": point.setting.threads or info["threads"],
        "isa": info["cpu_capability"],
        "regops": info["regops"],
        "torch": info["torch"],
        "python": info["python"],
    }


def _measured(place: Place, outcome: Outcome) -> dict[str, Any]:
    memory = outcome.memory
    return {
        "others_cpu_share": outcome.others[place.direction],
        "probe_s": outcome.probes[place.direction],
        "forward_peak_bytes": memory.peak if memory else None,
        "forward_to_backward_bytes": memory.state if memory else None,
        "full_peak_bytes": memory.full_peak if memory else None,
        "extra_bytes": memory.extra if memory else None,
    }
