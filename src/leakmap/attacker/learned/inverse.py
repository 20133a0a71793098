"""A fitted inverse: from what is read of a client to its pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional as F

from leakmap.attacker.learned.decoders import (
    WIDEST,
    Convolutional,
    Map,
    Ridge,
    Scaler,
    perceptron,
    ridge,
    scaler_of,
    trained,
)
from leakmap.attacker.learned.simulation import Basis, Clients
from leakmap.attacker.protocol import Kept
from leakmap.seeds import derive

State = dict[str, Tensor]
RATES = {"perceptron": 1e-3, "convolutional": 2e-3}
"""Networks, and their learning rates."""


@dataclass(frozen=True)
class Inverse:
    """Maps of every view, and how they are combined.

    Args:
        basis: Of the pictures.
        scalers: Of each view's columns, facts included.
        maps: ``VIEW/MAP`` -> a map.
        weights: The same names -> its share in the answer.
        ncc: The same names, ``answer`` and ``nothing``, the answer for a client of whom nothing came -> NCC on
            held-out clients.
        count: Examples of a client.
        classes: Of the task; 0: classes are no columns.
    """

    basis: Basis
    scalers: Mapping[str, Scaler]
    maps: Mapping[str, Map]
    weights: Mapping[str, float]
    ncc: Mapping[str, float]
    count: int
    classes: int

    def pictures(self, views: Mapping[str, Tensor] | None, y: Tensor) -> Tensor:
        """Predicts the pictures of one client.

        Args:
            views: ``(columns,)`` of each view; None: nothing came from the client, every column is at its mean.
            y: ``(B,)`` classes, ascending.

        Returns:
            ``(B, C, h, w)``, not clamped, at the size of the basis.
        """
        facts = facts_of(y[None], self.classes)
        inputs: dict[str, Tensor] = {}
        for view, scaler in self.scalers.items():
            own = scaler.center[: len(scaler.center) - facts.shape[1]] if views is None else views[view]
            inputs[view] = scaler(torch.cat([own[None], facts], 1))
        answer = _sum(self.weights, {name: self.maps[name](inputs[name.partition("/")[0]]) for name in self.weights})
        return self.basis.pictures(answer.view(self.count, -1))

    def state(self) -> State:
        """Everything, as tensors by name."""
        found: State = {
            "basis/mean": self.basis.mean,
            "basis/components": self.basis.components,
            "basis/size": torch.tensor(self.basis.size),
            "count": torch.tensor(self.count),
            "classes": torch.tensor(self.classes),
        }
        for view, scaler in self.scalers.items():
            found |= {f"scaler/{view}/{part}": tensor for part, tensor in vars(scaler).items()}
        for name, weight in self.weights.items():
            found[f"weight/{name}"] = torch.tensor(weight)
            found |= {f"map/{name}/{key}": tensor for key, tensor in _state_of(self.maps[name]).items()}
        found |= {f"ncc/{name}": torch.tensor(value) for name, value in self.ncc.items()}
        return found


def facts_of(y: Tensor, classes: int) -> Tensor:
    """``(M, B)`` ascending classes -> ``(M, B x classes)``: which class stands at which place; none of 0 classes."""
    return F.one_hot(y, classes).flatten(1).float() if classes else torch.zeros(len(y), 0, device=y.device)


def fitted_inverse(
    clients: Clients,
    held: Clients,
    widths: Mapping[str, Sequence[int]],
    basis: Basis,
    classes: int,
    seed: int,
    kept: Kept,
    tick: Callable[[float], None],
) -> Inverse:
    """Fits every map and combines them by stacking: non-negative least squares on held-out clients.

    Args:
        clients: To fit to.
        held: Of pictures that the former do not hold; with their whole pictures.
        widths: Of each view's columns, those that belong together.
        basis: Of their pictures.
        classes: Of the task; 0: classes are no columns.
        seed: For the networks.
        kept: Keeps every fitted map.
        tick: Called with the finished fraction.

    Source: Breiman 1996, "Stacked regressions".
    """
    count = clients.y.shape[1]
    facts, held_facts = facts_of(clients.y, classes), facts_of(held.y, classes)
    targets, held_targets = clients.targets.flatten(1), held.targets.flatten(1)
    scalers: dict[str, Scaler] = {}
    maps: dict[str, Map] = {}
    for place, (view, columns) in enumerate(clients.views.items()):
        rows = torch.cat([columns, facts], 1)
        scalers[view] = scaler_of(rows, widths[view], targets)
        z = scalers[view](rows)
        held_z = scalers[view](torch.cat([held.views[view], held_facts], 1))
        del rows
        worth = partial(contrast_of, basis, pictures=held.pictures)
        maps[f"{view}/ridge"] = Ridge(
            **kept(f"{view}-ridge", lambda z=z, h=held_z, w=worth: _state_of(ridge(z, targets, h, w)))
        )
        begin, share = (place + 0.1) / len(clients.views), 0.45 / len(clients.views)
        tick(begin)
        for kind, rate in RATES.items() if z.shape[1] <= WIDEST else ():
            make = partial(_network, kind, z.shape[1], count, basis)
            told = lambda fraction, begin=begin, share=share: tick(begin + share * fraction)  # noqa: E731
            train = partial(trained, make, rate, z, targets, derive(seed, view, kind), told)
            maps[f"{view}/{kind}"] = _restored(make(), kept(f"{view}-{kind}", lambda train=train: _state_of(train())))
            begin += share
    columns = {view: torch.cat([held.views[view], held_facts], 1) for view in scalers}
    # Of a client of whom nothing is known, every column but its facts is at its mean.
    blind = {
        v: torch.cat([scalers[v].center[: clients.views[v].shape[1]].expand_as(held.views[v]), held_facts], 1)
        for v in scalers
    }

    def answers(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        z = {view: scaler(rows[view]) for view, scaler in scalers.items()}
        return {name: mapped(z[name.partition("/")[0]]) for name, mapped in maps.items()}

    found = answers(columns)
    weights = _stacked(found, held_targets, targets.mean(0))
    found |= {"answer": _sum(weights, found), "nothing": _sum(weights, answers(blind))}
    ncc = {name: ncc_of(basis, each, held.pictures) for name, each in found.items()}
    return Inverse(basis, scalers, {n: maps[n] for n in weights}, weights, ncc, count, classes)


def _sum(weights: Mapping[str, float], told: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([weight * told[name] for name, weight in weights.items()]).sum(0)


def _stacked(told: Mapping[str, Tensor], truth: Tensor, mean: Tensor) -> dict[str, float]:
    """Shares of the maps, all around the mean picture; maps without a share are left out."""
    matrix = torch.stack([(found - mean).flatten() for found in told.values()], 1).double()
    right = (truth - mean).flatten().double()
    # The normal equations in place of the long matrix: as many rows as there are maps.
    gram, projected = matrix.T @ matrix, matrix.T @ right
    lower = torch.linalg.cholesky(gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram))
    shares, _ = nnls(
        lower.T.numpy(), torch.linalg.solve_triangular(lower, projected[:, None], upper=False)[:, 0].numpy()
    )
    return {name: float(share) for name, share in zip(told, shares, strict=True) if share > 0}


def ncc_of(basis: Basis, found: Tensor, pictures: Tensor) -> float:
    """Mean NCC of predicted pictures with the true ones.

    Args:
        basis: Of the predicted ones.
        found: ``(M, B x Q)`` coefficients.
        pictures: ``(M, B, C, h, w)``, the true ones, whole: what lies outside of the basis counts as missed.
    """
    one, other = _standardised(basis, found, pictures)
    return float((one * other).sum(1).mean())


def contrast_of(basis: Basis, found: Tensor, pictures: Tensor) -> float:
    """How far true pictures stand out from those of other clients by NCC with what is predicted, in deviations.

    Squared error alone prefers a smoother answer, nearer to the mean picture, from which fewer pictures are picked out.

    Args:
        basis: Of the predicted ones.
        found: ``(M, B x Q)`` coefficients.
        pictures: ``(M, B, C, h, w)``, the true ones.
    """
    one, other = _standardised(basis, found, pictures)
    every = one @ other.T
    return float(((every.diagonal() - every.mean(1)) / every.std(1).clamp(min=1e-6)).mean())


def _standardised(basis: Basis, found: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted and true pictures as rows of mean 0 and norm 1."""
    told = basis.pictures(found.reshape(-1, len(basis.components)))
    one, other = (
        F.normalize(rows - rows.mean(1, keepdim=True), dim=1)
        for rows in (told.flatten(1), pictures.flatten(2).flatten(0, 1))
    )
    return one, other


