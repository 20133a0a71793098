"""The verb of the attacker's side, and the phase before it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from leakmap.attacker.attacks import DEFAULT, attacks
from leakmap.attacker.protocol import Attack, Fitted, Kept, checked, nothing_kept
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.attacker.setting import Setting, setting_of
from leakmap.errors import NonFinite, check_type
from leakmap.memory import check_fits
from leakmap.models.network import Network
from leakmap.observation.observation import Observation
from leakmap.registry.spec import Spec
from leakmap.seeds import derive

HELD = 32
"""Floats that an attack holds for each value of a picture, at least: the guess, its gradient, both moments of the
optimiser, the best guess so far, and the activations of a forward and a backward pass with a few channels."""


def attack(
    observation: Observation,
    how: Attack | Fitted | Spec | str = DEFAULT,
    seed: int = 0,
    tick: Tick | None = None,
    *,
    fresh: bool = False,
) -> Reconstruction:
    """Attacks an Observation.

    What reaches the attack has been through the Observation's file form, and what comes back is checked. An attack that
    is not fitted yet is fitted first, to the setting of the Observation: to fit once for many clients, give what
    :func:`fit` returns.

    Args:
        observation: All that the attacker holds.
        how: An attack, or its specification ``NAME[,key=value…]``; or one that is fitted already, to these weights.
        seed: All randomness of the attack comes from it.
        tick: Called with the finished fraction, in [0, 1].
        fresh: Whether the Observation has just been through its file form and is nobody else's, as what
            :func:`leakmap.observe` returns; it is then not written and read once more.

    Raises:
        NotGranted: the attack needs a fact that is not granted.
        NotApplicable: its precondition does not hold.
        NonFinite: it left the finite numbers.
        BadSetting: it lacks what an attack must have.
        UsageError: the Observation is none, or its pictures do not fit into memory.
    """
    check_type(observation, Observation, "The observation", "a leakmap.Observation, as Observation.from_file reads")
    tick = tick or (lambda fraction: None)
    runner = attacks.build(how) if isinstance(how, Spec | str) else how
    if not isinstance(runner, Fitted):
        checked(runner)
    observation.need(*sorted(runner.needs))
    check_room(observation.network, observation.count)
    begin = 0.0
    if not isinstance(runner, Fitted):
        begin = 0.5 if runner.fits else 0.0
        runner = fit(runner, setting_of(observation), seed, lambda fraction: tick(begin * fraction))
    with _seeded(observation.network.device, seed):
        seen = observation if fresh else observation.through_bytes()
        found = runner(seen, seed, lambda fraction: tick(begin + (1 - begin) * fraction))
    task = observation.network.task
    pictures = found.pictures.detach()
    if pictures.shape[1:] != task.shape or len(pictures) != len(found.y):
        raise ValueError(f"the attack returned pictures {tuple(pictures.shape)} for {len(found.y)} labels")
    if not torch.isfinite(pictures).all():
        raise NonFinite("The attack returned pictures that are not finite.")
    return replace(found, pictures=pictures.clamp(0, 1), y=found.y.detach())


def fit(attack: Attack, setting: Setting, seed: int, tick: Tick, kept: Kept = nothing_kept) -> Fitted:
    """The phase before any client answers; of a search it is none.

    Args:
        attack: What to fit.
        setting: What the server knows of all clients; the attack gets a copy.
        seed: All randomness of the fit comes from it.
        tick: Called with the finished fraction, in [0, 1].
        kept: Keeps parts of long work over interruptions.
    """
    with _seeded(setting.device, seed):
        return attack.fit(setting.copied() if attack.fits else setting, derive(seed, "fit"), tick, kept)


def check_room(network: Network, count: int | None) -> None:
    """Refuses a number of pictures, which a file claims, whose reconstructions no attack could hold.

    Args:
        network: Of the client; only what is attacked on the processor is looked at.
        count: Its pictures, if it says so.

    Raises:
        UsageError: they do not fit into the memory that is left.
    """
    if count is not None and network.device.type == "cpu":
        shape = network.task.shape
        needed = HELD * count * math.prod(shape) * 4
        check_fits(needed, f"Attacking {count} pictures of {shape} takes", "check the number of pictures")


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Random layers that the attack does not know to silence draw from the seed, and nothing is drawn outside."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive(seed, "layers"))
        yield
