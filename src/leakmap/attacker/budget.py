"""Seconds for each client, as iterations and restarts."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from leakmap.attacker.protocol import Fitted
from leakmap.attacker.setting import Setting
from leakmap.observation.observation import Observation

WARM, TIMED = 3, 20
"""Iterations before the clock starts, and on the clock."""
FEWEST = 10
"""Iterations of a restart, however short the time is."""
SPLITS = ((4, 1), (4, 4))
"""Other ways to spend the time that the best search rehearses: its iterations divided by the first number, in the
second number of restarts. A search that does no better for longer is thus cut short: more time makes it no worse."""


@runtime_checkable
class Paced(Protocol):
    """An attack that takes as many iterations as it is given."""

    def paced(self, steps: int, restarts: int | None = None) -> Self:
        """The same with so many iterations in each of so many restarts; None leaves these."""
        ...

    def restored(self, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
        """Ready for clients, from what was fitted."""
        ...


@dataclass(frozen=True)
class Pace:
    """How much an attack does in its time.

    Args:
        steps: Iterations of each restart.
        restarts: Independent starts.
    """

    steps: int
    restarts: int = 1

    @classmethod
    def of(cls, stored: Tensor) -> "Pace":
        """From what :meth:`tensor` made."""
        return cls(*stored.tolist())

    def tensor(self) -> Tensor:
        """As a part of what is kept of a fit."""
        return torch.tensor([self.steps, self.restarts])

    def split(self, shorter: int, restarts: int) -> "Pace":
        """With so many times fewer iterations, in so many restarts."""
        return Pace(max(FEWEST, self.steps // shorter), restarts)


def pace_within(
    attack: Paced, setting: Setting, state: Mapping[str, Tensor], observation: Observation, seconds: float, seed: int
) -> Pace:
    """The iterations of one restart that take so many seconds: of one core, or of the device if it is none.

    Args:
        attack: What is timed.
        setting: It is fitted to.
        state: What was fitted.
        observation: It is timed on, the same in every iteration.
        seconds: For one client.
        seed: Of the timed runs.
    """
    clock = time.perf_counter if observation.network.device.type == "cuda" else time.process_time

    def spent(steps: int) -> float:
        ready = attack.paced(steps, 1).restored(setting, state)
        began = clock()
        found = ready(observation, seed, lambda fraction: None)
        # Reading a number waits for the device.
        float(found.pictures.sum())
        return clock() - began

    before = spent(WARM)
    each = (spent(WARM + TIMED) - before) / TIMED
    return Pace(max(FEWEST, int(seconds / max(each, 1e-6))))
