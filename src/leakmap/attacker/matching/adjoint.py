"""A simulated client whose update can be pulled back to the guess, local step by local step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leakmap.attacker.matching.context import Guess, Seen, Trace
from leakmap.attacker.matching.derivatives import Derivative, Exact, Linearised
from leakmap.attacker.matching.masks import Masks
from leakmap.client_step import Training
from leakmap.local_rule import LocalRule
from leakmap.seeds import random_state, set_random_state


class Simulation:
    """The client's local training at one guess.

    Of every local step its weights and the state of the optimiser are kept, not its activations: a step is run again
    when its turn comes to be pulled back. So memory grows with the number of steps by weights only.

    Args:
        training: The client's local steps.
        rule: The local rule.
        guess: What the client is taken to hold.
        derivative: How the gradient of a step is differentiated; None: nothing will be pulled back.
        masks: Where dropout takes its masks from.
        trace: Watches the forward passes.

    Attributes:
        shared: What the client would share, one tensor for each trained parameter, without a graph.
        spare: Whether ``shared`` may be overwritten before :meth:`pull`.
        seen: What the trace saw in all steps, as leaves from which penalties are computed; None without a trace.
    """

    def __init__(
        self,
        training: Training,
        rule: LocalRule,
        guess: Guess,
        derivative: Derivative | None,
        *,
        masks: Masks | None = None,
        trace: Trace | None = None,
    ):
        self._derivative = derivative
        self._held = [tensor.detach().requires_grad_(derivative is not None) for tensor in guess.movable()]
        y = self._held[1] if guess.y.is_floating_point() else guess.y
        if masks is not None and guess.masks:
            masks.give(self._held[-len(guess.masks) :])
        self._client = _Client(training, rule, self._held[0], y, masks, trace)
        self._steps: list[_Step] = []
        self._leaves: list[Seen] = []
        self._last: Linearised | None = None
        self.shared = self._run()
        # Exact gradients are nodes of the graph that is pulled back later: writing over them would change it.
        self.spare = rule.share == "delta" or not isinstance(derivative, Exact)
        self.seen = Seen.joined(self._leaves) if self._leaves else None

    def _run(self) -> list[Tensor]:
        client, training = self._client, self._client.training
        parameters, memory = training.start, []
        gradients: list[Tensor] = []
        count = client.rule.steps(len(client.y))
        for number in range(count):
            step = _Step(client, number, parameters, memory)
            self._steps.append(step)
            # The last step is pulled back first, so it is linearised as it runs; the others run again in their turn.
            if self._derivative is not None and number == count - 1:
                self._last = self._linearise(step, self._derivative)
                gradients = self._last.gradient
            else:
                # Materialized: a client shares zeros for what its loss does not reach.
                gradients = list(torch.autograd.grad(step(parameters), parameters, materialize_grads=True))
                step.seen = client.take()
            if step.seen is not None:
                self._leaves.append(step.seen.leaves())
            if client.rule.share == "delta":
                with torch.no_grad():
                    parameters, memory = training.advance(number, len(client.y), parameters, gradients, memory)
                # New leaves: a graph across steps would hold the activations of all of them.
                parameters = [p.requires_grad_() for p in parameters]
        # Steps that are run again rewind the random stream; the simulation leaves it as one plain run would.
        self._after = client.begin()
        if client.rule.share == "gradient":
            return gradients
        return [(end - start).detach() for end, start in zip(parameters, training.start, strict=True)]

    def _linearise(self, step: "_Step", derivative: Derivative) -> Linearised:
        scale, watched = self._client.training.scale, self._client.trace is not None
        linearised = derivative(step, step.parameters, self._held, scale, watched=watched)
        step.seen = self._client.take()
        return linearised

    def pull(self, along: Sequence[Tensor | None], penalty: Tensor | None = None) -> list[Tensor]:
        """The gradient of ``<shared, along> + penalty`` with respect to the movable tensors of the guess.

        Args:
            along: One direction for each trained parameter, None where it is zero; may be overwritten.
            penalty: Computed from :attr:`seen`.
        """
        if self._derivative is None or self._last is None:
            raise RuntimeError("this client was simulated without a derivative")
        directions = self._directions(penalty)
        total = [torch.zeros_like(tensor) for tensor in self._held]
        of_memory: list[Tensor] = []
        linearised: Linearised | None = self._last
        self._last = None
        for step in reversed(self._steps):
            linearised = linearised or self._linearise(step, self._derivative)
            of_parameters: Sequence[Tensor | None] = []
            if self._client.rule.share == "delta":
                of_parameters, along, of_memory = self._through_advance(step, linearised.gradient, along, of_memory)
            beside = []
            if step.seen is not None and directions:
                beside = list(zip(step.seen.tensors(), directions[step.number], strict=True))
            # The weights of the first step are the server's: nothing of the guess lies behind them.
            deeper = step.parameters if step.number else []
            found = linearised.pull(along, [*self._held, *deeper], beside)
            # Frees the activations of this step before those of the one before are made.
            linearised = step.seen = None
            for sum_, gradient in zip(total, found[: len(total)], strict=True):
                sum_ += gradient
            if deeper:
                pairs = zip(found[len(total) :], of_parameters, strict=True)
                along = [gradient if more is None else gradient.add_(more) for gradient, more in pairs]
        self._client.restore(self._after)
        return total

    def _directions(self, penalty: Tensor | None) -> list[list[Tensor]]:
        """For each step, the gradient of the penalty with respect to what was seen of it."""
        if penalty is None or not penalty.requires_grad:
            return []
        leaves = [tensor for seen in self._leaves for tensor in seen.tensors()]
        found = iter(torch.autograd.grad(penalty, leaves, allow_unused=True, materialize_grads=True))
        return [[next(found) for _ in seen.tensors()] for seen in self._leaves]

    def _through_advance(
        self, step: "_Step", gradients: list[Tensor], along: Sequence[Tensor | None], of_memory: list[Tensor]
    ) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor]]:
        """Pulls back through one optimiser step; returns the directions of weights, gradients and earlier state."""
        groups = (step.parameters, gradients, step.memory)
        # An optimiser step is elementwise but for a clipping, and its graph small: autograd takes it as it stands.
        leaves = [[tensor.detach().requires_grad_() for tensor in group] for group in groups]
        parameters, memory = self._client.training.advance(step.number, len(self._client.y), *leaves)
        pairs = [(p, v) for p, v in zip(parameters, along, strict=True) if v is not None]
        pairs += list(zip(memory, of_memory, strict=True)) if of_memory else []
        if not pairs:
            return list(along), list(along), []
        outputs, directions = zip(*pairs, strict=True)
        flat = [leaf for group in leaves for leaf in group]
        found = torch.autograd.grad(outputs, flat, directions, allow_unused=True, materialize_grads=True)
        count = len(gradients)
        return list(found[:count]), list(found[count : 2 * count]), list(found[2 * count :])


_Begin = tuple[Tensor | None, int]
"""Where random draws and masks stand; inference mode draws nothing."""


@dataclass(frozen=True)
class _Client:
    """What all local steps share."""

    training: Training
    rule: LocalRule
    x: Tensor
    y: Tensor
    masks: Masks | None
    trace: Trace | None

    def begin(self) -> _Begin:
        state = random_state(self.x.device) if self.rule.mode == "train" else None
        return state, 0 if self.masks is None else self.masks.place

    def restore(self, begin: _Begin) -> None:
        state, place = begin
        if state is not None:
            set_random_state(state, self.x.device)
        if self.masks is not None:
            self.masks.place = place

    def take(self) -> Seen | None:
        return None if self.trace is None else self.trace.take()


class _Step:
    """The loss of one local step, the same whenever it is called.

    Draws and masks begin where they first began, and the factors of DP-SGD are constants of the guess.
    """

    def __init__(self, client: _Client, number: int, parameters: list[Tensor], memory: list[Tensor]):
        self.number, self.parameters, self.memory = number, parameters, memory
        self.seen: Seen | None = None
        self._client = client
        self._factors = client.training.factors(parameters, *self._batch())
        self._begin: _Begin | None = None

    def __call__(self, parameters: Sequence[Tensor]) -> Tensor:
        client = self._client
        if self._begin is None:
            self._begin = client.begin()
        else:
            client.restore(self._begin)
        client.take()
        return client.training.objective(parameters, *self._batch(), self._factors)

    def _batch(self) -> tuple[Tensor, Tensor]:
        return self._client.training.batch(self.number, self._client.x, self._client.y)
