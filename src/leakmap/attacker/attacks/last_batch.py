"""The pictures of a client's last local step, read off the buffers that it returns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from leakmap.attacker.attacks import attacks
from leakmap.attacker.buffers import mixture
from leakmap.attacker.learned.approach import Approach, approach_of, approaching
from leakmap.attacker.learned.features import statistics_of
from leakmap.attacker.learned.fitting import MOST, Fitting, granted, sizes_of, told_of, why_unfit
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


@attacks.add("last_batch")
def last_batch(*, clients: Whole = 0) -> "LastBatch":
    """Reads the pictures of the last local step off returned BatchNorm buffers, with a map fitted to simulated clients.

    In running statistics the latest pass weighs most, and data loaders keep the last, partial batch of an epoch unless
    told otherwise: of a client with 289 pictures and batches of 32, one picture alone is the whole last pass. The
    server trains a few simulated clients with public pictures up to their last step, simulates thousands of last passes
    from there, and fits the maps of ``learned_inverse`` to what the buffers then hold. The answer is about the pictures
    of the last step alone: colours and layout, blurred. Their classes help where the labels are granted, in the order
    in which the client goes through its pictures; they are not inferred.

    Args:
        clients: Simulated last passes; 0: 6,000, fewer where a pass takes long, down to 1,000.

    Applies: to clients in training mode that return the buffers of BatchNorm layers, where public pictures, the local
    rule and the number of examples are granted, to classification; after one local step it is learned_inverse without
    classes.

    Source: this project; after Wu, Chen, Guo and Weinberger 2023, "Learning To Invert", arXiv:2210.10880.
    """
    return LastBatch(clients)


@dataclass(frozen=True)
class LastBatch:
    """The attack, ready to be fitted.

    Args:
        clients: Simulated last passes; 0: as many as are worth their work.
        sees: Whether it reads what came from the client; its floor does not.
    """

    clients: int
    sees: bool = True

    needs = frozenset({"count", "rule", "public", "buffers"})
    leaky_model = "convnet,norm=batch"
    cost = CLOSED_FORM

    @property
    def fits(self) -> str:
        """What is fitted; the attack and its floor share it."""
        return f"last_batch,clients={self.clients}"

    def blind(self) -> "LastBatch":
        """Its floor: the same map, of a client of which every column is at its mean."""
        return replace(self, sees=False)

    def why_not(self, observation: Observation) -> str:
        """Why it does not apply; empty if it does."""
        rule, count = observation.rule, observation.count
        if (why := why_unfit(observation)) or rule is None or count is None:
            return why
        plain = "the client takes one local step, whose pictures learned_inverse reads"
        return plain if rule.steps(count) == 1 else _why_not(rule, count)

    def fit_cost(self, setting: Setting) -> FitCost:
        """Clients that train up to their last step; the last passes are counted as arithmetic.

        Raises:
            NotGranted: public pictures, the rule or the number of examples are withheld.
            NotApplicable: see the attack.
        """
        rule, count = _applying(setting)
        sent = setting.network.weights
        fitting = self._fitting(setting, rule, count, Approach(sent, (sent,)))
        maps = fitting.cost()
        return replace(maps, clients=approaching(setting), operations=maps.operations + maps.clients * fitting.work())

    def fit(self, setting: Setting, seed: int, tick: Tick, kept: Kept) -> Fitted:
        """Trains a few simulated clients, simulates last passes, and fits the maps.

        Raises:
            NotGranted: public pictures, the rule or the number of examples are withheld.
            NotApplicable: see the attack.
        """
        rule, count = _applying(setting)
        approach = approach_of(setting, rule, count, derive(seed, "approach"), kept, lambda f: tick(0.3 * f))
        fitting = self._fitting(setting, rule, count, approach)
        inverse, clients = fitting.fitted(seed, kept, lambda f: tick(0.3 + 0.7 * f))
        return self.restored(setting, inverse.state() | sizes_of(clients, setting))

    def restored(self, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
        """The same from its state."""
        inverse = restored_inverse(state)
        simulation = _simulation(setting, *_applying(setting), None, inverse.basis)
        needs = frozenset({"count", "buffers"})
        return Fitted(needs, partial(self._decode, inverse, simulation, told_of(state)), state)

    def _fitting(self, setting: Setting, rule: LocalRule, count: int, approach: Approach) -> Fitting:
        make = partial(_simulation, setting, rule, count, approach)
        return Fitting(setting, make, _last(rule, count), self.clients, classes=_classes_known(setting, rule))

    def _decode(
        self,
        inverse: Inverse,
        simulation: Simulation,
        told: Mapping[str, float],
        observation: Observation,
        seed: int,
        tick: Tick,
    ) -> Reconstruction:
        views = simulation.read(observation.update.tensors, observation.buffers) if self.sees else None
        y = torch.zeros(simulation.count, dtype=torch.int64, device=observation.network.device)
        used, notes = frozenset({"count", "rule", "public"}), dict(told)
        if simulation.classes and observation.labels is not None:
            rule, count = simulation.rule, len(observation.labels)
            held = rule.held_by(rule.steps(count) - 1, count).to(y.device)
            y, used = observation.labels[held].sort().values, used | {"labels"}
        pictures = inverse.pictures(views, y).clamp(0, 1)
        tick(1.0)
        assert simulation.statistics is not None
        layer = simulation.statistics.layers[0]
        share = float(mixture(layer.momentum, simulation.statistics.forwards)[-1])
        notes |= {"pictures of the last step": simulation.count, "share of the last pass in the buffers": share}
        return Reconstruction(
            resized(pictures, observation.network.task.shape),
            y,
            math.nan,
            notes=notes | ({"labels": "granted"} if "labels" in used else {}),
            used=used | ({"buffers"} if self.sees else set()),
            last=True,
        )


def _classes_known(setting: Setting, rule: LocalRule) -> bool:
    """Whether the server knows the classes of the last step: of shuffled pictures, only those of all together."""
    return "labels" in setting.granted and not rule.shuffle


def _last(rule: LocalRule, count: int) -> int:
    return len(rule.held_by(rule.steps(count) - 1, count))


def _why_not(rule: LocalRule, count: int) -> str:
    if rule.mode != "train":
        return "the client is in inference mode and moves no running statistics"
    if rule.accumulate > 1:
        return "gradients are accumulated: BatchNorm sees the micro-batches of the last step one after the other"
    if (last := _last(rule, count)) > MOST:
        return f"the last step holds {last} pictures, of which their mean says nothing"
    return ""


def _applying(setting: Setting) -> tuple[LocalRule, int]:
    rule, count = granted(setting)
    if why := _why_not(rule, count) or ("" if statistics_of(setting, rule, count) else NO_STATISTICS):
        raise NotApplicable(f"The last batch is not read: {why}.")
    return rule, count


NO_STATISTICS = "no running statistics of a BatchNorm layer move and come back"


def _simulation(setting: Setting, rule: LocalRule, count: int, approach: Approach | None, basis: Basis) -> Simulation:
    statistics = statistics_of(setting, rule, count)
    return Simulation(
        setting, rule, _last(rule, count), statistics, None, basis, approach, _classes_known(setting, rule)
    )
