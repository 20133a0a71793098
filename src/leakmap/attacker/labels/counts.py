"""How many examples of each class a batch holds."""

import torch
from torch import Tensor

from leakmap.attacker.labels import LabelRule, Labels, head_gradient, label_rules
from leakmap.local import LocalRule, arrange
from leakmap.observation import Observation
from leakmap.seeds import generator


@label_rules.add("counts")
def counts(*, dummies: int = 64) -> LabelRule:
    """Class counts from ``n_c = B (p_c - db_c)``, with the mean prediction ``p`` measured on stand-in pictures.

    The stand-ins are the granted public pictures, else noise in the client's mode. Without a bias, the row sums of the
    weight gradient stand for ``db`` up to a scale that makes the counts sum to B. Exact where ``p`` is; for several
    local steps it reads their mean gradient, for which it needs the local rule.

    Args:
        dummies: Number of noise pictures where no public ones are granted.

    Source: the identity behind LLG (Wainakh et al. 2022, arXiv:2105.09369) and iLRG (Ma et al. 2023).
    """

    def rule(observation: Observation, seed: int) -> Labels:
        observation.need("count", *(["rule"] if observation.update.kind == "delta" else []))
        total = observation.count or 0
        head = head_gradient(observation)
        predicted = mean_prediction(observation, seed, dummies)
        if head.bias is not None:
            real = total * (predicted - head.bias)
        else:
            rows = head.weight.sum(1)
            rows = rows - rows.mean()
            present = (-rows).clamp(min=0).sum().clamp(min=1e-30)
            real = total * (predicted - rows * (1 - predicted.max()) / present)
        whole = largest_remainder(real.clamp(min=0), total)
        confidence = 1 - 0.5 * float((real - whole).abs().sum()) / total
        y = torch.arange(len(whole), device=whole.device).repeat_interleave(whole)
        used = () if observation.public is None else ("public",)
        return Labels(y, "counts", max(0.0, min(1.0, confidence)), used)

    return rule


def mean_prediction(observation: Observation, seed: int, dummies: int) -> Tensor:
    """``(classes,)`` mean softmax output on public pictures, or on noise, in the client's mode."""
    network, task = observation.network, observation.network.task
    if observation.public is not None:
        x = task.normalise(observation.public.pictures)
    else:
        noise = torch.randn(dummies, *task.shape, generator=generator(seed, "label dummies"))
        x = noise.to(network.device, network.dtype)
    module = arrange(network.module(), observation.rule or LocalRule(), dropout=False)
    with torch.no_grad():
        return module(x).softmax(1).mean(0)


def largest_remainder(real: Tensor, total: int) -> Tensor:
    """Rounds non-negative numbers to whole ones that sum to ``total``, after scaling them to that sum."""
    scaled = real * (total / real.sum().clamp(min=1e-30)) if float(real.sum()) > 0 else real
    whole = scaled.floor().long()
    missing = total - int(whole.sum())
    if missing > 0:
        order = (scaled - whole).argsort(descending=True, stable=True)
        whole[order.repeat(missing // len(order) + 1)[:missing]] += 1
    return whole
