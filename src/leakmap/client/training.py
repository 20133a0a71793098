"""Briefly trained weights, for audits of networks that are not at their random start."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from leakmap.models.network import Network
from leakmap.problem.task import loss_of
from leakmap.seeds import derive

BATCH = 64
LR = 1e-3


def train(
    network: Network,
    pictures: Tensor,
    y: Tensor,
    epochs: int,
    seed: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Network:
    """The same network after some epochs of AdamW (lr 1e-3, batches of 64) on pictures that no client holds.

    Args:
        network: Where to start.
        pictures: ``(N, C, H, W)`` uint8.
        y: Their targets.
        epochs: Passes over them.
        seed: For the order and for dropout.
        progress: Called with the finished fraction.
    """
    device = network.device
    module, loss = network.module().train(), network.loss()
    optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=LR)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive(seed, "training"))
        for epoch in range(epochs):
            order = torch.randperm(len(y))
            for first in range(0, len(y), BATCH):
                index = order[first : first + BATCH]
                if len(index) < 2:
                    continue
                x = network.task.normalize(pictures[index].to(device).float() / 255)
                optimiser.zero_grad()
                loss_of(module, loss, x, y[index].to(device)).backward()
                optimiser.step()
                progress((epoch + first / len(y)) / epochs)
    return replace(network, weights={name: t.detach().clone() for name, t in module.state_dict().items()})


@torch.no_grad()
def calibrated(network: Network, pictures: Tensor, y: Tensor) -> Network:
    """The same network with the BatchNorm statistics of some pictures: inference mode without them is degenerate.

    Args:
        network: Architecture and weights.
        pictures: ``(N, C, H, W)`` uint8 that no client holds.
        y: Their targets.
    """
    module = network.module().train()
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None
    x = network.task.normalize(pictures.to(network.device).float() / 255)
    for first in range(0, len(y), BATCH):
        loss_of(module, network.loss(), x[first : first + BATCH], y[first : first + BATCH].to(network.device))
    return replace(network, weights={name: t.detach().clone() for name, t in module.state_dict().items()})


@torch.no_grad()
def accuracy(network: Network, pictures: Tensor, y: Tensor) -> float:
    """Share of ``pictures`` (uint8) that the network classifies right, in inference mode."""
    module = network.module().eval()
    device = network.device
    right = 0
    for first in range(0, len(y), BATCH):
        x = network.task.normalize(pictures[first : first + BATCH].to(device).float() / 255)
        right += int((module(x).argmax(1).cpu() == y[first : first + BATCH]).sum())
    return right / len(y)
