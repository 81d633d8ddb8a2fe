"""Trains a small convolutional network, channels last, on scikit-learn's handwritten digits.

Once with torch's dropout, cross-entropy and SGD and once with regops's, on the same batches from
the same initial weights:

    PYTHONPATH=. python examples/convnet.py                 # both
    PYTHONPATH=. python examples/convnet.py --impl regops
    PYTHONPATH=. python examples/convnet.py --seeds 0 1 2

It needs scikit-learn and rich beside regops. The images of 8 x 8 are enlarged to 32 x 32.

regops's dropout runs over a channels-last tensor at full speed and returns one, with the mask that
a contiguous tensor of the same values gets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import comparison
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import regops.nn
import regops.optim


class Ops(NamedTuple):
    """All that differs between the two."""

    dropout: Callable[[float], nn.Module]
    cross_entropy: Callable[..., nn.Module]
    sgd: Callable[[nn.Module], torch.optim.Optimizer]


MOMENTUM, DECAY, LR = 0.9, 5e-4, 0.05
OPS = {
    "torch": Ops(
        nn.Dropout,
        nn.CrossEntropyLoss,
        lambda model: torch.optim.SGD(
            model.parameters(), LR, MOMENTUM, weight_decay=DECAY, nesterov=True, fused=True
        ),
    ),
    "regops": Ops(
        regops.nn.Dropout,
        regops.nn.CrossEntropyLoss,
        # What torch's SGD calls weight_decay enters the gradient: that is l2 here.
        lambda model: regops.optim.SGDW(model.parameters(), LR, MOMENTUM, l2=DECAY, nesterov=True),
    ),
}
WIDTH = 32
BATCH = 64
EPOCHS = 10


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, test images, their labels; images are (N, 1, 32, 32), standardized."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    images = nn.functional.interpolate(images, scale_factor=4, mode="bilinear")
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(digits.target)
    chosen = train_test_split(
        range(len(labels)), test_size=0.2, stratify=digits.target, random_state=0
    )
    train, test = (torch.tensor(part) for part in chosen)
    return images[train], images[test], labels[train], labels[test]


def convolution(inputs: int, outputs: int) -> list[nn.Module]:
    """3 x 3, with batch norm."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def make_model(impl: str, seed: int, width: int = WIDTH) -> nn.Module:
    """Two convolutions at each of three resolutions. One seed gives both the same weights."""
    torch.manual_seed(seed)
    dropout = OPS[impl].dropout
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((1, width, 2 * width, 4 * width)):
        layers += convolution(inputs, outputs) + convolution(outputs, outputs)
        layers += [nn.MaxPool2d(2), dropout(0.1)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), dropout(0.5), nn.Linear(4 * width, 10)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def train(
    impl: str, model: nn.Module, seed: int, x: Tensor, y: Tensor, epochs: int = EPOCHS
) -> Iterator[float]:
    """Trains a model and yields the mean loss of each epoch."""
    criterion = OPS[impl].cross_entropy(label_smoothing=0.1)
    optimizer = OPS[impl].sgd(model)
    order = torch.Generator().manual_seed(seed)
    steps = epochs * (len(x) // BATCH)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=steps, cycle_momentum=False
    )
    for _ in range(epochs):
        model.train()
        losses = []
        for chosen in torch.randperm(len(x), generator=order).split(BATCH):
            if len(chosen) < BATCH:
                continue
            images = x[chosen].to(memory_format=torch.channels_last)
            loss = criterion(model(images), y[chosen])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            losses.append(loss.detach())
        yield torch.stack(losses).mean().item()


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Loss without smoothing, and share of images that the model labels correctly."""
    model.eval()
    logits = model(x.to(memory_format=torch.channels_last))
    accuracy = (logits.argmax(1) == y).float().mean().item()
    return nn.functional.cross_entropy(logits, y).item(), accuracy


def main(arguments: list[str] | None = None) -> None:
    """Trains and prints accuracies and times."""
    parser = comparison.parser("a convolutional network with torch's ops and regops's")
    parser.add_argument(
        "--epochs", type=comparison.positive, default=EPOCHS, help="passes over the data"
    )
    parser.add_argument(
        "--width", type=comparison.positive, default=WIDTH, help="channels of the first layers"
    )
    options = parser.parse_args(arguments)

    train_x, test_x, train_y, test_y = load_data()
    runs = comparison.compare(
        options,
        options.epochs,
        lambda impl, seed: make_model(impl, seed, options.width),
        lambda impl, model, seed: train(impl, model, seed, train_x, train_y, options.epochs),
        lambda model: evaluate(model, test_x, test_y),
    )
    steps = options.epochs * (len(train_x) // BATCH)
    comparison.report("convnet", steps, runs, options)


if __name__ == "__main__":
    main()
