"""What may be wrong with the pictures: normalization, channels, axes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from leakmap.auditing.case import EXACT, Candidates, Case
from leakmap.doctor.hypotheses.fitting import fitted
from leakmap.problem.task import Task

STEPS, DIGIT = (0.05, 0.02, 0.01, 0.001), 0.01
"""The round numbers that a fit tries on its way, and those that it ends on."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "of 0.5 and 0.5": ((0.5,), (0.5,)),
    "of ImageNet": IMAGENET,
    "of CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "of CIFAR-10 with the deviations 0.2023, 0.1994, 0.2010": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)),
    "of CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "of CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "of MNIST": ((0.1307,), (0.3081,)),
    "of Fashion-MNIST": ((0.286,), (0.353,)),
}
"""Mean and standard deviation that clients use; one value stands for every channel, or is for a single one."""
SINGLE = ("of MNIST", "of Fashion-MNIST")


def normalization(case: Case) -> Candidates:
    """Usual constants, and usual mistakes with those that are given."""
    task, channels = case.task, case.task.shape[0]
    mean, std = torch.tensor(task.mean, dtype=torch.float64), torch.tensor(task.std, dtype=torch.float64)
    values = case.batch.pictures.double().transpose(0, 1).flatten(1).cpu()
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, constants in CONSTANTS.items():
        if all(len(part) in (1, channels) for part in constants) and (channels == 1 or name not in SINGLE):
            columns = [torch.tensor(part, dtype=torch.float64).expand(channels) for part in constants]
            found[f"normalization is {name}"] = columns[0], columns[1]
    found |= {
        "inputs were 0 to 255 and not normalized": (0 * mean, 0 * std + 1 / 255),
        "inputs were 0 to 255 when they were normalized": (mean / 255, std / 255),
        "inputs were divided by 255 twice and not normalized": (0 * mean, 0 * std + 255),
        "inputs in [0, 1] were normalized with constants for 0 to 255": (mean * 255, std * 255),
        "inputs were divided by the variance, not by the standard deviation": (mean, std.square()),
        "std was given as the variance": (mean, std.sqrt()),
        "the mean was taken off, nothing divided": (mean, 0 * std + 1),
        "inputs were divided by std, no mean taken off": (0 * mean, std),
        "inputs were normalized twice": (mean + mean * std, std.square()),
        "mean and std are in the order blue, green, red": (mean.flip(0), std.flip(0)),
        "normalization is that of the client's own pictures": (values.mean(1), values.std(1).clamp(min=1e-6)),
    }
    seen = [(task.mean, task.std)]
    for what, pair in found.items():
        own = tuple(tuple(float(f"{v:.7g}") for v in part.tolist()) for part in pair)
        if own not in seen:
            seen.append((own[0], own[1]))
            yield f"{what} (mean {_listed(own[0])}, std {_listed(own[1])})", case.tasked(mean=own[0], std=own[1])


def _listed(values: Sequence[float]) -> str:
    return "/".join(f"{value:.4g}" for value in (values if len(set(values)) > 1 else values[:1]))


def fitted_normalization(case: Case) -> Candidates:
    """Mean and standard deviation of every channel by damped Gauss-Newton: those of a user's own data are in no list.

    Begins at the nearest of the usual constants. What a BatchNorm behind the first layer takes away is not found, and
    does not matter.
    """
    usual = [one for _, one in normalization(case) if math.isfinite(one.distance)]
    now = min([case, *usual], key=lambda one: one.distance)
    now = fitted(
        now,
        lambda one: _slopes(one.task),
        _at,
        lambda one: [_rounded(one, digit) for digit in STEPS],
        wide=0.25,
        widest=0.2,
    )
    now = min(now, _settled(_rounded(now, DIGIT)), key=lambda one: one.distance)
    if now.distance < case.distance:
        yield (
            f"normalization is by constants of the client's own (mean {_listed(now.task.mean)}, "
            f"std {_listed(now.task.std)})",
            now,
        )


def _settled(now: Case) -> Case:
    """From constants of two digits downhill, by one digit: of one constant, all means or all deviations at a time."""
    while now.distance > EXACT:
        constants = torch.tensor([*now.task.mean, *now.task.std], dtype=torch.float64)
        single = torch.eye(len(constants), dtype=torch.float64)
        moves = DIGIT * torch.cat([single, *(half.sum(0, keepdim=True) for half in single.chunk(2))])
        near = [(constants + move).clamp(min=0).chunk(2) for move in (*moves, *-moves)]
        tried = [
            _rounded(now.tasked(mean=tuple(m.tolist()), std=tuple(s.clamp(min=DIGIT).tolist())), DIGIT) for m, s in near
        ]
        found = min(tried, key=lambda one: one.distance)
        if found.distance >= now.distance:
            break
        now = found
    return now


def _rounded(case: Case, digit: float) -> Case:
    """With mean and standard deviation as multiples of a round number, as people write them."""
    mean, std = (tuple(round(round(v / digit) * digit, 6) for v in part) for part in (case.task.mean, case.task.std))
    return case.tasked(mean=mean, std=tuple(max(v, digit) for v in std))


def _slopes(task: Task) -> Tensor:
    """Slope and intercept of every channel, ``(2 C,)``: inputs are ``slope * picture + intercept``."""
    mean, std = torch.tensor(task.mean, dtype=torch.float64), torch.tensor(task.std, dtype=torch.float64)
    return torch.cat([1 / std, -mean / std])


def _at(case: Case, place: Tensor) -> Case:
    slope, intercept = place.chunk(2)
    slope = slope.clamp(min=1e-6)
    return case.tasked(mean=tuple((-intercept / slope).tolist()), std=tuple((1 / slope).tolist()))


def pictures(case: Case) -> Candidates:
    """Channels, mirrors, axes and number of the pictures."""
    pictures = case.batch.pictures
    if pictures.shape[1] == 3:
        yield "its pictures are blue, green, red (BGR), not RGB", case.holding(pictures.flip(1))
    if not case.task.objects:
        yield "its pictures are mirrored", case.holding(pictures.flip(3))
        if pictures.shape[2] == pictures.shape[3]:
            yield "height and width of its pictures are exchanged", case.holding(pictures.transpose(2, 3).contiguous())
    count = case.observation.count
    if count is not None and count < case.count:
        what = f"it held the first {count} of the {case.count} pictures given, as count says"
        yield what, case.holding(pictures[:count], case.batch.y[:count])
