"""Where clients stand before their last local step, as the server can simulate it with public pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from leakmap.attacker.protocol import Kept
from leakmap.attacker.reconstruction import Tick
from leakmap.attacker.setting import Setting
from leakmap.client_step import Signal, arrange, local_signal
from leakmap.local_rule import LocalRule
from leakmap.seeds import derive, generator

CLIENTS = 12
"""Simulated clients that train up to their last step. More gave no better a reading of a trained ResNet-20."""
MEMORY = 2**29
"""Bytes that their states may take."""
FEWEST = 3
"""Of them, whatever memory they take: fewer show no spread."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Approach:
    """States of clients before their last step, from which further ones are drawn.

    The last pass is all that is simulated anew for each drawn client: minutes for thousands, where every one of their
    trainings would take days.

    Args:
        sent: Every parameter and buffer by name, as the server sent them.
        ends: The same of clients that trained with public pictures up to their last step.
        buffers: Names of the floating-point buffers.
    """

    sent: State
    ends: Sequence[State]
    buffers: frozenset[str] = frozenset()

    def state(self, seed: int) -> dict[str, Tensor]:
        """A client before its last step.

        Its weights lie between those that were sent and those of one end: so a map cannot learn the few ends by heart.
        Its buffers are normal, with mean and covariance of those of the ends: the earlier batches of a real client are
        none of those that were simulated.
        """
        source = generator(seed, "state")
        end = self.ends[int(torch.randint(len(self.ends), (1,), generator=source))]
        share = float(torch.rand(1, generator=source))
        # Sums of deviations with these weights have the covariance of the ends.
        draws = torch.randn(len(self.ends), generator=source) / len(self.ends) ** 0.5
        spread = self._spread
        found: dict[str, Tensor] = {}
        for name, sent in self.sent.items():
            if name in self.buffers:
                mean, deviations, least = spread[name]
                moved = mean + torch.einsum("e,e...->...", draws.to(mean), deviations)
                # A running variance stays one.
                found[name] = moved.clamp(min=least) if name.endswith("var") else moved
            else:
                found[name] = sent + share * (end[name] - sent) if sent.is_floating_point() else end[name]
        return found

    @cached_property
    def _spread(self) -> dict[str, tuple[Tensor, Tensor, float]]:
        """Mean, deviations ``(ends, ...)`` and least value of every buffer, once for thousands of clients."""
        found: dict[str, tuple[Tensor, Tensor, float]] = {}
        for name in self.buffers:
            every = torch.stack([one[name] for one in self.ends])
            mean = every.mean(0)
            found[name] = mean, every - mean, float(every.min())
        return found

    def last_pass(self, module: torch.nn.Module, setting: Setting, x: Tensor, rule: LocalRule, seed: int) -> Signal:
        """The buffers of such a client after a pass over its last pictures.

        Args:
            module: Arranged for the rule.
            setting: What the server knows.
            x: ``(B, C, H, W)``, normalized.
            rule: The clients' local rule.
            seed: For the client, and its dropout masks.
        """
        alone = replace(LocalRule("delta"), mode=rule.mode, dropout=rule.dropout)
        # The loss is not looked at: any classes do.
        y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        masks = derive(seed, "dropout")
        return local_signal(
            module, self.state(seed), x, y, alone, setting.network.loss(), dropout_seed=masks, tensors=False
        )


def approach_of(setting: Setting, rule: LocalRule, count: int, seed: int, kept: Kept, tick: Tick) -> Approach:
    """Trains a few simulated clients with public pictures up to their last step.

    Args:
        setting: What the server knows, public pictures included.
        rule: The clients' local rule, of several steps.
        count: Pictures of each.
        seed: For what they hold, and their masks and orders.
        kept: Keeps the state of each.
        tick: Called with the finished fraction.
    """
    public, network = setting.public, setting.network
    assert public is not None
    if rule.steps(count) == 1:
        return Approach(network.weights, (network.weights,))
    module = arrange(network.module(), rule)
    have = len(public.pictures)
    moving = frozenset(n for n, b in module.named_buffers() if n in network.weights and b.is_floating_point())

    def trained(client: int) -> dict[str, Tensor]:
        own = derive(seed, "approach", client)
        source = generator(own, "pictures")
        # With fewer public pictures than a client holds, some are held more than once.
        drawn = torch.cat([torch.randperm(have, generator=source) for _ in range(-(-count // have))])[:count]
        signal = local_signal(
            module,
            network.weights,
            network.task.normalize(public.pictures[drawn]),
            public.labels[drawn],
            rule,
            network.loss(),
            dropout_seed=derive(own, "dropout"),
            order_seed=derive(own, "order"),
            noise_seed=derive(own, "noise"),
            steps=rule.steps(count) - 1,
        )
        moved = {name: network.weights[name] + step for name, step in signal.tensors.items()}
        return {**network.weights, **moved, **signal.buffers}

    number = approaching(setting)
    ends: list[State] = []
    for client in range(number):
        ends.append(kept(f"approach-{client}", lambda client=client: trained(client)))
        tick((client + 1) / number)
    return Approach(network.weights, ends, moving)


def approaching(setting: Setting) -> int:
    """How many clients are trained up to their last step."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in setting.network.weights.values())
    return max(FEWEST, min(CLIENTS, MEMORY // max(1, size)))
