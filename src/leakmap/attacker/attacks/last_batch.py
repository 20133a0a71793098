"""The pictures of a client's last local step, read off the buffers that it returns."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from leakmap.attacker.attacks import attacks
from leakmap.attacker.learned.approach import Course, approach_of, approaching
from leakmap.attacker.learned.features import statistics_of
from leakmap.attacker.learned.fitting import MOST, Fitting, granted, sizes_of, told_of, why_unfit
from leakmap.attacker.learned.inverse import Inverse, restored_inverse
from leakmap.attacker.learned.simulation import Basis, Simulation, resized
from leakmap.attacker.matching.settings import Whole
from leakmap.attacker.protocol import CLOSED_FORM, FitCost, Fitted, Kept
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.attacker.setting import Setting
from leakmap.errors import NotApplicable, NotGranted
from leakmap.local_rule import LocalRule
from leakmap.observation.observation import Observation
from leakmap.seeds import derive

NO_STATISTICS = "no running statistics of a BatchNorm layer move and come back"


@attacks.add("last_batch")
def last_batch(*, clients: Whole = 0) -> "LastBatch":
    """Reads the pictures of the last local step off returned BatchNorm buffers, with a map fitted to simulated clients.

    In running statistics the latest pass weighs most, and data loaders keep the last, partial batch of an epoch unless
    told otherwise: of a client with 289 pictures and batches of 32, one picture alone is the whole last pass. The
    server trains a few simulated clients with public pictures, simulates thousands of last passes, and fits the maps of
    ``learned_inverse`` to what the buffers then hold beyond what passes over public pictures at the returned weights
    let expect; of a real client the same is expected at the weights that it returned. The answer is about the pictures
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
        """Clients that train up to their last step; passes are counted as arithmetic.

        Raises:
            NotGranted: public pictures, the rule or the number of examples are withheld.
            NotApplicable: see the attack.
        """
        course = _course(setting, 0)
        sent = setting.network.weights
        fitting = self._fitting(course, lambda pictures, seed: course.passed(sent, pictures, seed))
        maps, clients = fitting.cost(), approaching(course)
        each = fitting.work() // course.sizes[-1]
        return replace(
            maps, clients=clients, operations=maps.operations + each * (maps.clients + clients * course.looked)
        )

    def fit(self, setting: Setting, seed: int, tick: Tick, kept: Kept) -> Fitted:
        """Trains a few simulated clients, simulates last passes, and fits the maps.

        Raises:
            NotGranted: public pictures, the rule or the number of examples are withheld.
            NotApplicable: see the attack.
        """
        course = _course(setting, derive(seed, "course"))
        approach = approach_of(course, derive(seed, "approach"), kept, lambda f: tick(0.3 * f))
        inverse, clients = self._fitting(course, approach.read).fitted(seed, kept, lambda f: tick(0.3 + 0.7 * f))
        state = {"course": torch.tensor(course.seed), "offset": approach.offset, **sizes_of(clients, setting)}
        return self.restored(setting, inverse.state() | state)

    def restored(self, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
        """The same from its state."""
        course = _course(setting, int(state["course"]))
        decode = partial(self._decode, restored_inverse(state), course, state["offset"], told_of(state))
        return Fitted(frozenset({"count", "buffers"}), decode, state)

    def _fitting(self, course: Course, last: Callable[[Tensor, int], Tensor]) -> Fitting:
        classes = _classes_known(course.setting, course.rule)
        shared = course.setting, course.rule, course.sizes[-1], course.statistics, None

        def make(basis: Basis) -> Simulation:
            return Simulation(*shared, basis, last, classes)

        return Fitting(course.setting, make, course.sizes[-1], self.clients, classes=classes)

    def _decode(
        self,
        inverse: Inverse,
        course: Course,
        offset: Tensor,
        told: Mapping[str, float],
        observation: Observation,
        seed: int,
        tick: Tick,
    ) -> Reconstruction:
        views = {"statistics": _beyond(course, offset, observation)} if self.sees else None
        y = torch.zeros(course.sizes[-1], dtype=torch.int64, device=observation.network.device)
        used, notes = frozenset({"count", "rule", "public"}), dict(told)
        rule = course.rule
        if _classes_known(course.setting, rule) and observation.labels is not None:
            count = len(observation.labels)
            held = rule.held_by(rule.steps(count) - 1, count).to(y.device)
            y, used = observation.labels[held].sort().values, used | {"labels"}
        pictures = inverse.pictures(views, y).clamp(0, 1)
        tick(1.0)
        share = float(course.shares[-1, 0])
        notes |= {"pictures of the last step": course.sizes[-1], "share of the last pass in the buffers": share}
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


def _course(setting: Setting, seed: int) -> Course:
    rule, count = granted(setting)
    statistics = statistics_of(setting, rule, count)
    if why := _why_not(rule, count) or ("" if statistics else NO_STATISTICS):
        raise NotApplicable(f"The last batch is not read: {why}.")
    assert statistics is not None
    return Course(setting, rule, count, statistics, seed)


def _beyond(course: Course, offset: Tensor, observation: Observation) -> Tensor:
    """``(columns,)`` of what a client's buffers hold beyond what is expected whatever its last pictures."""
    if observation.buffers is None:
        raise NotGranted("The last batch is read off returned buffers, which this client's answer lacks.")
    # A gradient moves nothing: such a client's only pass is at the weights that were sent.
    moved = observation.update.tensors if observation.update.kind == "delta" else {}
    returned = {name: old + moved[name] if name in moved else old for name, old in observation.network.weights.items()}
    held = course.statistics.columns(course.statistics.unmixed(observation.buffers))
    return (held - course.expected(course.seen(returned), offset)).float()
