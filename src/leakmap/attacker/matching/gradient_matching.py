"""The composable core of every attack by optimisation."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from leakmap.attacker.labels import label_rules, recover
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Exact
from leakmap.attacker.matching.priors import total_variation
from leakmap.attacker.reconstruction import Progress, Reconstruction
from leakmap.errors import NonFinite
from leakmap.local import LocalRule
from leakmap.observation import Observation
from leakmap.seeds import derive, generator
from leakmap.task import Task

CHECK_EVERY = 25
CURVE_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class GradientMatching:
    """Searches for pictures whose simulated update matches the observed one.

    Optimises in normalised space, clamped to the task's range after every step. Of each restart the iterate with the
    lowest matching term is kept, at the point where the term was computed; of several restarts the one whose kept term
    is lowest, ties within 1 % going to the lower total variation. Priors never enter a choice.

    Args:
        distance: ``cosine`` or ``squared``.
        match: Weight of the matching term; 0 ignores the update, which is the prior-only floor.
        tv: Weight of the total variation, in normalised space.
        steps: Iterations of each restart.
        lr: Step size of Adam, in normalised space.
        schedule: ``step`` multiplies by 0.1 at 3/8, 5/8 and 7/8; ``cosine`` decays to 0; ``constant``.
        sign: Whether Adam is fed the sign of the gradient.
        restarts: Independent starts from N(0, 1).
        labels: ``auto`` or the name of a label rule, see :func:`leakmap.attacker.labels.recover`.
        mode: ``client`` simulates the mode of the granted rule, ``eval`` forces inference mode.
    """

    distance: Literal["cosine", "squared"] = "cosine"
    match: float = 1.0
    tv: float = 1e-2
    steps: int = 400
    lr: float = 0.3
    schedule: Literal["step", "cosine", "constant"] = "cosine"
    sign: bool = True
    restarts: int = 1
    labels: str = "auto"
    mode: Literal["client", "eval"] = "client"

    needs = frozenset({"count"})
    leaky_model = "convnet"

    def __post_init__(self) -> None:
        if self.labels != "auto":
            label_rules.constructor(self.labels)

    def __call__(self, observation: Observation, seed: int, progress: Progress) -> Reconstruction:
        """Attacks.

        Raises:
            NotGranted: the number of examples is not granted.
            NonFinite: the search left the finite numbers in every restart.
        """
        labels = recover(observation, self.labels, derive(seed, "labels"))
        rule = self._rule(observation)
        engine = Exact(observation, rule, labels.y, DISTANCES[self.distance]) if self.match else None
        runs: list[_Run] = []
        lost: list[NonFinite] = []
        task, count = observation.network.task, len(labels.y)
        for restart in range(self.restarts):
            start = torch.randn(count, *task.shape, generator=generator(seed, "start", restart))
            start = start.to(observation.network.device, observation.network.dtype)
            try:
                runs.append(self._descend(start, engine, task, lambda f, r=restart: progress((r + f) / self.restarts)))
            except NonFinite as error:
                lost.append(error)
        if not runs:
            raise lost[0]
        best = choose(runs)
        used = ["count", *(["rule"] if observation.rule else []), *labels.used]
        notes: dict[str, str | int | float] = {
            "labels": labels.rule,
            "label confidence": labels.confidence,
            "restart": best,
            "mode simulated": rule.mode,
            "used": ", ".join(used),
        }
        if lost:
            notes["restarts lost"] = len(lost)
        if rule.batch_size is not None and labels.rule != "granted":
            notes["label order"] = "unknown: mini-batches are simulated with sorted classes"
        if observation.rule is None:
            notes["assumed"] = f"{rule.share} of one step in {rule.mode} mode"
        run = runs[best]
        pictures = observation.network.task.denormalise(run.x)
        return Reconstruction(pictures, labels.y, run.objective, run.curve, notes)

    def _rule(self, observation: Observation) -> LocalRule:
        rule = observation.rule or LocalRule(share=observation.update.kind)
        if self.mode == "eval" and rule.mode != "eval":
            return replace(rule, mode="eval")
        return rule

    def _descend(self, x: Tensor, engine: Exact | None, task: Task, progress: Progress) -> "_Run":
        low, high = task.bounds(x)
        x = x.clamp(low, high).requires_grad_()
        adam = torch.optim.Adam([x], lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, self._factor)
        best_x = x.detach().clone()
        best = torch.full((), math.inf, dtype=torch.float64, device=x.device)
        values: list[Tensor] = []
        for step in range(self.steps):
            gradient = torch.zeros_like(x)
            if engine is not None:
                value, of_match = engine.value_and_grad(x)
                better = value < best
                best = torch.where(better, value, best)
                best_x = torch.where(better, x.detach(), best_x)
                values.append(value)
                gradient += self.match * of_match
            if self.tv:
                (of_tv,) = torch.autograd.grad(total_variation(x), x)
                gradient += self.tv * of_tv
            x.grad = gradient.sign() if self.sign else gradient
            adam.step()
            schedule.step()
            with torch.no_grad():
                x.clamp_(low, high)
            if step % CHECK_EVERY == 0:
                progress(step / self.steps)
                if not torch.isfinite(gradient).all():
                    raise NonFinite(f"The attack's gradient was not finite at iteration {step} of {self.steps}.")
        progress(1.0)
        if engine is None:
            return _Run(x.detach(), math.nan, (), float(total_variation(x.detach())))
        if not math.isfinite(float(values[-1])):
            raise NonFinite(f"The matching term was not finite at the end of {self.steps} iterations.")
        every = max(1, len(values) // CURVE_POINTS)
        curve = tuple(torch.stack(values[::every]).tolist())
        return _Run(best_x, float(best), curve, float(total_variation(best_x)))

    def _factor(self, step: int) -> float:
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / self.steps))
        if self.schedule == "step":
            return 0.1 ** sum(step >= self.steps * eighth / 8 for eighth in (3, 5, 7))
        return 1.0


@dataclass(frozen=True)
class _Run:
    x: Tensor
    objective: float
    curve: tuple[float, ...]
    tv: float


def choose(runs: list[_Run]) -> int:
    """Index of the run with the lowest objective; ties within 1 % go to the lower total variation."""
    lowest = min((run.objective for run in runs), default=math.nan)
    if math.isnan(lowest):
        return 0
    tied = [i for i, run in enumerate(runs) if run.objective <= lowest * 1.01]
    return min(tied, key=lambda i: runs[i].tv)
