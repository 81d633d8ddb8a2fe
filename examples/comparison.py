"""Trains the same network with torch's ops and with regops's, in turn, and compares the two.

What the examples here share: options, a progress bar, timing, the summary and the plot. `train` of
an example is the training itself, and needs nothing of this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

IMPLS = ("torch", "regops")


@dataclass
class Run:
    """One training, with losses in nats.

    Attributes:
        impl: "torch" or "regops".
        seed: Of the initial weights and the masks.
        seconds: Wall time of training, without evaluation.
        train_loss: Of each round, its mean over steps, dropout and label smoothing included.
        val_loss: After each round, of held-out data, without either.
        accuracy: Share of held-out data that is predicted right, at the end.
    """

    impl: str
    seed: int
    seconds: float = 0.0
    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    accuracy: float = 0.0


def output_path(text: str) -> Path:
    """An argument that names a file to write: better refused before the training than after."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all examples have."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    result.add_argument("--impl", choices=(*IMPLS, "both"), default="both")
    result.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    result.add_argument("--json", type=output_path, help="write times, losses and accuracies here")
    result.add_argument("--plot", type=output_path, help="draw the loss curves here, as a PNG")
    return result


def compare(
    options: argparse.Namespace,
    rounds: int,
    model: Callable[[str, int], nn.Module],
    train: Callable[[str, nn.Module, int], Iterator[float]],
    evaluate: Callable[[nn.Module], tuple[float, float]],
) -> list[Run]:
    """Trains each chosen implementation from each seed.

    Args:
        options: From `parser`.
        rounds: Parts of a training: epochs, or blocks of steps.
        model: Makes a model, of (implementation, seed).
        train: Trains it, of (implementation, model, seed), and yields each round's mean loss.
        evaluate: Loss and accuracy of held-out data.
    """
    impls = IMPLS if options.impl == "both" else (options.impl,)
    runs: list[Run] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=len(options.seeds) * rounds * len(impls), loss="")
        for seed in options.seeds:
            models = {impl: model(impl, seed) for impl in impls}
            trainings = {impl: train(impl, models[impl], seed) for impl in impls}
            of_seed = {impl: Run(impl, seed) for impl in impls}
            for number in range(rounds):
                # Round by round in turn, so that a machine that slows down slows both.
                for impl in impls if number % 2 else reversed(impls):
                    run = of_seed[impl]
                    progress.update(task, description=f"seed {seed}, {impl:>6}")
                    start = time.perf_counter()
                    run.train_loss.append(next(trainings[impl]))
                    run.seconds += time.perf_counter() - start
                    loss, run.accuracy = evaluate(models[impl])
                    run.val_loss.append(loss)
                    progress.update(task, advance=1, loss=f"held-out loss {loss:.3f}")
            runs += of_seed.values()
    return runs


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean, and standard deviation over seeds; 0 for one seed."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def report(name: str, steps: int, runs: list[Run], options: argparse.Namespace) -> None:
    """Prints losses, accuracies and times, and writes the files that were asked for.

    Args:
        name: Of the example.
        steps: Of the optimizer, a run.
        runs: From `compare`.
        options: From `parser`.
    """
    summary: dict[str, Any] = {}
    seeds = len({run.seed for run in runs})
    for impl in dict.fromkeys(run.impl for run in runs):
        of_impl = [run for run in runs if run.impl == impl]
        loss, loss_spread = mean_and_spread([run.val_loss[-1] for run in of_impl])
        accuracy, accuracy_spread = mean_and_spread([run.accuracy for run in of_impl])
        seconds, seconds_spread = mean_and_spread([run.seconds for run in of_impl])
        summary[impl] = {"seconds": seconds, "accuracy": accuracy, "loss": loss}
        print(
            f"{impl:>6}: held-out loss {loss:.4f} ± {loss_spread:.4f}, "
            f"accuracy {accuracy:.2%} ± {accuracy_spread:.2%}, "
            f"{seconds:.2f} ± {seconds_spread:.2f} s for {steps} steps"
        )
    if len(summary) == 2:
        ratio = summary["torch"]["seconds"] / summary["regops"]["seconds"]
        print(f"regops trains {ratio:.2f}x as fast as torch ({seeds} seed{'s'[: seeds > 1]})")
    if options.json:
        content = {"name": name, "steps": steps, "runs": summary}
        content["of_seeds"] = [asdict(run) for run in runs]
        options.json.write_text(json.dumps(content))
    if options.plot:
        plot(runs, steps, options.plot)


def plot(runs: list[Run], steps: int, path: Path) -> None:
    """Draws training and held-out loss, of each run a line."""
    from matplotlib.figure import Figure  # only here: a user may not have it

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    left.set(title="training, with dropout and smoothing", ylabel="loss in nats")
    right.set(title="held out, without")
    styles = {"torch": {"color": "tab:blue"}, "regops": {"color": "tab:orange", "ls": "--"}}
    for impl, style in styles.items():
        for number, run in enumerate(run for run in runs if run.impl == impl):
            label = impl if number == 0 else None
            each = steps / len(run.val_loss)
            ends = [each * (done + 1) for done in range(len(run.val_loss))]
            middles = [end - each / 2 for end in ends]
            dots = {**style, "lw": 1.2, "marker": "." if len(ends) < 3 else None}
            left.plot(middles, run.train_loss, label=label, **dots)  # one point makes no line
            right.plot(ends, run.val_loss, label=label, **dots)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150, format="png")
