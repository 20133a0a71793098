"""What may be wrong with the labels."""

import torch
from torch import Tensor

from leakmap.attacker.gradients import step_weights
from leakmap.attacker.labels.head import head_of
from leakmap.auditing.case import Candidates, Case
from leakmap.client_step import arrange
from leakmap.errors import NotApplicable
from leakmap.local_rule import LocalRule
from leakmap.problem.objects import EMPTY

READINGS = 8
"""How often labels are read from an update, each time beside a simulation with the last ones."""


def other_labels(case: Case) -> Candidates:
    """Other numbers of the classes, other orders of the labels."""
    y, classes = case.batch.y, case.task.labels
    if not case.task.counted:
        yield "labels stand in reverse order beside the pictures", case.holding(y=y.flip(0))
        yield "labels are shifted by one picture", case.holding(y=y.roll(1, 0))
        yield "labels are shifted by one picture back", case.holding(y=y.roll(-1, 0))
        return
    own = y[..., 0] if case.task.objects else y

    def relabelled(found: Tensor) -> Tensor:
        if not case.task.objects:
            return found
        return torch.cat([torch.where(own == EMPTY, own, found)[..., None], y[..., 1:]], -1)

    alphabetical = torch.tensor(sorted(range(classes), key=str), device=y.device)
    ranks = alphabetical.argsort()
    held = own.clamp(min=0)
    found = {
        "classes are counted from 1": relabelled((own + 1) % classes),
        "classes are counted from 1 in the data given": relabelled((own - 1) % classes),
        "classes are numbered backwards": relabelled(classes - 1 - own),
        "classes are numbered by their numbers in alphabetical order (0, 1, 10, 2)": relabelled(ranks[held]),
        "classes in the data given are in alphabetical order (0, 1, 10, 2)": relabelled(alphabetical[held]),
        "labels stand in reverse order beside the pictures": y.flip(0),
        "labels are shifted by one picture": y.roll(1, 0),
        "labels are shifted by one picture back": y.roll(-1, 0),
    }
    if not case.task.objects and case.task.target == "class":
        found["labels are sorted, pictures are not"] = y.sort().values
        if (read := _read_labels(case)) is not None:
            found[_relabelling(y, read)] = read
    seen = [y]
    for what, other in found.items():
        if not any(torch.equal(other, one) for one in seen):
            seen.append(other)
            yield what, case.holding(y=other)


def _read_labels(case: Case) -> Tensor | None:
    """Classes that the head's update shows: what it lacks is linear in the one-hot labels that are exchanged.

    The gradient of the head is ``sum_i (p_i - e_(y_i)) f_i / N`` with the features ``f``. Exact for a gradient or one
    plain step of fewer pictures than features; after more steps a guess, which is read again from its own simulation.
    """
    classes, name, features = case.task.classes, *_features(case)
    if features is None:
        return None
    inverse = torch.linalg.pinv(features)
    for _ in range(READINGS):
        if case.simulated is None:
            return None
        sent = case.observation.update.tensors
        parts = [(sent[n] - case.simulated[n]).double() for n in (f"{name}.weight", f"{name}.bias") if n in sent]
        missing = torch.cat([part.view(classes, -1) for part in parts], 1)[:, : features.shape[1]]
        change = (missing @ inverse).T * case.count / _reach(case.rule, case.count)
        read = (torch.nn.functional.one_hot(case.batch.y, classes) + change).argmax(1)
        if torch.equal(read, case.batch.y):
            break
        case = case.holding(y=read)
    return case.batch.y


def _reach(rule: LocalRule, count: int) -> float:
    """By what the gradient of the client's pictures is multiplied in its update, while weights hardly move; signed."""
    if rule.share == "gradient":
        return -1.0
    return sum(step_weights(rule, count))


def _features(case: Case) -> tuple[str, Tensor | None]:
    """Name of the last linear layer, and ``(N, features)`` of what it sees, with a 1 for its bias; None without one."""
    module = arrange(case.observation.network.module(), case.rule, dropout=False)
    sent = case.observation.update.tensors
    try:
        name = head_of(case.observation.network, case.rule)
    except NotApplicable:
        return "", None
    if f"{name}.weight" not in sent:
        return "", None
    layer = module.get_submodule(name)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(case.task.normalize(case.batch.pictures))
    except (ValueError, RuntimeError):
        return name, None
    if not seen or seen[0].ndim != 2 or len(seen[0]) != case.count:
        return name, None
    features = seen[0].double()
    if f"{name}.bias" in sent:
        features = torch.cat([features, features.new_ones(case.count, 1)], 1)
    return name, features


def _relabelling(y: Tensor, read: Tensor) -> str:
    """What labels that were read from the head say about those given."""
    pairs = sorted({(int(a), int(b)) for a, b in zip(y, read, strict=True)})
    if len({a for a, _ in pairs}) == len(pairs) == len({b for _, b in pairs}):
        moved = [f"{a} is {b}" for a, b in pairs if a != b]
        return f"classes are numbered otherwise: {', '.join(moved[:8])}{' …' if len(moved) > 8 else ''}"
    wrong = int((y != read).sum())
    return f"{wrong} of {len(y)} labels are others; the head shows {', '.join(map(str, read.tolist()[:16]))}"