def restored_inverse(state: Mapping[str, Tensor]) -> Inverse:
    """What :meth:`Inverse.state` wrote."""
    names = [key.removeprefix("weight/") for key in state if key.startswith("weight/")]
    views = dict.fromkeys(name.partition("/")[0] for name in names)
    channels, height, width = state["basis/size"].tolist()
    basis = Basis(state["basis/mean"], state["basis/components"], (channels, height, width))
    scalers = {view: Scaler(**_under(state, f"scaler/{view}/")) for view in views}
    count = int(state["count"])
    maps: dict[str, Map] = {}
    for name in names:
        view, _, kind = name.partition("/")
        own, columns = _under(state, f"map/{name}/"), len(scalers[view].center)
        maps[name] = Ridge(**own) if kind == "ridge" else _restored(_network(kind, columns, count, basis), own)
    return Inverse(
        basis,
        scalers,
        maps,
        {name: float(state[f"weight/{name}"]) for name in names},
        {name: float(value) for name, value in _under(state, "ncc/").items()},
        count,
        int(state["classes"]),
    )


def _under(state: Mapping[str, Tensor], prefix: str) -> State:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def _state_of(mapped: Map) -> State:
    return dict(mapped.state_dict()) if isinstance(mapped, nn.Module) else dict(vars(mapped))


def _network(kind: str, columns: int, count: int, basis: Basis) -> nn.Module:
    if kind == "convolutional":
        return Convolutional(columns, count, basis.size, basis.components)
    return perceptron(columns, count * len(basis.components))


def _restored(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    network.load_state_dict(dict(state))
    return network.to(next(iter(state.values())).device).eval().requires_grad_(False)
