"""What the update of an untouched client depends on, on photographs that come with scikit-image."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from leakmap.auditing.update_check import check_update
from leakmap.client.data import square, to_channels
from leakmap.client.data.samples import PHOTOGRAPHS, photograph
from leakmap.client.simulate import Batch
from leakmap.client_step import arrange
from leakmap.errors import ModelError
from leakmap.inspection.flow import drawn
from leakmap.local_rule import LocalRule, Mode
from leakmap.models.network import Network
from leakmap.problem.task import Task
from leakmap.result.method import UpdateCheck


@dataclass(frozen=True)
class Probe:
    """The check in both modes of a client.

    Args:
        checks: By mode; one that cannot run, or that gives what inference mode gives, is absent.
        note: Why training mode is absent; empty if it is not.
    """

    checks: Mapping[Mode, UpdateCheck]
    note: str


def photographs(channels: int, size: int) -> Tensor:
    """``(4, channels, size, size)`` in [0, 1]: four photographs; more than three channels repeat red, green, blue."""
    pictures = torch.stack([square(photograph(name), size) for name in PHOTOGRAPHS[:4]])
    pictures = to_channels(pictures, 1) if channels == 1 else pictures[:, [c % 3 for c in range(channels)]]
    return pictures.float() / 255


def task_of(channels: int, size: int, classes: int) -> Task:
    """The task of classifying such photographs, normalized by their own mean and deviation."""
    values = photographs(channels, size).transpose(0, 1).flatten(1)
    mean, std = values.mean(1).tolist(), values.std(1).clamp(min=0.05).tolist()
    return Task((channels, size, size), classes, tuple(round(v, 3) for v in mean), tuple(round(v, 3) for v in std))


def probe_update(network: Network, seed: int = 0) -> Probe:
    """Looks at the gradient of one client in each mode: of one photograph in inference, of two in training mode.

    Args:
        network: Takes square pictures.
        seed: For the noise that the update is compared with.

    Raises:
        ModelError: the client cannot take its step in inference mode.
    """
    channels, size, _ = network.task.shape
    pictures = photographs(channels, size)
    network = drawn(network)

    def look(mode: Mode, count: int) -> UpdateCheck:
        y = torch.arange(count) % network.task.classes
        batch, other = Batch(pictures[:count], y), Batch(pictures[2 : 2 + count], y)
        return check_update([network], LocalRule(mode=mode), [batch], [other], seed)

    checks: dict[Mode, UpdateCheck] = {"eval": look("eval", 1)}
    try:
        if _same_in_training(network, pictures[:1]):
            return Probe(checks, "Without dropout this network computes the same in training mode.")
        checks["train"] = look("train", 2)
    except ModelError as error:
        return Probe(checks, f"In training mode: {error}")
    return Probe(checks, "")


def _same_in_training(network: Network, pictures: Tensor) -> bool:
    outputs = []
    for mode in ("eval", "train"):
        module = arrange(network.module(), LocalRule(mode=mode), dropout=False)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                outputs.append(module(network.task.normalize(pictures)))
        except (ValueError, RuntimeError):
            return False
    return all(isinstance(o, Tensor) for o in outputs) and torch.equal(*outputs)
