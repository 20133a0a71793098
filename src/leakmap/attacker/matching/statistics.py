"""What the attacker knows about the inputs of normalization layers, as a term of the objective."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from leakmap.attacker.buffers import recover_statistics, tracked_layers
from leakmap.attacker.matching.context import Penalty, SearchContext, Seen, Trace
from leakmap.client_step import arrange
from leakmap.errors import BadSetting, NotApplicable
from leakmap.models.adapt import freeze_running_statistics
from leakmap.seeds import generator

Layer = _BatchNorm | _InstanceNorm | nn.LayerNorm | nn.GroupNorm
EPSILON = 1e-3
"""Smallest between-batch deviation of the calibrated form, relative to the largest of the layer."""


@dataclass(frozen=True)
class Target:
    """What a layer's input should have.

    Args:
        mean: ``(C,)`` for BatchNorm, ``(1,)`` else.
        variance: Likewise, with the denominator n for one pass.
        mixture: ``(K,)`` weight of each forward pass, the oldest first; None: all alike.
        unbiased: Whether ``variance`` has the n - 1 denominator.
        spread: Deviations of mean and variance between batches.
    """

    mean: Tensor
    variance: Tensor
    mixture: Tensor | None = None
    unbiased: bool = False
    spread: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Statistics:
    """Penalises inputs of normalization layers whose statistics are not those that the attacker expects.

    The simulated client's own forward passes are read; layers are keyed by module name.

    Args:
        source: ``recovered`` from the change of the client's buffers; ``proxy`` from public pictures; ``running``:
            the client's running statistics after its step, or the server's where buffers are not returned; ``server``:
            those that the server sent.
        weight: Of the term.
        form: ``paper``: ``sum_l |mean_l - target|_2 + |variance_l - target|_2``; ``calibrated``: mean over all channels
            of the squared deviation over its variance between batches (``proxy`` only).
        first: Factor for the first layer.
        batches: Public batches that are averaged, for ``proxy``.

    Source: arXiv:2508.19819; Huang et al. 2021, arXiv:2112.00059, for ``running``; Yin et al. 2021, arXiv:2104.07586,
    for ``first``.
    """

    source: Literal["recovered", "proxy", "running", "server"]
    weight: float
    form: Literal["paper", "calibrated"] = "paper"
    first: float = 1.0
    batches: int = 1

    @property
    def needs(self) -> frozenset[str]:
        """The facts that it cannot do without."""
        return frozenset({"recovered": {"buffers"}, "proxy": {"count", "public"}}.get(self.source, ()))

    def __post_init__(self) -> None:
        if self.form == "calibrated" and (self.source != "proxy" or self.batches < 2):
            raise BadSetting(
                f"form=calibrated measures how public batches differ, so it needs several; got batches={self.batches}."
            )

    def blind(self) -> "Statistics | None":
        """Public or the server's own statistics; of the client's nothing is left."""
        if self.source == "recovered":
            return None
        return replace(self, source="server") if self.source == "running" else self

    def __call__(self, context: SearchContext) -> Penalty:
        """Prepares the targets.

        Raises:
            NotApplicable: the model has no layer of the kind.
        """
        used = self.needs
        if self.source == "recovered":
            targets, note = recovered_targets(context)
        elif self.source != "proxy":
            targets, note = running_targets(context, returned=self.source == "running")
            used |= {"buffers"} if self.source == "running" and context.observation.buffers is not None else set()
        else:
            targets, note = proxy_targets(context, self.batches)
        network = context.observation.network
        layers = {name: layer for name, layer in network.module().named_modules() if name in targets}
        targets = {name: _placed(target, network.device, network.dtype) for name, target in targets.items()}
        read = calibrated if self.form == "calibrated" else paper
        if not targets:
            return Penalty((), lambda seen: torch.zeros((), device=network.device), note, used)

        def value(seen: Seen) -> Tensor:
            differences = {
                name: difference(layers[name], seen.inputs[name], target) for name, target in targets.items()
            }
            return self.weight * read(differences, targets, self.first)

        return Penalty(tuple(targets), value, note, used)


Differences = Mapping[str, tuple[Tensor, Tensor]]


def paper(differences: Differences, targets: Mapping[str, Target], first: float = 1.0) -> Tensor:
    """Sum over layers of the unsquared norms."""
    terms = [torch.linalg.vector_norm(mean) + torch.linalg.vector_norm(var) for mean, var in differences.values()]
    return torch.stack([first * terms[0], *terms[1:]]).sum()


def calibrated(differences: Differences, targets: Mapping[str, Target], first: float = 1.0) -> Tensor:
    """Mean over channels and layers of the squared deviation over its variance between batches."""
    terms = []
    for name, pair in differences.items():
        spread = targets[name].spread
        if spread is None:
            raise ValueError("the calibrated form needs the deviation between batches")
        for value, deviation in zip(pair, spread, strict=True):
            # A channel that hardly varies between public batches would otherwise outweigh all others.
            # 1e-12 covers layers in which no channel varies.
            floor = EPSILON * deviation.max() + 1e-12
            terms.append((value / (deviation + floor)).square())
    terms[0], terms[1] = first * terms[0], first * terms[1]
    return torch.cat(terms).mean()


def difference(layer: nn.Module, inputs: list[Tensor], target: Target) -> tuple[Tensor, Tensor]:
    """Mean and variance of the layer's inputs minus the target's; several passes are mixed as the target says."""
    pairs = [layer_statistics(layer, x) for x in inputs]
    means = torch.stack([mean for mean, _ in pairs])
    variances = torch.stack([variance for _, variance in pairs])
    scale = 1.0
    if target.unbiased:
        sizes = [x.numel() // x.shape[1] for x in inputs]
        # A single element has no unbiased variance; its factor is 1 in place of infinity.
        bessel = torch.tensor([n / max(n - 1, 1) for n in sizes]).to(variances)
        # Compared with the denominator n - 1, of which buffers are made; weighed with n, as the other sources are.
        variances, scale = variances * bessel[:, None], (sizes[-1] - 1) / sizes[-1]
    mixture = target.mixture
    # If the simulation makes another number of passes than the buffers show, their weights do not apply.
    if mixture is None or len(mixture) != len(inputs):
        mixture = means.new_full((len(inputs),), 1 / len(inputs))
    return mixture @ means - target.mean, (mixture @ variances - target.variance) * scale


def layer_statistics(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (denominator n) of a normalization layer's input.

    BatchNorm: ``(C,)`` over examples and positions. Others normalize every example for itself: the mean and the
    variance over what is normalized, averaged over all else, ``(1,)``.
    """
    if isinstance(layer, _BatchNorm):
        variance, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
        return mean, variance
    if isinstance(layer, _InstanceNorm):
        variance, mean = torch.var_mean(x.flatten(2), 2, correction=0)
    elif isinstance(layer, nn.GroupNorm):
        variance, mean = torch.var_mean(x.reshape(len(x), layer.num_groups, -1), 2, correction=0)
    elif type(layer).__name__.endswith("2d"):
        variance, mean = torch.var_mean(x, 1, correction=0)
    else:
        over = list(range(-len(_normalized_shape(layer)), 0))
        variance, mean = torch.var_mean(x, over, correction=0)
    return mean.mean().view(1), variance.mean().view(1)


