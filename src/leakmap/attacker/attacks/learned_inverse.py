"""An inverse that is fitted to simulated clients before any real one answers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from leakmap.attacker.attacks import attacks
from leakmap.attacker.equations import facts_used, label_notes
from leakmap.attacker.labels import recover
from leakmap.attacker.learned import price
from leakmap.attacker.learned.features import sketch_of, statistics_of
from leakmap.attacker.learned.inverse import Inverse, fitted_inverse, restored_inverse
from leakmap.attacker.learned.simulation import Basis, Clients, Simulation, basis_of, resized
from leakmap.attacker.matching.settings import Whole
from leakmap.attacker.protocol import CLOSED_FORM, FitCost, Fitted, Kept
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.attacker.setting import Setting
from leakmap.client_step import LocalRule
from leakmap.errors import NotApplicable, NotGranted
from leakmap.observation.contents import Public
from leakmap.observation.observation import Observation
from leakmap.seeds import derive, generator

SMALL = 64
"""Side in pixels up to which pictures are predicted as they are; of larger ones only the layout can be known."""
COARSE = 32
"""Side in pixels at which larger pictures are predicted, and then enlarged."""
STATISTICS, UPDATES = 6000, 16_000
"""Most simulated clients unless told otherwise: of whom statistics are read, and of whom updates are read, which say
less of the pictures. More still help (docs/results/learned.md)."""
WORK, LEAST = 10**13, 1000
"""Floating-point operations that all simulated clients may take, minutes of a core, and how many clients there are
whatever they take. Operations and not seconds are counted, so that every machine fits the same."""
FEWEST = 4
"""Public pictures without which nothing is fitted."""
HELD = 10
"""One public picture of so many is kept for held-out clients."""
HELD_CLIENTS = 400
OFTEN = 10
"""Public pictures of a class, on average, from which on the class tells something: a rarer one would name pictures that
the map was fitted to."""
OUTPUTS = 8192
"""Most numbers that a map predicts, for all pictures of a client together."""
COMPONENTS = 768
"""Most principal components of a picture."""
MEMORY = 2**30
"""Bytes that the columns and targets of all simulated clients may take."""


@attacks.add("learned_inverse")
def learned_inverse(
    *, clients: Whole = 0, views: Literal["auto", "statistics", "update", "both"] = "auto", labels: str = "auto"
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
        labels: ``auto``, or the name of a label rule.

    Applies: where public pictures, the local rule and the number of examples are granted, to classification.

    Source: Wu, Chen, Guo and Weinberger 2023, "Learning To Invert: Simple Adaptive Attacks for Gradient Inversion in
    Federated Learning", arXiv:2210.10880; returned buffers as a view, and stacking, are this project's.
    """
    return LearnedInverse(clients, views, labels)


