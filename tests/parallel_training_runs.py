"""What each process of test_distributed.py trains: a small transformer, beside one process's run.

In float64, so that sums in another order differ by less than 1e-12 of their size and a wrong mask,
by everything.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import regops.nn
import regops.random
from regops.optim import AdamW
from tests.processes import full

KEY = regops.random.key(11)
VOCABULARY, LENGTH, WIDTH, HEADS = 12, 8, 16, 4
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class Block(nn.Module):
    """Attention and a feed-forward network, with dropout where GPT-2 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.attention_drop, self.drop = regops.nn.Dropout(0.25), regops.nn.Dropout(0.3)

    def forward(self, x: Tensor, key: Tensor) -> Tensor:
        keys = [regops.random.fold_in(key, site) for site in range(3)]
        normed = self.norm1(x)
        q, k, v = (
            one(normed).unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2) for one in self.qkv
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        probabilities = self.attention_drop(scores.softmax(-1), key=keys[0])
        mixed = (probabilities @ v).transpose(1, 2).flatten(-2)
        x = x + self.drop(self.out(mixed), key=keys[1])
        hidden = nn.functional.gelu(self.up(self.norm2(x)))
        return x + self.drop(self.down(hidden), key=keys[2])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.drop = regops.nn.Dropout(0.1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor, key: Tensor) -> Tensor:
        x = self.drop(self.embedding(tokens), key=key)
        for number, block in enumerate(self.blocks):
            x = block(x, regops.random.fold_in(key, number))
        logits: Tensor = self.head(self.norm(x))
        return logits


class OnShardsOfTheBatch(nn.Module):
    """A module of local activations, as the one that runs on the whole batch."""

    def __init__(self, module: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__()
        self.module, self.mesh = module, mesh

    def forward(self, x: Tensor, key: Tensor) -> Tensor:
        output: DTensor = self.module(DTensor.from_local(x, self.mesh, [Shard(0)]), key=key)
        return output.to_local()


LOSS = regops.nn.CrossEntropyLoss(label_smoothing=0.1)


def run(mesh: DeviceMesh, rank: int) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        data_parallel(mesh, rank)
        fully_sharded(mesh, rank)
        tensor_parallel(mesh)
    finally:
        torch.set_default_dtype(torch.float32)


def model_and_batches(size: int, steps: int = 4) -> tuple[Model, Tensor]:
    """Equal on all ranks: a model, and for each step a batch of `size` pairs of sequences."""
    torch.manual_seed(0)
    return Model(), torch.randint(VOCABULARY, (steps, 2 * size, LENGTH + 1))


def loss_of(model: nn.Module, batch: Tensor, key: Tensor) -> Tensor:
    """Of the next token."""
    loss: Tensor = LOSS(model(batch[:, :-1], key).flatten(0, 1), batch[:, 1:].flatten())
    return loss


def optimizer_of(model: nn.Module, **options: Any) -> AdamW:
    return AdamW(model.parameters(), lr=0.01, max_grad_norm=0.5, **options)


def equal_parameters(model: nn.Module, expected: nn.Module) -> None:
    for param, whole in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(full(param), whole.detach(), **CLOSE)


def data_parallel(mesh: DeviceMesh, rank: int) -> None:
    """Each rank has masks of its own, and all have the same parameters."""
    whole, batches = model_and_batches(mesh.size())
    model = DistributedDataParallel(copy.deepcopy(whole))
    optimizer, reference = optimizer_of(model), optimizer_of(whole)
    for step, batch in enumerate(batches):
        keys = [
            regops.random.fold_in(regops.random.fold_in(KEY, step), r) for r in range(mesh.size())
        ]
        parts = batch.chunk(mesh.size())
        loss_of(model, parts[rank], keys[rank]).backward()
        for part, key in zip(parts, keys, strict=True):
            (loss_of(whole, part, key) / mesh.size()).backward()
        for each in (optimizer, reference):
            each.step()
            each.zero_grad()
    equal_parameters(model, whole)
    mask = model.module.drop(torch.ones(64), key=keys[rank])
    masks = [torch.empty_like(mask) for _ in keys]
    dist.all_gather(masks, mask)
    assert len({tuple(each.tolist()) for each in masks}) == mesh.size()
    for param in model.parameters():
        copies = [torch.empty_like(param) for _ in keys]
        dist.all_gather(copies, param.detach())
        assert all(torch.equal(each, param) for each in copies)


def sharded_model(whole: Model, mesh: DeviceMesh) -> Model:
    """By FSDP2; dropout with the masks of the whole batch."""
    model = copy.deepcopy(whole)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, regops.nn.Dropout):
                setattr(module, name, OnShardsOfTheBatch(child, mesh))
    return model


def fully_sharded(mesh: DeviceMesh, rank: int) -> None:
    whole, batches = model_and_batches(mesh.size())
    model = sharded_model(whole, mesh)
    optimizer, reference = optimizer_of(model), optimizer_of(whole)
    for step, batch in enumerate(batches):
        key = regops.random.fold_in(KEY, step)
        loss = loss_of(model, batch.chunk(mesh.size())[rank], key)
        expected = loss_of(whole, batch, key)
        for each, of_each in ((optimizer, loss), (reference, expected)):
            of_each.backward()
            each.step()
            each.zero_grad()
        losses = loss.detach()
        dist.all_reduce(losses)
        torch.testing.assert_close(losses / mesh.size(), expected.detach(), **CLOSE)
        torch.testing.assert_close(optimizer.grad_norm, reference.grad_norm, rtol=1e-6, atol=0)
        assert optimizer.grad_norm > 0.5  # it clips
    assert all(isinstance(param, DTensor) for param in model.parameters())
    equal_parameters(model, whole)


def parallelized(whole: Model, mesh: DeviceMesh) -> Model:
    """Tensor parallel in its linear layers, sequence parallel between, DTensors throughout."""
    model = copy.deepcopy(whole)
    sequence, on = Shard(1), {"use_local_output": False}
    parallelize_module(
        model,
        mesh,
        {
            "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=sequence, **on),
            "norm": SequenceParallel(**on),
            "head": ColwiseParallel(input_layouts=sequence, output_layouts=Replicate()),
        },
    )
    for block in model.blocks:
        gathered = ColwiseParallel(input_layouts=sequence, **on)
        scattered = RowwiseParallel(output_layouts=sequence, **on)
        parallelize_module(
            block,
            mesh,
            {
                "norm1": SequenceParallel(**on),
                "qkv.*": ColwiseParallel(input_layouts=Replicate(), **on),
                "out": scattered,
                "norm2": SequenceParallel(**on),
                "up": gathered,
                "down": scattered,
            },
        )
    return model


def tensor_parallel(mesh: DeviceMesh) -> None:
    """Heads' probabilities sharded by head, the residual by position: slices of the same masks."""
    whole, batches = model_and_batches(2, steps=2)
    model = parallelized(whole, mesh)
    for step, batch in enumerate(batches):
        key = regops.random.fold_in(KEY, step)
        loss, expected = loss_of(model, batch, key), loss_of(whole, batch, key)
        torch.testing.assert_close(full(loss), expected.detach(), **CLOSE)
        loss.backward()
        expected.backward()
    for param, of_whole in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(full(param.grad), of_whole.grad, **CLOSE)
