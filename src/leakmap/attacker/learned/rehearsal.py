"""Attacks tried on simulated clients with public pictures, before any real client answers."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from leakmap.attacker.protocol import Fitted, Kept
from leakmap.attacker.reconstruction import Tick
from leakmap.attacker.setting import Setting
from leakmap.client_step import arrange, local_signal
from leakmap.errors import NotApplicable, NotGranted
from leakmap.local_rule import LocalRule
from leakmap.observation.contents import SHOWN, Public, Update
from leakmap.observation.observation import Observation
from leakmap.seeds import derive, generator

CLIENTS, FINAL = 6, 18
"""Simulated clients that every member of a suite rehearses on, and that the two best do in all, where the first leave
open which is better: a search that reads half of all pictures reads four of six or more by luck in every third case."""
ENOUGH = 2
"""Simulated clients on each of which a member must be beaten to be given up."""
READ = 0.999
"""NCC at which a picture counts as read."""
SHARE, FURTHER = 4, 16
"""At most one public picture of so many is kept for rehearsals, and for further ones: few leave an inverse worse."""


@dataclass(frozen=True)
class Rehearsals:
    """Simulated clients of a setting, apart from the public pictures that attacks are fitted to.

    Args:
        setting: With the public pictures that are left.
        pictures: ``(R, B, C, H, W)`` in [0, 1] that the clients hold.
        y: ``(R, B)`` their classes.
    """

    setting: Setting
    pictures: Tensor
    y: Tensor

    @property
    def all(self) -> range:
        """Places of all clients."""
        return range(len(self.y))

    @property
    def first(self) -> range:
        """Places of those that every member rehearses on."""
        return self.all[:CLIENTS]

    def ncc(
        self,
        attack: Fitted,
        name: str,
        seed: int,
        kept: Kept,
        tick: Tick,
        *,
        clients: range,
        exact: bool = False,
        best: Tensor | None = None,
    ) -> Tensor:
        """``(len(clients),)`` NCC that an attack reaches on each client, the mean over its pictures; 0 where it does
        not apply, NaN where it failed.

        Args:
            attack: Fitted to the setting.
            name: Under which it is kept.
            seed: For clients and attack.
            kept: Keeps the figure of every client.
            tick: Called with the finished fraction.
            clients: Places of those that it is tried on.
            exact: Whether it reads a picture or does not: once it did not, it is not tried on further clients, which
                count as that one.
            best: ``(len(clients),)`` what the best attack so far reached: one that stays below it on each of the first
                :data:`ENOUGH` clients is not tried on further ones, which count as the best less the same distance.
        """
        found: list[Tensor] = []
        for place, client in enumerate(clients):
            told = lambda fraction, p=place: tick((p + fraction) / len(clients))  # noqa: E731
            make = partial(self._tried, attack, client, derive(seed, "rehearsal", client), told)
            found.append(kept(f"rehearsed-{name}-{client}", make)["ncc"])
            if exact and found[-1] < READ:
                break
            if best is not None and len(found) == min(ENOUGH, len(best)):
                tried, usual = torch.stack(found), best.nan_to_num()
                behind = tried.nan_to_num() - usual[: len(found)]
                if not bool((behind >= 0).any()):
                    rest = usual[len(found) :] + behind.mean()
                    # What failed each time is taken to fail on the others too.
                    return torch.cat([tried, torch.full_like(rest, torch.nan) if bool(tried.isnan().all()) else rest])
        return torch.stack(found + found[-1:] * (len(clients) - len(found)))

    def _tried(self, attack: Fitted, client: int, seed: int, tick: Tick) -> dict[str, Tensor]:
        observation = self.observation(client, seed)
        try:
            found = attack(observation, derive(seed, "attack"), tick)
        except (NotApplicable, NotGranted):
            return {"ncc": torch.zeros(())}
        except Exception:
            # It counts as 0 and stays on record; a suite runs on real clients what always failed, whoever is better.
            return {"ncc": torch.tensor(torch.nan)}
        truth = self.pictures[client]
        if found.last:
            rule, count = self.setting.rule, len(truth)
            assert rule is not None
            truth = truth[rule.held_by(rule.steps(count) - 1, count, derive(seed, "order"))]
        return {"ncc": mean_ncc(found.pictures.nan_to_num().clamp(0, 1), truth).cpu()}

    def work(self) -> int:
        """Floating-point operations of one evaluation of a search: of the client's steps and their derivative."""
        setting, rule, count = self.setting, self.setting.rule, self.pictures.shape[1]
        assert rule is not None
        network, few = setting.network, min(2, count)
        single = replace(LocalRule(), mode=rule.mode, dropout=rule.dropout)
        # Noise, as constant pictures leave BatchNorm nothing to normalize by.
        noise = torch.rand((few, *network.task.shape), generator=generator(0, "work")).to(setting.device)
        with FlopCounterMode(display=False) as counter:
            module = arrange(network.module(), single)
            local_signal(module, network.weights, noise, self.y[0, :few], single, network.loss(), dropout_seed=0)
        # The derivative of a gradient takes about twice the gradient.
        return 3 * counter.get_total_flops() * count * rule.epochs // few

    def observation(self, client: int, seed: int) -> Observation:
        """What the server sees of a simulated client, with the facts that will be granted of real ones."""
        setting, y, granted = self.setting, self.y[client], self.setting.granted
        assert setting.rule is not None
        network = setting.network
        signal = local_signal(
            arrange(network.module(), setting.rule),
            network.weights,
            network.task.normalize(self.pictures[client]),
            y,
            setting.rule,
            network.loss(),
            dropout_seed=derive(seed, "dropout"),
            order_seed=derive(seed, "order"),
            noise_seed=derive(seed, "noise"),
        )
        return Observation(
            network,
            Update(setting.share, signal.tensors),
            setting.count,
            y if "labels" in granted else None,
            torch.bincount(y, minlength=network.task.labels)
            if "label_counts" in granted and network.task.counted
            else None,
            signal.buffers if "buffers" in granted else None,
            setting.rule,
            setting.public and setting.public.first(SHOWN),
        ).through_bytes()