@dataclass(frozen=True)
class LearnedInverse:
    """The attack, ready to be fitted.

    Args:
        clients: Simulated clients; 0: by the size of the pictures.
        views: What is read.
        labels: How labels are recovered.
        sees: Whether it reads what came from the client; its floor does not.
    """

    clients: int
    views: str
    labels: str
    sees: bool = True

    needs = frozenset({"count", "rule", "public"})
    leaky_model = "convnet,norm=batch"
    cost = CLOSED_FORM

    @property
    def fits(self) -> str:
        """What is fitted; the attack and its floor share it."""
        return f"learned_inverse,clients={self.clients},views={self.views}"

    def blind(self) -> "LearnedInverse":
        """Its floor: the same map, of a client of which every column is at its mean."""
        return replace(self, labels="blind", sees=False)

    def why_not(self, observation: Observation) -> str:
        """Why it does not apply; empty if it does."""
        if observation.network.task.objects:
            return "it reads pictures with a class, not with objects"
        return "" if observation.public is not None else "no public pictures are granted to fit it to"

    def fit_cost(self, setting: Setting) -> FitCost:
        """Simulated clients and held-out ones, what is held of them, and the arithmetic of the maps.

        Raises:
            NotGranted: public pictures, the rule or the number of examples are withheld.
            NotApplicable: the task is detection, there are too few public pictures, or nothing that is read is sent.
        """
        rule, count, public = _granted(setting)
        size = _predicted(setting)
        most = min(COMPONENTS, OUTPUTS // count, math.prod(size))
        # A basis as large as can be, which takes no memory: which components it has, only the pictures say.
        pixels = torch.empty(most, math.prod(size), device="meta")
        simulation = self._simulation(setting, rule, count, Basis(pixels[0], pixels, size))
        clients = self._number(setting, simulation, count)
        held = min(HELD_CLIENTS, clients)
        facts = count * _classes_read(setting, len(public.pictures))
        views = [sum(widths) + facts for widths in simulation.widths.values()]
        return FitCost(
            clients + held,
            price.memory(clients + held, sum(views), count * most),
            sum(price.operations(clients, held, columns, count * most, size, count) for columns in views),
        )

    def fit(self, setting: Setting, seed: int, tick: Tick, kept: Kept) -> Fitted:
        """Simulates clients and fits the maps.

        Raises:
            NotGranted: public pictures, the rule or the number of examples are withheld.
            NotApplicable: the task is detection, there are too few public pictures, or nothing that is read is sent.
        """
        rule, count, public = _granted(setting)
        order = torch.randperm(len(public.pictures), generator=generator(seed, "held out")).to(setting.device)
        apart = max(2, len(order) // HELD)
        held, own = order[:apart], order[apart:]
        basis = basis_of(public.pictures[own], _predicted(setting), min(COMPONENTS, OUTPUTS // count), seed)
        simulation = self._simulation(setting, rule, count, basis)
        clients = self._number(setting, simulation, count)
        total = clients + min(HELD_CLIENTS, clients)

        def run(index: Tensor, number: int, role: str, before: int) -> Clients:
            return simulation.run(
                public.pictures[index],
                public.labels[index],
                number,
                derive(seed, role),
                kept,
                lambda done: tick(0.7 * (before + done) / total),
                whole=role == "held-out",
            )

        fitted = fitted_inverse(
            run(own, clients, "simulated", 0),
            run(held, total - clients, "held-out", clients),
            simulation.widths,
            basis,
            _classes_read(setting, len(order)),
            derive(seed, "maps"),
            kept,
            lambda fraction: tick(0.7 + 0.3 * fraction),
        )
        sizes = {"clients": torch.tensor(clients), "public": torch.tensor(len(order))}
        return self.restored(setting, fitted.state() | sizes)

    def restored(self, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
        """The same from its state."""
        rule, count, _ = _granted(setting)
        inverse = restored_inverse(state)
        simulation = self._simulation(setting, rule, count, inverse.basis)
        fitted_to = {"simulated clients": int(state["clients"]), "public pictures": int(state["public"])}
        return Fitted(frozenset({"count"}), partial(self._decode, inverse, simulation, fitted_to), state)

    def _simulation(self, setting: Setting, rule: LocalRule, count: int, basis: Basis) -> Simulation:
        statistics = None if self.views == "update" else statistics_of(setting, rule, count)
        if self.views == "statistics" and statistics is None:
            raise NotApplicable(
                "No running statistics of a BatchNorm layer move and come back, so there are none to read; use "
                "views=update."
            )
        sketch = None if self.views == "statistics" or (self.views == "auto" and statistics) else sketch_of(setting)
        return Simulation(setting, rule, count, statistics, sketch, basis)

    def _number(self, setting: Setting, simulation: Simulation, count: int) -> int:
        """Simulated clients: those asked for, or what is usual and worth its work, as far as memory reaches."""
        usual = UPDATES if simulation.sketch else STATISTICS
        wanted = self.clients or max(min(usual, WORK // max(1, simulation.work())), LEAST)
        columns = sum(map(sum, simulation.widths.values()))
        numbers = columns + count * (setting.network.task.classes + len(simulation.basis.components))
        return max(FEWEST, min(wanted, MEMORY // (4 * numbers)))

    def _decode(
        self,
        inverse: Inverse,
        simulation: Simulation,
        fitted_to: Mapping[str, int],
        observation: Observation,
        seed: int,
        tick: Tick,
    ) -> Reconstruction:
        labels = recover(observation, self.labels, derive(seed, "labels"))
        y = labels.y.sort().values
        views = simulation.read(observation.update.tensors, observation.buffers) if self.sees else None
        pictures = inverse.pictures(views, y).clamp(0, 1)
        tick(1.0)
        told = {f"held-out NCC of {name}": value for name, value in inverse.ncc.items()}
        return Reconstruction(
            resized(pictures, observation.network.task.shape),
            y,
            math.nan,
            notes={**label_notes(observation, labels), **fitted_to, **told},
            used=facts_used(observation, labels)
            | {"public"}
            | ({"buffers"} if views and simulation.statistics else set()),
        )


def _granted(setting: Setting) -> tuple[LocalRule, int, Public]:
    """Rule, examples of each client and public pictures.

    Raises:
        NotGranted: one is withheld.
        NotApplicable: the task is detection, or there are too few public pictures.
    """
    if setting.network.task.objects:
        raise NotApplicable("An inverse is fitted to pictures with a class; this task detects objects.")
    if setting.rule is None or setting.count is None or setting.public is None:
        raise NotGranted(
            "An inverse is fitted to simulated clients, which needs the local rule, the number of examples and public "
            "pictures (--public N); one of them is withheld."
        )
    if (have := len(setting.public.pictures)) < FEWEST:
        raise NotApplicable(f"An inverse is fitted to at least {FEWEST} public pictures; {have} are granted.")
    return setting.rule, setting.count, setting.public


def _classes_read(setting: Setting, pictures: int) -> int:
    """Classes that are columns besides what is read; 0 where public pictures of each are too few."""
    classes = setting.network.task.classes
    return classes if pictures >= OFTEN * classes else 0


def _predicted(setting: Setting) -> tuple[int, int, int]:
    """``(C, h, w)`` of predicted pictures."""
    channels, height, width = setting.network.task.shape
    ratio = 1.0 if max(height, width) <= SMALL else COARSE / max(height, width)
    return channels, round(ratio * height), round(ratio * width)
