"""Clients on their way to the last local step, as the server can simulate it with public pictures.

Of the statistics that buffers give away, the last step's pass has a share, all earlier passes the rest, which says
nothing of the last pictures and differs from client to client: by the pictures of each pass, and by the weights that it
ran at. The server has the weights at both ends, those that it sent and those that came back. What a client's buffers
would hold on average, whatever its last pictures, follows from passes over public pictures there and in between; what
they hold beyond that is about the last pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from leakmap.attacker.learned.features import Statistics
from leakmap.attacker.protocol import Kept
from leakmap.attacker.reconstruction import Tick
from leakmap.attacker.setting import Setting
from leakmap.client_step import advance, arrange, local_signal
from leakmap.local_rule import LocalRule
from leakmap.seeds import derive, generator

CLIENTS = 12
"""Simulated clients that train up to their last step."""
MEMORY = 2**29
"""Bytes that their states may take."""
FEWEST = 3
"""Of them, whatever memory they take: fewer show no spread."""
LASTS, BATCHES = 100, 4
"""Passes over public pictures in the place of the last step's, and in that of the earlier ones', at each of the
:data:`PLACES`."""
PLACES = (0.0, 0.5, 1.0)
"""Of the way from the weights that were sent to those that came back, where passes are made."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Course:
    """What the server can say of a client's passes from the weights that it returns.

    Args:
        setting: With public pictures.
        rule: The clients' local rule.
        count: Pictures of each client.
        statistics: Reads their buffers.
        seed: Chooses public pictures.
    """

    setting: Setting
    rule: LocalRule
    count: int
    statistics: Statistics
    seed: int

    @cached_property
    def module(self) -> nn.Module:
        """Arranged for the rule."""
        return arrange(self.setting.network.module(), self.rule)

    @cached_property
    def _buffers(self) -> State:
        """As they were sent: statistics of a pass are what it makes of these."""
        sent = self.setting.network.weights
        return {name: sent[name] for name, _ in self.module.named_buffers() if name in sent}

    @cached_property
    def sizes(self) -> list[int]:
        """Pictures of every step."""
        parts = [self.rule.part(step, self.count)[1] for step in range(self.rule.steps(self.count))]
        return [part.stop - part.start for part in parts]

    @property
    def looked(self) -> int:
        """Pictures that pass where a client's weights are looked at."""
        return LASTS * self.sizes[-1] + len(PLACES) * BATCHES * sum(set(self.sizes[:-1]))

    @cached_property
    def shares(self) -> Tensor:
        """``(K, columns)`` weight of every pass in what is read of the buffers."""
        return self.statistics.mixture()

    @cached_property
    def places(self) -> list[float]:
        """Of the weights before each step on the way from those that were sent to those that came back.

        They are those of one weight under a constant gradient, which momentum moves ever faster.
        """
        start, memory, before = [torch.zeros(1)], [], []
        weight = start
        for step in range(len(self.sizes)):
            before.append(float(weight[0]))
            weight, memory = advance(self.rule, step, self.count, start, weight, [torch.ones(1)], memory)
        return [place / float(weight[0]) if float(weight[0]) else 0.0 for place in before]

    def passed(self, state: State, x: Tensor, seed: int) -> Tensor:
        """``(columns,)`` statistics of one pass.

        Args:
            state: Every parameter and buffer by name.
            x: ``(B, C, H, W)`` in [0, 1].
            seed: For the masks of dropout.
        """
        network = self.setting.network
        alone = replace(LocalRule("delta"), mode=self.rule.mode, dropout=self.rule.dropout)
        # The loss is not looked at: any classes do.
        y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        known = {**state, **self._buffers}
        signal = local_signal(
            self.module,
            known,
            network.task.normalize(x),
            y,
            alone,
            network.loss(),
            dropout_seed=derive(seed, "dropout"),
            tensors=False,
        )
        return replace(self.statistics, forwards=1).unmixed(signal.buffers)

    def seen(self, returned: State) -> "Seen":
        """What a client's buffers would hold on average, whatever its last pictures.

        Args:
            returned: Every parameter by name, as the client returned it.
        """
        sent = self.setting.network.weights
        earlier = sorted(set(self.sizes[:-1]))
        passes: dict[int, Tensor] = {}
        for size in earlier:
            rows = [self._batches(sent, returned, place, size, BATCHES) for place in PLACES]
            passes[size] = torch.stack(rows)
        lasts = self._batches(sent, returned, PLACES[-1], self.sizes[-1], LASTS)
        background = torch.zeros_like(self.shares[0])
        for step, (share, size, place) in enumerate(zip(self.shares, self.sizes, self.places, strict=True)):
            if step < len(self.sizes) - 1:
                background = background + share * _between(passes[size].mean(1), place)
        return Seen(background, passes, lasts)

    def _batches(self, sent: State, returned: State, place: float, size: int, number: int) -> Tensor:
        """``(number, columns)`` of passes over as many public pictures, the same ones for every client."""
        public = self.setting.public
        assert public is not None
        way = {name: returned[name] - sent[name] for name in self.setting.network.trained()}
        state = {**sent, **{name: sent[name] + place * far for name, far in way.items()}}
        rows: list[Tensor] = []
        for row in range(number):
            source = generator(self.seed, "passes", size, row)
            held = torch.randint(len(public.labels), (size,), generator=source)
            rows.append(self.passed(state, public.pictures[held], derive(self.seed, "masks", row)))
        return torch.stack(rows)

    def expected(self, seen: "Seen", offset: Tensor) -> Tensor:
        """``(columns,)`` mean of what is read of the buffers of a client, whatever its last pictures.

        Args:
            seen: Of the client.
            offset: By how much earlier passes exceed their estimate, see :class:`Approach`.
        """
        return self.statistics.columns(seen.background + offset + self.shares[-1] * seen.lasts).mean(0)