def norm_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every normalization layer by name, one entry each."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Layer)}


def recovered_targets(context: SearchContext) -> tuple[dict[str, Target], str]:
    """Batch statistics from the change of the client's buffers; none where the client ran in inference mode.

    Raises:
        NotApplicable: the model has no BatchNorm layer.
    """
    found = recover_statistics(context.observation)
    if not found:
        return {}, "none to recover: the buffers did not move, the client ran in inference mode"
    targets = {name: Target(s.mean, s.variance, s.mixture, unbiased=True) for name, s in found.items()}
    passes = max(len(s.mixture) for s in found.values())
    return (
        targets,
        f"recovered from the buffers of {len(found)} layers, {passes} forward pass{'es' if passes > 1 else ''}",
    )


def running_targets(context: SearchContext, *, returned: bool = True) -> tuple[dict[str, Target], str]:
    """The running statistics after the client's step, or those that the server sent.

    Args:
        context: Gives network and buffers.
        returned: Whether to take the client's where they are granted.

    Raises:
        NotApplicable: the model has no BatchNorm layer with running statistics.
    """
    observation = context.observation
    sent = observation.network.weights
    if returned and observation.buffers is not None:
        names, state, whose = list(tracked_layers(observation)), observation.buffers, "client's"
    else:
        modules = observation.network.module().named_modules()
        names = [n for n, layer in modules if isinstance(layer, _BatchNorm) and f"{n}.running_mean" in sent]
        state, whose = sent, "server's"
    if not names:
        raise NotApplicable(f"{observation.network.model} has no BatchNorm layer with running statistics.")
    targets = {n: Target(state[f"{n}.running_mean"].double(), state[f"{n}.running_var"].double()) for n in names}
    return targets, f"the {whose} running statistics of {len(names)} layers"


