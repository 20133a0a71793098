"""What may be wrong with the loss: label smoothing, class weights."""

import torch
from torch import Tensor

from leakmap.auditing.case import Candidates, Case
from leakmap.doctor.hypotheses.fitting import fitted
from leakmap.problem.task import weights_of
from leakmap.registry.spec import Spec

MOST_CLASSES = 16
"""Classes of a client up to which a weight is fitted to each."""


def smoothing(case: Case) -> Candidates:
    """Label smoothing."""
    if not _is_cross_entropy(case):
        return
    own = case.task.loss.params.get("label_smoothing", 0.0)
    for value in (0.0, 0.05, 0.1, 0.2):
        if value != own:
            yield f"label smoothing is {value:g}, not {own:g}", _with(case, label_smoothing=value)


def class_weights(case: Case) -> Candidates:
    """No class weights, or those that balance the client's classes."""
    if not _is_cross_entropy(case) or case.task.target != "class":
        return
    if "class_weights" in case.task.loss.params:
        yield "the loss has no class weights", _with(case, class_weights="")
    counts = torch.bincount(case.batch.y, minlength=case.task.classes)
    held = counts[counts > 0]
    if bool((held != held[0]).any()):
        balanced = held.max() / counts.clamp(min=1).where(counts > 0, held.max())
        yield "classes are weighted in inverse proportion to their pictures", _weighted(case, balanced)


def fitted_class_weights(case: Case) -> Candidates:
    """A weight for each class that the client holds, relative to that of its first."""
    if not _is_cross_entropy(case) or case.task.target != "class":
        return
    held = case.batch.y.unique()
    if not 1 < len(held) <= MOST_CLASSES:
        return

    def place(one: Case) -> Tensor:
        weights = weights_of(one.task.loss.params.get("class_weights", ""))
        own = torch.tensor(weights or (1.0,) * one.task.classes, dtype=torch.float64)[held.cpu()]
        return (own.clamp(min=1e-3) / own[0].clamp(min=1e-3)).log()[1:]

    def at(one: Case, logs: Tensor) -> Case:
        weights = torch.ones(one.task.classes, dtype=torch.float64)
        weights[held.cpu()[1:]] = logs.clamp(-7, 7).exp()
        return _weighted(one, weights)

    def near(one: Case) -> list[Case]:
        weights = place(one).exp()
        return [at(one, ((weights / digit).round().clamp(min=1) * digit).log()) for digit in (0.5, 0.1, 0.05, 0.01)]

    # Over several steps slopes over short ways are mostly switches of the network.
    found = fitted(case, place, at, near, wide=2.0, widest=0.4)
    if found.distance < case.distance:
        told = weights_of(found.task.loss.params["class_weights"])
        listed = ", ".join(f"{label}: {told[label]:.4g}" for label in held.tolist())
        yield f"the loss weights classes ({listed}; those that the client does not hold cannot be told)", found


def _weighted(case: Case, weights: Tensor) -> Case:
    return _with(case, class_weights="/".join(f"{weight:.5g}" for weight in weights.tolist()))


def _is_cross_entropy(case: Case) -> bool:
    network = case.observation.network
    return network.code.loss is None and not network.task.objects and network.task.loss.name == "cross_entropy"


def _with(case: Case, **settings: float | str) -> Case:
    kept = {name: value for name, value in {**case.task.loss.params, **settings}.items() if value}
    return case.tasked(loss=Spec("cross_entropy", kept))
