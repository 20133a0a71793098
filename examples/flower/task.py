"""The net, the pictures of every client and its training, as in any Flower app."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import Normalize

from leakmap import build_network, read_facts
from leakmap.client.data import Pictures, load_pictures

FACTS = read_facts(Path(__file__).with_name("facts.toml"))
LR = 0.05


@dataclass(frozen=True)
class Held:
    """What clients hold, and in which batches they go through it."""

    data: str = "samples"
    clients: int = 2
    pictures: int = 6
    batch_size: int = 6
    drop_last: bool = False


FEW = Held()


def build(classes: int = FACTS.classes) -> nn.Module:
    """The net that the server starts from."""
    return build_network(replace(FACTS.task, classes=classes), FACTS.model, seed=0).module()


@cache
def everything(data: str) -> Pictures:
    """All pictures of a source, its spare ones too."""
    found = load_pictures(data, 32)
    if found.spare is None:
        return found
    images, labels = (
        torch.cat([getattr(part, name) for part in (found, found.spare)]) for name in ("images", "labels")
    )
    return Pictures(images, labels, found.classes)


def partition(client: int | None, held: Held = FEW) -> Pictures:
    """The pictures that a client holds; those that no client holds for None."""
    every = everything(held.data)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    first = held.clients * held.pictures if client is None else client * held.pictures
    own = order[first:] if client is None else order[first : first + held.pictures]
    return Pictures(every.images[own], every.labels[own], every.classes)


def train(net: nn.Module, own: Pictures, lr: float, frozen_batchnorm: bool = False, held: Held = FEW) -> None:
    """One local epoch."""
    inputs = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(own.images / 255)
    loader = DataLoader(TensorDataset(inputs, own.labels), batch_size=held.batch_size, drop_last=held.drop_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    net.train(not frozen_batchnorm)
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
