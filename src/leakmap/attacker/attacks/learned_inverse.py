"""An inverse that is fitted to simulated clients before any real one answers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from leakmap.attacker.attacks import attacks
from leakmap.attacker.equations import facts_used, label_notes
from leakmap.attacker.labels import recover
from leakmap.attacker.learned.features import sketch_of, statistics_of
from leakmap.attacker.learned.fitting import COARSE, MOST, SMALL, Fitting, granted, sizes_of, told_of, why_unfit
from leakmap.attacker.learned.inverse import Inverse, restored_inverse
from leakmap.attacker.learned.simulation import Basis, Simulation, resized
from leakmap.attacker.matching.settings import Whole
from leakmap.attacker.protocol import CLOSED_FORM, FitCost, Fitted, Kept
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.attacker.setting import Setting
from leakmap.errors import NotApplicable
from leakmap.local_rule import LocalRule
from leakmap.observation.observation import Observation
from leakmap.seeds import derive


@attacks.add("learned_inverse")
def learned_inverse(
    *,
    clients: Whole = 0,
    views: Literal["auto", "statistics", "update", "both"] = "auto",
    side: Annotated[int, Field(ge=8, le=SMALL)] = COARSE,
    labels: str = "auto",
) -> "LearnedInverse":
    """Reads the pictures off a client's answer with a map that was fitted to simulated clients.

    The server simulates clients that hold public pictures, through the same client step and defence, reads what each
    would send, and fits ridge regression, a perceptron and a convolutional decoder from that to the pictures. Where
    returned BatchNorm buffers move, they are what is read: the mean and the log variance of every channel. Else it is
    the update: of every tensor its direction, as a count sketch, and its log norm. What a client sends is decoded in
    milliseconds. The answer is about the mean of all pictures that would have sent the same: colours and layout,
    blurred.

    Args:
        clients: Simulated clients; 0: 6,000 of whom statistics are read, 16,000 of whom updates are, fewer where a
            step takes long, down to 1,000, and where memory ends.
        views: What is read: ``statistics`` (returned buffers), ``update``, ``both``, or ``auto``: statistics where they
            move, else the update.
        side: Longer side, in pixels, at which pictures of more than 64 pixels are predicted, and then enlarged.
        labels: ``auto``, or the name of a label rule.

    Applies: where public pictures, the local rule and the number of examples are granted, to classification.

    Source: Wu, Chen, Guo and Weinberger 2023, "Learning To Invert: Simple Adaptive Attacks for Gradient Inversion in
    Federated Learning", arXiv:2210.10880; returned buffers as a view, and stacking, are this project's.
    """
    return LearnedInverse(clients, views, side, labels)


@dataclass(frozen=True)
class LearnedInverse:
    """The attack, ready to be fitted.

    Args:
        clients: Simulated clients; 0: by the size of the pictures.
        views: What is read.
        side: Of what is predicted of larger pictures, in pixels.
        labels: How labels are recovered.
        sees: Whether it reads what came from the client; its floor does not.
    """

    clients: int
    views: str
    side: int
    labels: str
    sees: bool = True

    needs = frozenset({"count", "rule", "public"})
    leaky_model = "convnet,norm=batch"
    cost = CLOSED_FORM

    @property
    def fits(self) -> str:
        """What is fitted; the attack and its floor share it."""
        return f"learned_inverse,clients={self.clients},views={self.views},side={self.side}"

    def blind(self) -> "LearnedInverse":
        """Its floor: the same map, of a client of which every column is at its mean."""
        return replace(self, labels="blind", sees=False)

    def why_not(self, observation: Observation) -> str:
        """Why it does not apply; empty if it does."""
        if (observation.count or 0) > MOST:
            return f"the client holds {observation.count} pictures, whose sum says nothing of any one of them"
        return why_unfit(observation)

    def fit_cost(self, setting: Setting) -> FitCost:
        """Simulated clients and held-out ones, what is held of them, and the arithmetic of the maps.

        Raises:
            NotGranted: public pictures, the rule or the number of examples are withheld.
            NotApplicable: the task is detection, there are too few public pictures, or nothing that is read is sent.
        """
        return self._fitting(setting).cost()

    def fit(self, setting: Setting, seed: int, tick: Tick, kept: Kept) -> Fitted:
        """Simulates clients and fits the maps.

        Raises:
            NotGranted: public pictures, the rule or the number of examples are withheld.
            NotApplicable: the task is detection, there are too few public pictures, or nothing that is read is sent.
        """
        inverse, clients = self._fitting(setting).fitted(seed, kept, tick)
        return self.restored(setting, inverse.state() | sizes_of(clients, setting))

    def restored(self, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
        """The same from its state."""
        inverse = restored_inverse(state)
        simulation = self._simulation(setting, *granted(setting), inverse.basis)
        return Fitted(frozenset({"count"}), partial(self._decode, inverse, simulation, told_of(state)), state)

    def _fitting(self, setting: Setting) -> Fitting:
        rule, count = granted(setting)
        return Fitting(setting, partial(self._simulation, setting, rule, count), count, self.clients, coarse=self.side)

    def _simulation(self, setting: Setting, rule: LocalRule, count: int, basis: Basis) -> Simulation:
        statistics = None if self.views == "update" else statistics_of(setting, rule, count)
        if self.views == "statistics" and statistics is None:
            raise NotApplicable(
                "No running statistics of a BatchNorm layer move and come back, so there are none to read; use "
                "views=update."
            )
        sketch = None if self.views == "statistics" or (self.views == "auto" and statistics) else sketch_of(setting)
        return Simulation(setting, rule, count, statistics, sketch, basis)

    def _decode(
        self,
        inverse: Inverse,
        simulation: Simulation,
        told: Mapping[str, float],
        observation: Observation,
        seed: int,
        tick: Tick,
    ) -> Reconstruction:
        labels = recover(observation, self.labels, derive(seed, "labels"))
        y = labels.y.sort().values
        views = simulation.read(observation.update.tensors, observation.buffers) if self.sees else None
        pictures = inverse.pictures(views, y).clamp(0, 1)
        tick(1.0)
        return Reconstruction(
            resized(pictures, observation.network.task.shape),
            y,
            math.nan,
            notes={**label_notes(observation, labels), **told},
            used=facts_used(observation, labels)
            | {"public"}
            | ({"buffers"} if views and simulation.statistics else set()),
        )
