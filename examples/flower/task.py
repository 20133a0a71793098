"""The net, the pictures of every client and its training, as in any Flower app."""

from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import Normalize

from leakmap import build_network, read_facts
from leakmap.client.data import Pictures, load_pictures

FACTS = read_facts(Path(__file__).with_name("facts.toml"))
CLIENTS, HELD, LR = 2, 6, 0.05


def build() -> nn.Module:
    """The net that the server starts from."""
    return build_network(FACTS.task, FACTS.model, seed=0).module()


@cache
def partition(client: int | None) -> Pictures:
    """The pictures that a client holds; those that no client holds for None."""
    everything = load_pictures("samples", 32)
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
    first = CLIENTS * HELD if client is None else client * HELD
    own = order[first:] if client is None else order[first : first + HELD]
    return Pictures(everything.images[own], everything.labels[own], everything.classes)


def train(net: nn.Module, held: Pictures, lr: float, frozen_batchnorm: bool = False) -> None:
    """One local epoch with all pictures in one batch."""
    inputs = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(held.images / 255)
    loader = DataLoader(TensorDataset(inputs, held.labels), batch_size=HELD)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    net.train(not frozen_batchnorm)
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
