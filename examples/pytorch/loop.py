"""What a server would see of a plain training loop, as a file: python examples/pytorch/loop.py."""

from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from leakmap import Facts, RuleFacts, capture
from leakmap.client.data import load_pictures


def build() -> nn.Module:
    """The net, for ``--model examples/pytorch/loop.py:build``."""
    return nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 8))


def main(folder: Path = Path("runs/pytorch")) -> None:
    """Two local epochs over six pictures, in batches of three."""
    pictures = load_pictures("samples", 32)
    x, y = (pictures.images[::60][:6] / 255 - 0.5) / 0.25, pictures.labels[::60][:6]
    model = build()
    before = deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for part in (slice(0, 3), slice(3, 6)) * 2:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    rule = RuleFacts(epochs=2, batch_size=3, lr=0.05, momentum=0.9)
    spec, mean, std = "examples/pytorch/loop.py:build", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    facts = Facts(model=spec, shape=(3, 32, 32), classes=8, mean=mean, std=std, count=6, rule=rule)
    folder.mkdir(parents=True, exist_ok=True)
    capture(before, model, facts, file=folder / "client.safetensors")


if __name__ == "__main__":
    main()