@dataclass(frozen=True)
class Seen:
    """Passes over public pictures at the weights of one client.

    Args:
        background: ``(columns,)`` share of all earlier passes in what is read.
        earlier: Number of pictures -> ``(places, passes, columns)`` in the place of an earlier pass.
        lasts: ``(passes, columns)`` in the place of the last.
    """

    background: Tensor
    earlier: Mapping[int, Tensor]
    lasts: Tensor


def _between(rows: Tensor, place: float) -> Tensor:
    """Linear interpolation of ``(places, columns)``."""
    upper = next(i for i in range(1, len(PLACES)) if place <= PLACES[i] or i == len(PLACES) - 1)
    share = (place - PLACES[upper - 1]) / (PLACES[upper] - PLACES[upper - 1])
    return (1 - share) * rows[upper - 1] + share * rows[upper]


@dataclass(frozen=True)
class Approach:
    """Simulated clients before their last step, from which thousands of last passes are simulated.

    The last pass is all that is simulated anew for each: minutes for thousands, where every one of their trainings
    would take days.

    Args:
        course: Of the clients.
        ends: Every parameter and buffer before the last step, of each client that was trained.
        seen: Of each.
    """

    course: Course
    ends: Sequence[State]
    seen: Sequence[Seen]

    @cached_property
    def offset(self) -> Tensor:
        """``(columns,)`` by how much what the earlier passes left exceeds its estimate, on average.

        Weights do not move on a straight line, and a client's passes are over pictures that it trains on.
        """
        course = self.course
        if len(course.sizes) == 1:
            return torch.zeros_like(course.shares[0])
        before = replace(course.statistics, forwards=len(course.sizes) - 1)
        left = [(1 - course.shares[-1]) * before.unmixed(end) for end in self.ends]
        return torch.stack([own - seen.background for own, seen in zip(left, self.seen, strict=True)]).mean(0)

    @cached_property
    def _expected(self) -> list[Tensor]:
        return [self.course.expected(seen, self.offset) for seen in self.seen]

    @cached_property
    def _deviations(self) -> dict[tuple[int, int], Tensor]:
        """Size, place -> ``(passes, columns)`` by how much passes differ from their mean at the same weights."""
        found: dict[tuple[int, int], Tensor] = {}
        for size in self.seen[0].earlier:
            every = torch.stack([seen.earlier[size] for seen in self.seen])
            # A mean of few lies too close to each of them.
            own = (every - every.mean(2, keepdim=True)) * (BATCHES / (BATCHES - 1)) ** 0.5
            for place in range(len(PLACES)):
                found[size, place] = own[:, place].flatten(0, 1)
        return found

    def read(self, pictures: Tensor, seed: int) -> Tensor:
        """``(columns,)`` read of a simulated client, beyond what is expected whatever its last pictures.

        Args:
            pictures: ``(r, C, H, W)`` in [0, 1] of its last step.
            seed: For where it stands, its earlier passes and its masks.
        """
        course, source = self.course, generator(seed, "approach")
        client = int(torch.randint(len(self.ends), (1,), generator=source))
        last = course.shares[-1] * course.passed(self.ends[client], pictures, seed)
        earlier = self.seen[client].background + self.offset
        for share, size, place in zip(course.shares[:-1], course.sizes[:-1], course.places[:-1], strict=True):
            nearest = min(range(len(PLACES)), key=lambda i, place=place: abs(PLACES[i] - place))
            rows = self._deviations[size, nearest]
            earlier = earlier + share * rows[int(torch.randint(len(rows), (1,), generator=source))]
        return (course.statistics.columns(earlier + last) - self._expected[client]).float()


