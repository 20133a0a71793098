"""The closed form for a batch in front of a ReLU."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from leakmap.attacker.attacks import attacks
from leakmap.attacker.attacks.inverting_gradients import floor_of_search
from leakmap.attacker.closed_form import qualifying_layer
from leakmap.attacker.equations import facts_used, label_notes, ordered
from leakmap.attacker.gradients import mean_gradient
from leakmap.attacker.labels import told
from leakmap.attacker.protocol import CLOSED_FORM, free_to_fit, nothing_to_fit, nothing_to_restore, trying_shows
from leakmap.attacker.reconstruction import Reconstruction, Tick
from leakmap.errors import NotApplicable
from leakmap.observation.observation import Observation
from leakmap.seeds import derive, generator

FAINT = 1e-4
"""Rows below this share of the largest hold rounding only."""
GAP = 1e3
"""Ratio of neighbouring singular values that separates the examples from the rounding."""
PASSES = (1e-2, 1e-4, 1e-6)
"""Below which share of the root mean square a value is a zero, while a direction is refined; rounding is the floor."""
SAME = 1e-3
"""Sine of the angle below which a direction lies in the span of others."""
OPEN = 0.995
"""Share of the gradients that must pass an open ReLU: all do at the truth, a wrong direction costs several percent."""
PROBE = 128
"""Rows on which a drawn direction is tried before all others."""
CHUNK = 2**21
"""Rows times draws that are looked at together."""


@attacks.add("spear")
@dataclass(frozen=True, kw_only=True)
class Spear:
    """Reads a whole batch off the gradient of a first linear layer that feeds a ReLU, exactly or not at all.

    The gradient ``dW = dZ X^T`` has the rank ``b`` of the batch, and the ReLU makes every column of ``dZ`` sparse. With
    the thin decomposition ``dW = U S V``, a direction orthogonal to ``b - 1`` rows of ``U`` is a column of ``Q`` in
    ``dZ = U Q`` if the ReLU closed these rows for one example; then ``U`` times it has many more zeros than these. The
    sparsest ``b`` independent directions, scaled by ``dZ 1 = db``, give ``X^T = Q^-1 S V``, and no gradient in ``dZ``
    may pass where ``W X + b`` closes the ReLU. That takes about ``2 ** (b - 1)`` draws of rows.

    Examples without a gradient are lost and equal pictures are one; what is found is then repeated up to the count.

    Args:
        labels: ``auto``, or the name of a label rule.
        tau: Fraction of zeros, beyond the rows that were drawn, from which a direction is a candidate.
        draws: Sets of rows that are tried at most; for few examples ``2 ** (b + 12)``, where more would not help.

    Applies: where a linear layer with a bias sees the pictures themselves and feeds a ReLU; one local step.

    Source: Dimitrov et al. 2024, "SPEAR", arXiv:2403.03945.
    """

    labels: str = "auto"
    tau: Annotated[float, Field(gt=0, lt=1)] = 0.05
    draws: Annotated[int, Field(ge=1)] = 2**24

    needs = frozenset({"count"})
    leaky_model = "mlp"
    cost = CLOSED_FORM
    blind = floor_of_search
    why_not = trying_shows
    fits = ""
    fit_cost = free_to_fit
    fit = nothing_to_fit
    restored = nothing_to_restore

    def __call__(self, observation: Observation, seed: int, tick: Tick) -> Reconstruction:
        """Attacks.

        Raises:
            NotApplicable: no layer qualifies, the gradient has no clear rank, or no solution agrees with the ReLU.
        """
        layer = qualifying_layer(observation, "spear")
        labels = told(observation, self.labels, derive(seed, "labels"))
        count, network = len(labels.y), observation.network
        gradient = mean_gradient(observation, (f"{layer}.weight", f"{layer}.bias"))
        factors = decompose(gradient[f"{layer}.weight"], gradient[f"{layer}.bias"], count)
        weight, bias = (network.weights[f"{layer}.{name}"].double() for name in ("weight", "bias"))
        drawn, inputs, dz = self._solution(factors, weight, bias, derive(seed, "rows"), tick)
        again = torch.arange(count, device=inputs.device) % factors.rank
        inputs = inputs.to(network.dtype).view(-1, *network.task.shape)
        tick(1.0)
        return Reconstruction(
            network.task.denormalize(inputs)[again],
            ordered(labels.y, network, f"{layer}.bias", inputs[again], factors.spread(dz)[:, again]),
            math.nan,
            notes={
                "layer": layer,
                "examples found": factors.rank,
                "draws": drawn,
                **label_notes(observation, labels),
            },
            used=facts_used(observation, labels),
        )

    def _solution(
        self, factors: "Factors", weight: Tensor, bias: Tensor, seed: int, tick: Tick
    ) -> tuple[int, Tensor, Tensor]:
        """Draws that it took, inputs, and gradient of the outputs."""
        # A ReLU is closed about half the time, so one set in 2 ** (rank - 1) hits an example: at most 2 ** 13 hits.
        best, limit = 0.0, min(self.draws, 2 ** (factors.rank + 12))
        for drawn, directions in self._bases(factors, limit, seed, tick):
            inputs, dz = factors.disaggregate(directions)
            share = float((inputs @ weight.T + bias > 0)[factors.spread(dz).T != 0].double().mean())
            if share >= OPEN:
                return drawn, inputs, dz
            best = max(best, share)
        raise NotApplicable(
            f"SPEAR drew {limit} sets of rows to separate {factors.rank} examples, and in its best solution "
            f"{best:.1%} of the gradients pass an open ReLU, not all; allow more draws, or attack a smaller batch."
        )

    def _bases(self, factors: "Factors", limit: int, seed: int, tick: Tick) -> Iterator[tuple[int, Tensor]]:
        """After every chunk of draws that leaves enough directions: the draws so far and the sparsest basis."""
        left = factors.left
        rows, rank = left.shape
        if rank == 1:
            yield 0, left.new_ones(1, 1)
            return
        source = generator(seed, "rows")
        pool = left.new_empty(0, rank)
        size = max(1, CHUNK // rows)
        for first in range(0, limit, size):
            drawn = orthogonal_to_rows(left, min(size, limit - first), source)
            # A few rows tell most directions that are not sparse; only what is left is tried on all.
            for some in (left[: max(PROBE, 2 * rank)], left):
                enough = len(some) * ((rank - 1) / rows + self.tau)
                drawn = drawn[zeros(some @ drawn.T, PASSES[0]).sum(dim=0) >= enough]
            fresh = [factors.refine(direction) for direction in distinct(drawn[: 8 * rank])]
            pool = distinct(torch.stack([*pool, *fresh])) if fresh else pool
            sparsity = zeros(left @ pool.T, factors.rounding).sum(dim=0)
            pool = pool[sparsity.argsort(descending=True, stable=True)][: 8 * rank]
            tick(min(1.0, (first + size) / limit))
            if len(basis := independent(pool)) == rank:
                yield min(first + size, limit), basis


@dataclass(frozen=True)
class Factors:
    """The gradient of a weight as ``left diag(values) right``, over the rows that hold any.

    Args:
        left: ``(rows, rank)``, orthonormal columns.
        values: ``(rank,)``, descending.
        right: ``(rank, features)``, orthonormal rows.
        bias: ``(rows,)`` gradient of the bias.
        alive: ``(outputs,)``: which outputs the rows are.
        rounding: Fraction of the root mean square of ``left`` times a direction below which a value is a zero.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    bias: Tensor
    alive: Tensor
    rounding: float

    @property
    def rank(self) -> int:
        """Examples that can be told apart."""
        return len(self.values)

    def refine(self, direction: Tensor) -> Tensor:
        """The direction that is orthogonal to all rows, not only those drawn, to which this one nearly is."""
        for share in PASSES:
            # The rows of a draw give the direction with their rounding; all rows that it closes average that out.
            closed = zeros((self.left @ direction)[:, None], max(share, self.rounding))[:, 0]
            if int(closed.sum()) < self.rank:
                break
            direction = torch.linalg.svd(self.left[closed])[2][-1]
        return direction

    def disaggregate(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs ``(rank, features)`` and gradient of the outputs ``(rows, rank)``, given one direction an example."""
        # Sparsity leaves the scale of every example open; the gradient of the bias, a sum over examples, fixes it.
        dz = self.left @ directions.T
        scale = torch.linalg.lstsq(dz, self.bias[:, None]).solution[:, 0]
        inputs = torch.linalg.solve(directions.T, self.values[:, None] * self.right) / scale[:, None]
        return inputs, dz * scale

    def spread(self, dz: Tensor) -> Tensor:
        """``(outputs, rank)``: a gradient ``(rows, rank)`` in its place among all outputs, rounding set to zero."""
        full = dz.new_zeros(len(self.alive), self.rank)
        # A zero blurred by rounding would count as a gradient that passes a closed ReLU.
        full[self.alive] = dz.masked_fill(zeros(dz, self.rounding), 0.0)
        return full


def decompose(weight: Tensor, bias: Tensor, count: int) -> Factors:
    """The thin decomposition of a weight's gradient, of the rank that its largest gap shows.

    Args:
        weight: ``(outputs, features)`` gradient, float64.
        bias: ``(outputs,)`` gradient, float64.
        count: Examples of the client.

    Raises:
        NotApplicable: the gradient is zero, has no clear rank, or a higher one than there are examples.
    """
    norms = weight.norm(dim=1)
    alive = norms > FAINT * norms.max()
    if not alive.any():
        raise NotApplicable("The gradient of the first layer is zero, so its inputs cannot be read off.")
    # Beyond the count, to see the gap behind it, and a few more, which make subspace iteration exact.
    left, values, right = leading(weight[alive], count + 8)
    # Exact zeros behind the gap are lifted to the rounding of float64, so that the ratio stays finite.
    gaps = (values[:-1] / values[1:].clamp(min=1e-15 * float(values[0])))[:count]
    if not len(gaps) or float(gaps.max()) < GAP:
        raise NotApplicable(
            f"The gradient of the first layer should have the rank of the client's {count} examples, but no gap "
            f"follows its {len(gaps)} largest singular values; noise, several local steps or too few outputs do that."
        )
    rank = int(gaps.argmax()) + 1
    # The gap says how far rounding lies below the signal; the factor is for entries worse than the typical one.
    rounding = 30 / float(gaps.max())
    return Factors(left[:, :rank], values[:rank], right[:rank], bias[alive], alive, rounding)


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values and their vectors, by subspace iteration: behind a gap it is as exact as a full one.

    Source: Halko, Martinsson and Tropp 2011, arXiv:0909.4061.
    """
    rank = min(rank, *matrix.shape)
    start = torch.randn(matrix.shape[1], rank, generator=generator(0, "sketch"), dtype=matrix.dtype)
    span = torch.linalg.qr(matrix @ start.to(matrix.device)).Q
    # Each pass multiplies by the matrix twice more: ratios of singular values are then raised to the fifth power.
    for _ in range(2):
        span = torch.linalg.qr(matrix @ (matrix.T @ span)).Q
    left, values, right = torch.linalg.svd(span.T @ matrix, full_matrices=False)
    return span @ left, values, right


def orthogonal_to_rows(left: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Unit vectors ``(about count, rank)``, each orthogonal to ``rank - 1`` random rows.

    A column of the inverse of ``rank`` rows is orthogonal to all of them but one, so one inverse gives ``rank`` of
    them. Permutations of the rows, cut up, give the sets.
    """
    rows, rank = left.shape
    each = rows // rank
    shuffled = torch.rand(-(-count // (each * rank)), rows, generator=source).argsort(dim=1)[:, : each * rank]
    # Unchecked: a singular set gives values that are not finite, hence no zeros, and is dropped with the dense ones.
    inverse = torch.linalg.inv_ex(left[shuffled.to(left.device)].view(-1, rank, rank)).inverse
    found = inverse.transpose(1, 2).reshape(-1, rank)
    return found / found.norm(dim=1, keepdim=True)


def zeros(values: Tensor, share: float) -> Tensor:
    """Which entries lie below a share of the root mean square of their column."""
    return values.abs() < share * values.square().mean(dim=0).sqrt()


def distinct(directions: Tensor) -> Tensor:
    """Every direction that no earlier one equals up to sign."""
    # One minus a cosine is quadratic in the angle, hence the square.
    same = (directions @ directions.T).abs() > 1 - SAME**2
    return directions[~same.tril(-1).any(dim=1)]


def independent(directions: Tensor) -> Tensor:
    """Greedily, from the first on, those outside of the span of the ones already chosen."""
    chosen: list[Tensor] = []
    span = directions.new_empty(0, directions.shape[1])
    for direction in directions:
        rest = direction - (direction @ span.T) @ span
        if float(rest.norm()) > SAME:
            chosen.append(direction)
            span = torch.cat([span, (rest / rest.norm())[None]])
    return torch.stack(chosen) if chosen else directions[:0]
