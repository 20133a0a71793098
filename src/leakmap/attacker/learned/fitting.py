"""Fitting an inverse to a setting: which clients are simulated, how many, and on whom maps are chosen."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from leakmap.attacker.learned import price
from leakmap.attacker.learned.inverse import Inverse, fitted_inverse
from leakmap.attacker.learned.simulation import Basis, Clients, Simulation, basis_of
from leakmap.attacker.protocol import FitCost, Kept
from leakmap.attacker.reconstruction import Tick
from leakmap.attacker.setting import Setting
from leakmap.errors import NotApplicable, NotGranted
from leakmap.local_rule import LocalRule
from leakmap.observation.contents import Public
from leakmap.observation.observation import Observation
from leakmap.seeds import derive, generator

SMALL = 64
"""Side in pixels up to which pictures are predicted as they are; of larger ones only the layout can be known."""
COARSE = 32
"""Side in pixels at which larger pictures are predicted unless told otherwise, and then enlarged."""
STATISTICS, UPDATES = 6000, 16_000
"""Most simulated clients unless told otherwise: of whom statistics are read, and of whom updates are read, which say
less of the pictures. More still help (docs/results/learned.md)."""
WORK, LEAST = 10**13, 1000
"""Floating-point operations that all simulated clients may take, minutes of a core, and how many clients there are
whatever they take. Operations and not seconds are counted, so that every machine fits the same."""
MOST = 64
"""Pictures that are read together beyond which nothing is said of any one of them."""
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


@dataclass(frozen=True)
class Fitting:
    """How an inverse is fitted to what the server knows.

    Args:
        setting: With public pictures.
        make: The simulation of clients, for pictures in this basis.
        count: Pictures that are predicted of a client.
        clients: Simulated clients; 0: as many as are worth their work.
        classes: Whether the classes of these pictures will be known.
        coarse: Longer side, in pixels, at which pictures of more than ``SMALL`` are predicted.
    """

    setting: Setting
    make: Callable[[Basis], Simulation]
    count: int
    clients: int = 0
    classes: bool = True
    coarse: int = COARSE

    def cost(self) -> FitCost:
        """Simulated clients and held-out ones, what is held of them, and the arithmetic of the maps."""
        size = self._predicted()
        most = min(COMPONENTS, OUTPUTS // self.count, math.prod(size))
        # A basis as large as can be, which takes no memory: which components it has, only the pictures say.
        pixels = torch.empty(most, math.prod(size), device="meta")
        simulation = self.make(Basis(pixels[0], pixels, size))
        clients = self._number(simulation)
        held = min(HELD_CLIENTS, clients)
        facts = self.count * self._classes_read()
        views = [sum(widths) + facts for widths in simulation.widths.values()]
        return FitCost(
            clients + held,
            price.memory(clients + held, sum(views), self.count * most),
            sum(price.operations(clients, held, columns, self.count * most, size, self.count) for columns in views),
        )

    def work(self) -> int:
        """Floating-point operations of simulating one client."""
        size = self._predicted()
        return self.make(Basis(torch.empty(0), torch.empty(0, math.prod(size)), size)).work()

    def fitted(self, seed: int, kept: Kept, tick: Tick) -> tuple[Inverse, int]:
        """The inverse, and the number of simulated clients that it was fitted to.

        Args:
            seed: All randomness comes from it.
            kept: Keeps parts of long work.
            tick: Called with the finished fraction.
        """
        public = self._public
        order = torch.randperm(len(public.pictures), generator=generator(seed, "held out")).to(self.setting.device)
        apart = max(2, len(order) // HELD)
        held, own = order[:apart], order[apart:]
        components = min(COMPONENTS, OUTPUTS // self.count)
        basis = basis_of(public.pictures[own], self._predicted(), components, seed)
        simulation = self.make(basis)
        clients = self._number(simulation)
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

        inverse = fitted_inverse(
            run(own, clients, "simulated", 0),
            run(held, total - clients, "held-out", clients),
            simulation.widths,
            basis,
            self._classes_read(),
            derive(seed, "maps"),
            kept,
            lambda fraction: tick(0.7 + 0.3 * fraction),
        )
        return inverse, clients

    @property
    def _public(self) -> Public:
        assert self.setting.public is not None
        return self.setting.public

    def _number(self, simulation: Simulation) -> int:
        """Simulated clients: those asked for, or what is usual and worth its work, as far as memory reaches."""
        usual = UPDATES if simulation.sketch else STATISTICS
        wanted = self.clients or max(min(usual, WORK // max(1, simulation.work())), LEAST)
        columns = sum(map(sum, simulation.widths.values()))
        numbers = columns + self.count * (self._classes_read() + len(simulation.basis.components))
        return max(FEWEST, min(wanted, MEMORY // (4 * numbers)))

    def _classes_read(self) -> int:
        """Classes that are columns besides what is read; 0 where public pictures of each are too few."""
        classes = self.setting.network.task.labels
        return classes if self.classes and len(self._public.pictures) >= OFTEN * classes else 0

    def _predicted(self) -> tuple[int, int, int]:
        """``(C, h, w)`` of predicted pictures."""
        channels, height, width = self.setting.network.task.shape
        ratio = 1.0 if max(height, width) <= SMALL else self.coarse / max(height, width)
        return channels, round(ratio * height), round(ratio * width)


def granted(setting: Setting) -> tuple[LocalRule, int]:
    """Rule and examples of each client, where an inverse can be fitted.

    Raises:
        NotGranted: one is withheld.
        NotApplicable: the task is detection, or there are too few public pictures.
    """
    task = setting.network.task
    if task.objects or not task.counted:
        what = "detects objects" if task.objects else f"has the target {task.target}"
        raise NotApplicable(f"An inverse is fitted to pictures with a class; this task {what}.")
    if setting.rule is None or setting.count is None or setting.public is None:
        raise NotGranted(
            "An inverse is fitted to simulated clients, which needs the local rule, the number of examples and public "
            "pictures (--public N); one of them is withheld."
        )
    if (have := len(setting.public.pictures)) < FEWEST:
        raise NotApplicable(f"An inverse is fitted to at least {FEWEST} public pictures; {have} are granted.")
    return setting.rule, setting.count


def why_unfit(observation: Observation) -> str:
    """Why no inverse can be fitted for such clients, as far as it shows; empty if one can."""
    task = observation.network.task
    if task.objects or not task.counted:
        return f"it reads pictures with a class, not with {'objects' if task.objects else f'the target {task.target}'}"
    return "" if observation.public is not None else "no public pictures are granted to fit it to"


def sizes_of(clients: int, setting: Setting) -> dict[str, Tensor]:
    """How much an inverse was fitted to, as a part of its state."""
    assert setting.public is not None
    return {"clients": torch.tensor(clients), "public": torch.tensor(len(setting.public.pictures))}


def told_of(state: Mapping[str, Tensor]) -> dict[str, float]:
    """What the state of an inverse says for the record: how much it was fitted to, and the NCC on held-out clients."""
    held_out = {name.removeprefix("ncc/"): float(value) for name, value in state.items() if name.startswith("ncc/")}
    return {
        "simulated clients": int(state["clients"]),
        "public pictures": int(state["public"]),
        **{f"held-out NCC of {name}": value for name, value in held_out.items()},
    }
