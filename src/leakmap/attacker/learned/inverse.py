"""A fitted inverse: from what is read of a client to its pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import functional as F

from leakmap.attacker.learned.decoders import (
    WIDEST,
    Map,
    Ridge,
    Scaler,
    perceptron,
    ridge,
    scaler_of,
    trained_perceptron,
)
from leakmap.attacker.learned.simulation import Basis, Clients
from leakmap.attacker.protocol import Kept
from leakmap.seeds import derive

State = dict[str, Tensor]


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
        classes: Of the task.
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
            found |= {f"scaler/{view}/center": scaler.center, f"scaler/{view}/scale": scaler.scale}
        for name, weight in self.weights.items():
            found[f"weight/{name}"] = torch.tensor(weight)
            found |= {f"map/{name}/{key}": tensor for key, tensor in _state_of(self.maps[name]).items()}
        found |= {f"ncc/{name}": torch.tensor(value) for name, value in self.ncc.items()}
        return found


def facts_of(y: Tensor, classes: int) -> Tensor:
    """``(M, B)`` ascending classes -> ``(M, B x classes)``: which class stands at which place."""
    return F.one_hot(y, classes).flatten(1).float()


def fitted_inverse(
    clients: Clients, held: Clients, basis: Basis, classes: int, seed: int, kept: Kept, tick: Callable[[float], None]
) -> Inverse:
    """Fits every map and combines them by stacking: non-negative least squares on held-out clients.

    Args:
        clients: To fit to.
        held: Of pictures that the former do not hold; with their whole pictures.
        basis: Of their pictures.
        classes: Of the task.
        seed: For the perceptron.
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
        scalers[view] = scaler_of(rows)
        z = scalers[view](rows)
        held_z = scalers[view](torch.cat([held.views[view], held_facts], 1))
        del rows
        maps[f"{view}/ridge"] = _ridge_of(
            kept(f"{view}-ridge", lambda z=z, h=held_z: _state_of(ridge(z, targets, h, held_targets)))
        )
        begin, share = (place + 0.3) / len(clients.views), 0.7 / len(clients.views)
        tick(begin)
        if z.shape[1] <= WIDEST:

            def train(z: Tensor = z, view: str = view, begin: float = begin, share: float = share) -> State:
                told = lambda fraction: tick(begin + share * fraction)  # noqa: E731
                return _state_of(trained_perceptron(z, targets, derive(seed, view), told))

            maps[f"{view}/perceptron"] = _perceptron_of(kept(f"{view}-perceptron", train))
    columns = {view: torch.cat([held.views[view], held_facts], 1) for view in scalers}
    # Of a client of whom nothing is known, every column but its facts is at its mean.
    blind = {
        v: torch.cat([scalers[v].center[: -facts.shape[1]].expand_as(held.views[v]), held_facts], 1) for v in scalers
    }

    def answers(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        z = {view: scaler(rows[view]) for view, scaler in scalers.items()}
        return {name: mapped(z[name.partition("/")[0]]) for name, mapped in maps.items()}

    told = answers(columns)
    weights = _stacked(told, held_targets, targets.mean(0))
    told |= {"answer": _sum(weights, told), "nothing": _sum(weights, answers(blind))}
    ncc = {name: ncc_of(basis, found, held.pictures) for name, found in told.items()}
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
    told = basis.pictures(found.reshape(-1, len(basis.components)))
    one, other = (
        F.normalize(rows - rows.mean(1, keepdim=True), dim=1)
        for rows in (told.flatten(1), pictures.flatten(2).flatten(0, 1))
    )
    return float((one * other).sum(1).mean())


def restored_inverse(state: Mapping[str, Tensor]) -> Inverse:
    """What :meth:`Inverse.state` wrote."""
    names = [key.removeprefix("weight/") for key in state if key.startswith("weight/")]
    views = dict.fromkeys(name.partition("/")[0] for name in names)
    channels, height, width = state["basis/size"].tolist()
    own = {name: _under(state, f"map/{name}/") for name in names}
    return Inverse(
        Basis(state["basis/mean"], state["basis/components"], (channels, height, width)),
        {view: Scaler(state[f"scaler/{view}/center"], state[f"scaler/{view}/scale"]) for view in views},
        {name: (_ridge_of if name.endswith("/ridge") else _perceptron_of)(each) for name, each in own.items()},
        {name: float(state[f"weight/{name}"]) for name in names},
        {name: float(value) for name, value in _under(state, "ncc/").items()},
        int(state["count"]),
        int(state["classes"]),
    )


def _under(state: Mapping[str, Tensor], prefix: str) -> State:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def _state_of(mapped: Map) -> State:
    if isinstance(mapped, Ridge):
        return {"weight": mapped.weight, "bias": mapped.bias}
    assert isinstance(mapped, torch.nn.Module)
    return dict(mapped.state_dict())


def _ridge_of(state: Mapping[str, Tensor]) -> Ridge:
    return Ridge(state["weight"], state["bias"])


def _perceptron_of(state: Mapping[str, Tensor]) -> Map:
    last = max(state)  # "9.weight" would sort after "10.weight": the perceptron has nine layers, 0 to 8
    network = perceptron(state["0.weight"].shape[1], state[last].shape[0])
    network.load_state_dict(dict(state))
    return network.to(state[last].device).eval().requires_grad_(False)
