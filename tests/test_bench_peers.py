"""Other libraries in benchmarks: used where they can be imported, named with version where not."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor

import regops.optim
from bench import install_peers, peers
from bench.libraries import ON_CPU, ON_CUDA, ROOT, Peer, absence, peers_on, requirements
from bench.measure import measure
from bench.neighbours import Patience
from bench.peers import PEERS
from bench.providers import Point
from bench.steps import StepPoint
from bench.verify import Verifier
from regops.testing import BenchCase, specs, step_specs
from tests.bench_profile import QUICK

EVERY = [(op, name) for op, of_op in PEERS.items() for name in of_op]
FILES = (ON_CPU, ON_CUDA, ROOT / "requirements-dev.txt")


def bench_cases(op: str) -> Iterator[Any]:
    spec = specs().get(op) or step_specs()[f"{op}_step_"]
    yield from spec.bench_cases


def pinned(package: str) -> list[Requirement]:
    return [pins[package] for path in FILES if package in (pins := requirements(path))]


# ---- the table ----


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_a_peer_is_pinned_once_and_runs_some_case(op: str, name: str) -> None:
    peer = PEERS[op][name]
    (pin,) = pinned(peer.package)
    assert peer.version
    assert peer.version in str(pin)
    assert "-" not in name  # which parts the names of tests
    assert peer.devices in (("cpu",), ("cuda",), ("cpu", "cuda"))
    assert any(peers_on(peer.devices[0], {name: peer}, case.kwargs) for case in bench_cases(op))
    options = {option for case in bench_cases(op) for option in case.kwargs}
    assert options >= set(peer.lacks)


def test_a_library_is_one_under_one_name() -> None:
    every = [(name, peer) for of_op in PEERS.values() for name, peer in of_op.items()]
    told = {(name, peer.package, peer.devices) for name, peer in every if peer.package != "torch"}
    assert max(Counter(name for name, *_ in told).values()) == 1
    assert max(Counter(package for _, package, _ in told).values()) == 1


def test_what_is_pinned_is_a_peer_of_that_device_and_exact() -> None:
    packages = {peer.package: peer for of_op in PEERS.values() for peer in of_op.values()}
    for path, on_cpu in ((ON_CPU, True), (ON_CUDA, False)):
        for package, pin in requirements(path).items():
            assert ("cpu" in packages[package].devices) == on_cpu
            exact = re.fullmatch(r"==[\w.]+", str(pin.specifier))
            assert exact or re.search(r"@[0-9a-f]{40}$", pin.url or "")


def test_who_lacks_an_option_is_left_out_where_it_is_set() -> None:
    named = PEERS["linear_cross_entropy"]
    assert "chunked" in peers_on("cpu", named, {"classes": 7})
    assert "chunked" not in peers_on("cpu", named, {"classes": 7, "label_smoothing": 0.1})
    assert not peers_on("cpu", named, {"classes": 7}).keys() & {"liger", "quack"}
    assert peers_on("cuda:1", named, {"classes": 7}).keys() == named.keys()


# ---- absent, and there ----


def test_an_absent_peer_is_named_with_version_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = dataclasses.replace(PEERS["adamw"]["optimi"], module="no_such_library")
    (pin,) = pinned("torch-optimi")
    version = str(pin.specifier).removeprefix("==")
    assert absence("optimi", missing) == f"optimi {version}: not installed: make bench-peers"
    of_torch = dataclasses.replace(missing, distribution="torch")
    assert of_torch.absent == f"not in torch {torch.__version__}"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dataclasses.replace(missing, devices=("cuda",)).absent == "needs CUDA"
    assert absence("other", Peer("json", ("cpu",), print)) is None


def library(folder: Path) -> Peer:
    """An installed library whose AdamW has defaults of its own, and clears gradients otherwise."""
    (folder / "fake_optimizers.py").write_text(
        "import torch\n"
        "class AdamW(torch.optim.AdamW):\n"
        "    def __init__(self, params, lr, betas=(0.8, 0.9), **options):\n"
        "        super().__init__(params, lr=lr, betas=betas, **options)\n"
        "    def zero_grad(self):\n"
        "        raise NotImplementedError\n"
    )
    metadata = folder / "fake_optimizers-7.8.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: fake-optimizers\nVersion: 7.8.9\n")
    return Peer(
        "fake_optimizers",
        ("cpu",),
        peers._optimizer("fake_optimizers", "AdamW", betas=(0.9, 0.999)),
    )


def test_facts_of_every_peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there, missing = library(tmp_path), Peer("no_such_library", ("cpu", "cuda"), print, note="slow")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PEERS, "adamw", {"there": there, "missing": missing})
    monkeypatch.setitem(PEERS, "sgdw", {"missing": missing})
    facts = {fact["name"]: fact for fact in json.loads(json.dumps(peers.peer_facts()))}
    assert facts.keys() == {name for of_op in PEERS.values() for name in of_op}
    assert facts["there"] == {
        "name": "there",
        "package": "fake-optimizers",
        "ops": ["adamw"],
        "devices": ["cpu"],
        "installed": "7.8.9",
        "pinned": None,
        "absent": None,
        "notes": [],
    }
    assert facts["missing"]["ops"] == ["adamw", "sgdw"]
    assert facts["missing"]["installed"] is None
    assert facts["missing"]["absent"] == "not installed: make bench-peers"
    assert facts["missing"]["notes"] == ["slow"]


def test_pytest_times_who_is_there_and_skips_who_is_not(tmp_path: Path) -> None:
    library(tmp_path)
    (tmp_path / "with_peers.py").write_text(
        "from bench import neighbours\n"
        "from bench.libraries import Peer\n"
        "from bench.peers import PEERS, _optimizer\n"
        "neighbours.DISTURBED = 1.0  # nothing is timed again\n"
        "build = _optimizer('fake_optimizers', 'AdamW', betas=(0.9, 0.999))\n"
        "PEERS['adamw'] = {\n"
        "    'there': Peer('fake_optimizers', ('cpu',), build),\n"
        "    'missing': Peer('no_such_library', ('cpu',), build, 'deepspeed'),\n"
        "}\n"
    )
    chosen = ["--bench-device=cpu", "--bench-size=1x4096", "--bench-size=16x4096-clip-zero-ema"]
    chosen += ["--bench-provider=there", "--bench-provider=missing", "--bench-profile=smoke"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-pwith_peers", "-rA", "bench/bench_adamw.py", *chosen],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    for case in ("1x4096", "16x4096-clip-zero-ema"):
        assert f"PASSED bench/bench_adamw.py::test_adamw[adamw-step-float32-{case}-cpu-there]" in (
            result.stdout
        )
    version = PEERS["adamw"]["deepspeed"].version
    assert f"missing {version}: not installed: make bench-peers" in result.stdout
    assert "2 passed, 2 skipped" in result.stdout


# ---- the same work ----


@pytest.mark.parametrize("rule", ["decoupled", "none", "coupled"])
def test_a_peer_of_sgdw_decays_by_itself(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    def build(params: list[Tensor], arguments: dict[str, Any]) -> torch.optim.Optimizer:
        if rule == "decoupled":
            return regops.optim.SGDW(params, **arguments)
        decay = arguments["weight_decay"] if rule == "coupled" else 0.0
        return torch.optim.SGD(params, **{**arguments, "weight_decay": decay})

    case = next(case for case in bench_cases("sgdw") if not case.options)
    point = StepPoint(
        step_specs()["sgdw_step_"], dataclasses.replace(case, shapes=((33,), (5, 7))), "cpu"
    )
    monkeypatch.setitem(PEERS, "sgdw", {"other": Peer("torch", ("cpu",), build)})
    outcome = measure(point, ["other"], QUICK, None, Patience(0))["other"]
    assert outcome.error is None
    assert (outcome.wrong is None) == (rule == "decoupled")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_chunks_without_falling_back(dtype: torch.dtype) -> None:
    peer = PEERS["linear_cross_entropy"]["chunked"]
    if peer.absent:
        pytest.skip(peer.absent)
    case = BenchCase("96x16x300", (96, 16), {"classes": 300, "bias": True})
    point = Point(specs()["linear_cross_entropy"], case, dtype, "cpu")
    inputs = point.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Verifier(point, inputs, None)("chunked", peer.build(point, inputs.arguments))


# ---- make bench-peers ----


def test_make_has_the_target() -> None:
    output = subprocess.check_output(["make", "--dry-run", "bench-peers"], cwd=ROOT, text=True)
    assert "-m bench.install_peers" in output


def test_without_a_gpu_only_what_runs_on_a_cpu_is_installed() -> None:
    linux = sys.platform == "linux"
    assert install_peers.chosen(cuda=False).keys() <= requirements(ON_CPU).keys()
    both = requirements(ON_CPU).keys() | requirements(ON_CUDA).keys()
    assert not linux or install_peers.chosen(cuda=True).keys() == both


def test_no_version_of_development_changes(tmp_path: Path) -> None:
    development = tmp_path / "requirements.txt"
    development.write_text("# two\ntorch==1.0\nno-such-package==3\n")
    assert install_peers.constraints(development) == [f"torch=={torch.__version__}"]


@pytest.mark.parametrize("broken", [("timm",), ("torchao", "timm"), None])
def test_one_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: tuple[str, ...] | None,
) -> None:
    pins = install_peers.chosen(cuda=False)
    failing = pins.keys() if broken is None else set(broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        install_peers,
        "install",
        lambda package, *_: "no such wheel" if package in failing else None,
    )
    assert install_peers.main() == (broken is None)
    printed = capsys.readouterr().out
    assert re.findall(r"failed: (\S+): no such wheel", printed) == [
        package for package in pins if package in failing
    ]
    there = ", ".join(sorted(pins.keys() - failing)) or "nothing"
    assert f"installed: {there}\n" in printed


@pytest.mark.parametrize("importable", [True, False])
def test_what_cannot_be_imported_is_removed_again(
    monkeypatch: pytest.MonkeyPatch, importable: bool
) -> None:
    commands = []

    def run(command: list[str]) -> str | None:
        commands.append(command[1:])
        return None if "-m" in command or importable else "ImportError: no"

    packages = iter([{"torch", "timm-like"}, {"torch", "timm-like", "timm", "torchvision"}])
    monkeypatch.setattr(install_peers, "_run", run)
    monkeypatch.setattr(install_peers, "_installed", lambda: next(packages))
    reason = install_peers.install("timm", Requirement("timm==1.0"), Path("constraints.txt"))
    assert reason == (None if importable else "ImportError: no")
    assert commands[0][:3] == ["-m", "pip", "install"]
    assert commands[0][-3:] == ["--constraint", "constraints.txt", "timm==1.0"]
    assert commands[1] == ["-c", "import torch, timm"]
    removed = [command[-2:] for command in commands if "uninstall" in command]
    assert removed == ([] if importable else [["timm", "torchvision"]])


def test_a_failure_is_told_in_a_line() -> None:
    python = [sys.executable, "-c"]
    assert install_peers._run([*python, "pass"]) is None
    assert install_peers._run([*python, "raise ValueError('no')"]) == "ValueError: no"
    assert install_peers._run([*python, "exit(3)"]) == "exit status 3"
