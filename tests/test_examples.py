"""Each training example runs from its command line, small, and writes what it says."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import char_lm
import convnet
import pytest
import torch
from torch import nn

SMALL = {
    "char_lm": [
        "--layers=1", "--width=32", "--heads=2", "--context=32", "--batch=8", "--steps=60",
    ],
    "convnet": ["--epochs=2", "--width=4"],
    "digits": ["--epochs=3", "--width=32"],
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=sorted(SMALL))
def example(request: pytest.FixtureRequest) -> ModuleType:
    """Each example as a module."""
    return importlib.import_module(request.param)


def test_both_train_from_several_seeds(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, path, plot = example.__name__, tmp_path / "results.json", tmp_path / "curves.png"
    example.main([*SMALL[name], "--seeds", "0", "1", f"--json={path}", f"--plot={plot}"])
    assert plot.read_bytes().startswith(b"\x89PNG\r\n")
    content = json.loads(path.read_text())
    assert content["name"] == name
    assert [(run["impl"], run["seed"]) for run in content["of_seeds"]] == [
        (impl, seed) for seed in (0, 1) for impl in ("torch", "regops")
    ]
    for run in content["of_seeds"]:
        assert run["train_loss"][-1] < run["train_loss"][0]
        assert run["val_loss"][-1] < run["val_loss"][0]
        assert run["seconds"] > 0.0
        assert 0.0 < run["accuracy"] <= 1.0
    printed = capsys.readouterr().out
    for impl, summary in content["runs"].items():
        of_impl = [run for run in content["of_seeds"] if run["impl"] == impl]
        assert summary["seconds"] == pytest.approx(sum(run["seconds"] for run in of_impl) / 2)
        assert f"{impl:>6}: held-out loss {summary['loss']:.4f} ± " in printed
    assert list(content["runs"]) == ["torch", "regops"]
    assert "as fast as torch (2 seeds)" in printed


@pytest.mark.parametrize("impl", ["torch", "regops"])
def test_one_implementation_alone(impl: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    char_lm.main([*SMALL["char_lm"], "--steps=20", f"--impl={impl}", f"--json={path}"])
    assert list(json.loads(path.read_text())["runs"]) == [impl]


def test_help(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        example.main(["--help"])
    printed = capsys.readouterr().out
    assert "--impl {torch,regops,both}" in printed
    assert "--seeds SEED" in printed


@pytest.mark.parametrize("wrong", ["--steps=30", "--heads=3"])
def test_the_language_model_refuses(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        char_lm.main([*SMALL["char_lm"], wrong])
    assert f"expected {wrong.split('=')[0]} to" in capsys.readouterr().err


def same_outputs(torch_model: nn.Module, regops_model: nn.Module, *inputs: Any) -> None:
    """The same weights, names and, in evaluation, outputs."""
    torch_state, regops_state = torch_model.state_dict(), regops_model.state_dict()
    assert list(torch_state) == list(regops_state)
    for name in torch_state:
        assert torch.equal(torch_state[name], regops_state[name]), name
    assert torch.equal(torch_model.eval()(*inputs), regops_model.eval()(*inputs))


def test_both_begin_with_the_same_weights() -> None:
    config = char_lm.Config(layers=2, width=16, heads=2, context=8)
    text = torch.randint(30, (2, 8))
    same_outputs(*(char_lm.make_model(impl, 1, config, 30) for impl in char_lm.OPS), text)
    images = torch.randn(2, 1, 32, 32)
    same_outputs(*(convnet.make_model(impl, 1, 4) for impl in convnet.OPS), images)


def test_without_dropout_both_train_alike() -> None:
    """Nothing but masks differs: losses agree up to what rounding grows to in 20 steps."""
    config = char_lm.Config(
        layers=1, width=16, heads=2, context=16, batch=4, steps=20, p=0.0, lr=1e-3
    )
    data = char_lm.encode(char_lm.load_text()[0][:20_000])
    torch_losses, regops_losses = (
        list(char_lm.train(impl, model, 0, data, config))
        for impl in char_lm.OPS
        for model in [char_lm.make_model(impl, 0, config, data.vocabulary)]
    )
    assert torch_losses == pytest.approx(regops_losses, rel=1e-4)


def test_the_language_model_sees_no_future() -> None:
    config = char_lm.Config(layers=2, width=16, heads=2, context=8)
    model = char_lm.make_model("regops", 0, config, 30).eval()
    text = torch.randint(30, (1, 8))
    changed = text.clone()
    changed[0, 5] = (text[0, 5] + 1) % 30
    before, after = model(text), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_text_where_documentation_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    text, source = char_lm.load_text()
    assert source == "docstrings of the standard library"
    assert len(text) > 100_000
    assert "Common operations on Posix pathnames" in text


def test_dropout_keeps_channels_last() -> None:
    model = convnet.make_model("regops", 0, 4).train()
    image = torch.randn(2, 1, 32, 32).to(memory_format=torch.channels_last)
    dropped = 0
    for module in model:
        image = module(image)
        if isinstance(module, nn.Dropout) and image.dim() == 4:
            assert image.is_contiguous(memory_format=torch.channels_last)
            assert not image.is_contiguous()
            dropped += 1
    assert dropped == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json=/no/such/folder/x.json"], "there is no folder /no/such/folder"),
        (["--plot=/no/such/folder/x.png"], "there is no folder /no/such/folder"),
        (["--width=0"], "expected a whole number of at least 1, got '0'"),
    ],
)
def test_wrong_arguments_are_refused_before_training(
    example: ModuleType, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        example.main(arguments)
    assert words in capsys.readouterr().err