def proxy_targets(context: SearchContext, batches: int = 1) -> tuple[dict[str, Target], str]:
    """Statistics of public batches of the client's size, passed through the server's network in the client's mode.

    Args:
        context: Gives network, rule, number of examples, public pictures.
        batches: Batches to average; the pictures of one batch differ, batches may share some.

    Raises:
        NotGranted: no public pictures.
        NotApplicable: fewer public pictures than one batch, or no normalization layer.
    """
    observation = context.observation
    observation.need("public", "count")
    public, network = observation.public, observation.network
    if public is None:
        return {}, ""
    rule = context.rule
    size = min(rule.batch_size or observation.count or 1, observation.count or 1)
    size = -(-size // rule.accumulate)
    if len(public.pictures) < size:
        raise NotApplicable(
            f"{len(public.pictures)} public pictures are fewer than the client's batch; grant at least {size} "
            f"(--public {size})."
        )
    if batches > 1 and len(public.pictures) < 2 * size:
        raise NotApplicable(
            f"{len(public.pictures)} public pictures make no two different batches of {size}; grant "
            f"{2 * size} (--public {2 * size}), or take form=paper."
        )
    module = freeze_running_statistics(arrange(network.module(), rule, dropout=False))
    layers = norm_layers(module)
    if not layers:
        raise NotApplicable(f"{network.model} has no normalization layer, so public statistics say nothing.")
    trace = Trace(module, layers)
    source = generator(context.seed, "proxy")
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    with torch.no_grad():
        for _ in range(batches):
            chosen = torch.randperm(len(public.pictures), generator=source)[:size]
            module(network.task.normalize(public.pictures[chosen.to(public.pictures.device)]))
            inputs = trace.take().inputs
            for name, layer in layers.items():
                found[name] += [layer_statistics(layer, x) for x in inputs[name]]
    used = {name: pairs for name, pairs in found.items() if pairs}
    targets = {name: _averaged(pairs) for name, pairs in used.items()}
    return targets, f"of {batches} public batch{'es' if batches > 1 else ''} of {size}, {len(targets)} layers"


def _averaged(pairs: list[tuple[Tensor, Tensor]]) -> Target:
    means, variances = (torch.stack(values) for values in zip(*pairs, strict=True))
    spread = None
    if len(pairs) > 1:
        spread = means.std(0), variances.std(0)
    return Target(means.mean(0), variances.mean(0), spread=spread)


def _placed(target: Target, device: torch.device, dtype: torch.dtype) -> Target:
    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype)

    return Target(
        move(target.mean),
        move(target.variance),
        None if target.mixture is None else move(target.mixture),
        target.unbiased,
        target.spread and (move(target.spread[0]), move(target.spread[1])),
    )


def _normalized_shape(layer: nn.Module) -> tuple[int, ...]:
    shape = getattr(layer, "normalized_shape", ())
    return tuple(shape)
