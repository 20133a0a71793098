"""A search that begins at what a learned inverse reads, and stays near it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import inverting_gradients
from leakmap.attacker.attacks.learned_inverse import LearnedInverse, learned_inverse
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.settings import TV, Count, LearningRate, Weight, Whole
from leakmap.attacker.protocol import Cost, FitCost, Fitted, Kept
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.attacker.setting import Setting
from leakmap.observation.observation import Observation
from leakmap.seeds import derive


@attacks.add("learned_start")
def learned_start(
    *,
    clients: Whole = 0,
    near: Weight = 0.1,
    tv: TV = 0.1,
    lr: LearningRate = 0.03,
    steps: Count = 200,
    labels: str = "auto",
) -> "LearnedStart":
    """Gradient matching from the answer of ``learned_inverse``, with a penalty on the distance from it.

    Without the penalty the search leaves for pictures with a lower matching term that are farther from the truth. It
    moves the waves of pictures, as ``whitened`` does.

    Args:
        clients: Simulated clients of the inverse, see ``learned_inverse``.
        near: Weight of the mean squared distance from its answer, in normalized space.
        tv: Weight of the total variation.
        lr: Step size of Adam, in white numbers.
        steps: Iterations.
        labels: ``auto``, or the name of a label rule.

    Applies: where ``learned_inverse`` does.

    Source: this project, after Wu et al. 2023, "Learning To Invert", arXiv:2210.10880.
    """
    search = inverting_gradients(
        tv=tv,
        fade=1.0,
        lr=lr,
        sign="unit",
        basis="whitened",
        steps=steps,
        labels=labels,
    )
    return LearnedStart(learned_inverse(clients=clients, labels=labels), replace(search, near=near))


@dataclass(frozen=True)
class LearnedStart:
    """The attack, ready to be fitted.

    Args:
        inverse: Where the search begins.
        search: From there.
    """

    inverse: LearnedInverse
    search: GradientMatching

    leaky_model = "convnet"

    @property
    def needs(self) -> frozenset[str]:
        """Those of the inverse and of the search."""
        return self.inverse.needs | self.search.needs

    @property
    def cost(self) -> Cost:
        """That of the search."""
        return self.search.cost

    @property
    def fits(self) -> str:
        """What the inverse fits: they share it."""
        return self.inverse.fits

    def blind(self) -> "LearnedStart":
        """Its floor: the search without the update, from the inverse's answer to no client."""
        return LearnedStart(self.inverse.blind(), self.search.blind())

    def paced(self, steps: int, restarts: int | None = None) -> "LearnedStart":
        """The same with so many iterations; it has one start."""
        return replace(self, search=self.search.paced(steps))

    def why_not(self, observation: Observation) -> str:
        """Why it does not apply; empty if it does."""
        return self.inverse.why_not(observation)

    def fit_cost(self, setting: Setting) -> FitCost:
        """That of the inverse.

        Raises:
            NotGranted: public pictures, the rule or the number of examples are withheld.
            NotApplicable: no inverse can be fitted.
        """
        return self.inverse.fit_cost(setting)

    def fit(self, setting: Setting, seed: int, tick: Tick, kept: Kept) -> Fitted:
        """Fits the inverse.

        Raises:
            NotGranted: public pictures, the rule or the number of examples are withheld.
            NotApplicable: no inverse can be fitted.
        """
        return self.restored(setting, self.inverse.fit(setting, seed, tick, kept).state)

    def restored(self, setting: Setting, state: Mapping[str, Tensor]) -> Fitted:
        """The same from the state of the inverse."""
        inverse = self.inverse.restored(setting, state)
        return Fitted(inverse.needs | self.search.needs, partial(self._searched, inverse), state)

    def _searched(self, inverse: Fitted, observation: Observation, seed: int, tick: Tick) -> Reconstruction:
        first = inverse(observation, derive(seed, "inverse"), lambda fraction: None)
        # The inverse names pictures in the order of their labels, and the search simulates the client in that order.
        ordered = replace(observation, labels=first.y) if observation.labels is not None else observation
        found = self.search(ordered, seed, tick, begin=first.pictures)
        return replace(found, used=found.used | first.used)
