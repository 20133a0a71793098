"""Attacks by name, one published attack per file, and the verb."""

from dataclasses import replace
from typing import Any

import torch

from leakmap.attacker.reconstruction import Attack, Reconstruction
from leakmap.errors import NonFinite
from leakmap.observation.observation import Observation
from leakmap.registry.registry import Registry
from leakmap.registry.spec import Spec
from leakmap.seeds import derive

attacks: Registry[Attack] = Registry("attack", __name__)
DEFAULT = "strongest"
"""What is run where no attack is named."""


def attack(
    observation: Observation,
    how: Attack | Spec | str = DEFAULT,
    seed: int = 0,
    tick: Any = None,
) -> Reconstruction:
    """Attacks an Observation.

    What reaches the attack has been through the Observation's file form, and what comes back is checked.

    Args:
        observation: All that the attacker holds.
        how: An attack, or its specification ``NAME[,key=value…]``.
        seed: All randomness of the attack comes from it.
        tick: Called with the finished fraction, in [0, 1].

    Raises:
        NotGranted: the attack needs a fact that is not granted.
        NotApplicable: its precondition does not hold.
        NonFinite: it left the finite numbers.
    """
    runner = attacks.build(how) if isinstance(how, Spec | str) else how
    observation.need(*sorted(runner.needs))
    device = observation.network.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive(seed, "layers"))  # for random layers that the attack does not know to silence
        found = runner(observation.through_bytes(), seed, tick or (lambda fraction: None))
    task = observation.network.task
    pictures = found.pictures.detach()
    if pictures.shape[1:] != task.shape or len(pictures) != len(found.y):
        raise ValueError(f"the attack returned pictures {tuple(pictures.shape)} for {len(found.y)} labels")
    if not torch.isfinite(pictures).all():
        raise NonFinite("The attack returned pictures that are not finite.")
    return replace(found, pictures=pictures.clamp(0, 1), y=found.y.detach())
