"""The value and the gradient of the matching term: where all the time goes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leakmap.attacker.matching.distances import Distance
from leakmap.errors import NotApplicable
from leakmap.local import LocalRule, arrange, local_signal
from leakmap.models.adapt import freeze_running_statistics
from leakmap.observation import Observation


class Exact:
    """Double backward with an explicit cotangent.

    The update is simulated with a graph; the cotangent ``v = dD/dg`` is computed without one from the distance's
    coefficients, and one backward pass of ``g`` along ``v`` gives ``dD/dx``. No second-order gradient with respect to
    the weights is formed, and nothing is read back to the host.

    Args:
        observation: Gives network and update.
        rule: The local rule to simulate; dropout is simulated by the expected network, as its masks are unknown.
        y: ``(N,)`` labels.
        distance: Between simulated and observed update.
    """

    def __init__(self, observation: Observation, rule: LocalRule, y: Tensor, distance: Distance):
        network = observation.network
        self._module = freeze_running_statistics(arrange(network.module(), rule, dropout=False))
        self._weights, self._loss = network.weights, network.loss()
        self._rule, self._y, self._distance = rule, y, distance
        self._names = list(observation.update.tensors)
        trained = {name for name, p in self._module.named_parameters() if p.requires_grad}
        if strange := [name for name in self._names if name not in trained]:
            raise NotApplicable(f"The update holds {strange[0]!r}, which is no trained parameter of {network.model}.")
        self._target = [tensor.detach() for tensor in observation.update.tensors.values()]
        self._target_norm = _dot(self._target, self._target).sqrt()

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The matching term at ``x`` (0-dim float64) and its gradient, of the shape of ``x``."""
        x = x.detach().requires_grad_()
        signal = local_signal(
            self._module, self._weights, x, self._y, self._rule, self._loss, differentiable=True
        ).tensors
        simulated = [signal[name] for name in self._names]
        plain = [tensor.detach() for tensor in simulated]
        value, a, b = self._distance(_dot(plain, self._target), _dot(plain, plain).sqrt(), self._target_norm)
        cotangent = _combined(a, self._target, b, plain)
        reached = [(s, v) for s, v in zip(simulated, cotangent, strict=True) if s.requires_grad]
        if not reached:
            return value, torch.zeros_like(x)
        outputs, along = zip(*reached, strict=True)
        (gradient,) = torch.autograd.grad(outputs, x, along, allow_unused=True, materialize_grads=True)
        return value, gradient


def _combined(a: Tensor, left: list[Tensor], b: Tensor, right: list[Tensor]) -> list[Tensor]:
    """``a * left + b * right``, tensor by tensor in a few fused calls; ``a`` and ``b`` stay on their device."""
    scale = a.to(left[0].dtype), b.to(left[0].dtype)
    result = torch._foreach_mul(left, scale[0])  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(result, torch._foreach_mul(right, scale[1]))  # pyright: ignore[reportPrivateImportUsage]
    return list(result)


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Inner product over all tensors; the sum over tensors is taken in float64."""
    parts = [torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(left, right, strict=True)]
    return torch.stack(parts).double().sum()
