"""The simulated client: what really happened in a round, truth included."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leakmap.client_step import arrange, local_signal
from leakmap.errors import LeakmapError, ModelError, check_type, in_words
from leakmap.local_rule import LocalRule
from leakmap.models.network import Network
from leakmap.observation.contents import Update
from leakmap.seeds import derive


@dataclass(frozen=True)
class Batch:
    """A client's private examples.

    Args:
        pictures: ``(N, C, H, W)`` in [0, 1].
        y: What they are labelled with, see :mod:`leakmap.problem.targets`, or ``(N, M, 5)`` objects, see
            :mod:`leakmap.problem.objects`.
        areas: ``(N, 4)``: top, left, bottom and right of each picture between its letterbox bars; None without bars.
    """

    pictures: Tensor
    y: Tensor
    areas: Tensor | None = None


@dataclass(frozen=True)
class Round:
    """One client's round: what it got, held and shared.

    Args:
        network: What the server sent.
        rule: What the client did.
        batch: What it did it with. Private.
        update: What it shared.
        buffers: Its buffers afterwards, by name.
    """

    network: Network
    rule: LocalRule
    batch: Batch
    update: Update
    buffers: Mapping[str, Tensor]


_last: list[tuple[Network, LocalRule, nn.Module]] = []


def _arranged(network: Network, rule: LocalRule) -> nn.Module:
    """The module of a network, arranged; that of the last one is at hand, as nothing of a module changes in a step."""
    if not _last or _last[0][0] is not network or _last[0][1] != rule:
        _last[:] = [(network, rule, arrange(network.module(), rule))]
    return _last[0][2]


def simulate(network: Network, rule: LocalRule, batch: Batch, seed: int = 0, *, noise: bool = True) -> Round:
    """Runs one client.

    Args:
        network: Task, architecture and weights.
        rule: The local rule.
        batch: The client's examples.
        seed: For dropout masks, the order of a rule that shuffles and the noise of its defence; nothing else is random.
        noise: False leaves the randomness of its defence out, as whoever knows the defence alone simulates the client.

    Raises:
        UsageError: an argument is of another type.
        ModelError: the step fails, as BatchNorm does on a single value per channel in training mode, or DP-SGD on any.
    """
    check_type(network, Network, "The network", "what leakmap.build_network returns")
    check_type(rule, LocalRule, "The rule", "a leakmap.LocalRule")
    check_type(batch, Batch, "The batch", "a leakmap.Batch of pictures and labels")
    module = _arranged(network, rule)
    x = network.task.normalize(batch.pictures)
    try:
        signal = local_signal(
            module,
            network.weights,
            x,
            batch.y,
            rule,
            network.loss(),
            dropout_seed=derive(seed, "client"),
            order_seed=derive(seed, "order"),
            noise_seed=derive(seed, "noise") if noise else None,
        )
    except (LeakmapError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"A client with {len(x)} pictures of shape {network.task.shape} cannot take its step with {network.model} "
            f"in {rule.mode} mode: {in_words(error)}."
        ) from error
    return Round(network, rule, batch, Update(rule.share, signal.tensors), signal.buffers)