def rehearsals_of(setting: Setting, seed: int) -> Rehearsals | None:
    """Clients to rehearse on; None where there can be none: nothing to simulate them with, or too few pictures.

    Args:
        setting: What the server knows.
        seed: Chooses their pictures.
    """
    public, rule, count = setting.public, setting.rule, setting.count
    if public is None or rule is None or count is None or setting.network.task.objects:
        return None
    groups = len(public.pictures) // count
    clients = max(min(CLIENTS, groups // SHARE), min(FINAL, groups // FURTHER))
    if not clients:
        return None
    order = torch.randperm(len(public.pictures), generator=generator(seed, "rehearsals")).to(setting.device)
    apart, left = order[: clients * count], order[clients * count :]
    return Rehearsals(
        replace(setting, public=Public(public.pictures[left], public.labels[left])),
        public.pictures[apart].unflatten(0, (clients, count)),
        public.labels[apart].unflatten(0, (clients, count)),
    )


def mean_ncc(pictures: Tensor, truth: Tensor) -> Tensor:
    """Mean normalized cross-correlation of pictures with true ones, matched one to one; 0-dim.

    Args:
        pictures: ``(N, C, H, W)``.
        truth: The same shape.
    """
    rows = [each.flatten(1).double() for each in (pictures, truth)]
    one, other = (F.normalize(each - each.mean(1, keepdim=True), dim=1) for each in rows)
    every = one @ other.T
    index = linear_sum_assignment(every.cpu().numpy(), maximize=True)
    return every[torch.as_tensor(index[0]), torch.as_tensor(index[1])].mean().float()