def approach_of(course: Course, seed: int, kept: Kept, tick: Tick) -> Approach:
    """Trains a few simulated clients with public pictures.

    Args:
        course: Of the clients.
        seed: For what they hold, and their masks and orders.
        kept: Keeps what is simulated of each.
        tick: Called with the finished fraction.
    """
    number, ends, seen = approaching(course), [], []
    for client in range(number):
        found = kept(f"approach-{client}", partial(_trained, course, derive(seed, "approach", client)))
        earlier = {int(n.partition("/")[2]): rows for n, rows in found.items() if n.startswith("earlier/")}
        ends.append({n.removeprefix("end/"): tensor for n, tensor in found.items() if n.startswith("end/")})
        seen.append(Seen(found["background"], earlier, found["lasts"]))
        tick((client + 1) / number)
    return Approach(course, ends, seen)


def _trained(course: Course, seed: int) -> dict[str, Tensor]:
    setting, rule, count = course.setting, course.rule, course.count
    public, network = setting.public, setting.network
    assert public is not None
    have, source = len(public.pictures), generator(seed, "pictures")
    # With fewer public pictures than a client holds, some are held more than once.
    drawn = torch.cat([torch.randperm(have, generator=source) for _ in range(-(-count // have))])[:count]

    def after(steps: int) -> dict[str, Tensor]:
        if not steps or rule.share == "gradient":
            return dict(network.weights)
        signal = local_signal(
            course.module,
            network.weights,
            network.task.normalize(public.pictures[drawn]),
            public.labels[drawn],
            rule,
            network.loss(),
            dropout_seed=derive(seed, "dropout"),
            order_seed=derive(seed, "order"),
            noise_seed=derive(seed, "noise"),
            steps=steps,
        )
        moved = {name: network.weights[name] + step for name, step in signal.tensors.items()}
        return {**network.weights, **moved, **signal.buffers}

    last = rule.steps(count)
    # Trained twice from the start: the optimiser's state, which the last step goes on from, is no part of an answer.
    end, seen = after(last - 1), course.seen(after(last))
    state = {f"end/{name}": tensor for name, tensor in end.items()}
    earlier = {f"earlier/{size}": rows for size, rows in seen.earlier.items()}
    return {**state, **earlier, "background": seen.background, "lasts": seen.lasts}


def approaching(course: Course) -> int:
    """How many clients are trained."""
    if len(course.sizes) == 1:
        # Before its only step every client is where the server left it.
        return 1
    weights = course.setting.network.weights
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    return max(FEWEST, min(CLIENTS, MEMORY // max(1, size)))
