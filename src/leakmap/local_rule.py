"""What a client does with its pictures before it shares something."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from leakmap.defences import NONE, Left, defence_of
from leakmap.errors import BadSetting
from leakmap.registry.declared import Declared, check, entries
from leakmap.schedule import CONSTANT, schedule_of

if TYPE_CHECKING:
    from torch import Tensor

Share = Literal["gradient", "delta"]
Mode = Literal["train", "eval"]
COUNT_LIMIT = 2**20
"""Most pictures of a client that a file may claim."""


@dataclass(frozen=True)
class LocalRule:
    """What a client does with its pictures before it shares something.

    Args:
        share: ``gradient``: of the loss over all its pictures; ``delta``: weights after local training minus before.
        mode: ``train`` uses batch statistics and dropout, ``eval`` running statistics and none.
        epochs: Passes over the pictures (``delta`` only).
        batch_size: Pictures of one local step, in their order, the last one of an epoch possibly partial; None: all.
        lr: Learning rate (``delta`` only), of the first step where a schedule changes it.
        schedule: Specification of how the learning rate changes, see :mod:`leakmap.schedule`; it begins anew in every
            round.
        momentum: Of SGD, in [0, 1), with a fresh velocity in every round.
        nesterov: Whether the momentum is Nesterov's, as torch's SGD computes it.
        weight_decay: L2 for SGD and Adam, decoupled for AdamW.
        proximal: FedProx's mu: the loss of every step has ``mu / 2`` times the squared distance to the weights that
            were sent added (Li et al. 2020, arXiv:1812.06127, equation 2); 0 for none.
        clip_norm: Largest global norm of the gradient of a step, as ``torch.nn.utils.clip_grad_norm_`` scales it, the
            proximal term included and weight decay not; None: unclipped.
        optimizer: ``sgd``, ``adam`` or ``adamw``, with torch's defaults and fresh state.
        dropout: Rate that replaces the rate of every dropout layer of the model; None leaves them.
        accumulate: Micro-batches that the pictures of a step are split into (gradient accumulation): gradients are
            averaged over the pictures, BatchNorm sees every micro-batch alone.
        shuffle: Whether each epoch goes through the pictures in an order of its own (``delta`` only).
        drop_last: Whether the last batch of an epoch is left out where it is partial, as a data loader's option of this
            name does; a client with fewer pictures than one batch still takes them.
        defence: Specification of what it does to its update, see :mod:`leakmap.defences`.
    """

    share: Annotated[Share, Declared("What it sends.")] = "gradient"
    mode: Annotated[Mode, Declared("Of the client's network.", note="train, or eval for frozen BatchNorm")] = "train"
    epochs: Annotated[
        int, Declared("Local epochs.", least=1, limit=10**4, sent=("epochs", "local_epochs"), local=True)
    ] = 1
    batch_size: Annotated[
        int | None,
        Declared(
            "Pictures of one local step, where --local-steps splits them otherwise.",
            option="local_batch_size",
            least=1,
            expected="at least 1, or None for all",
            limit=COUNT_LIMIT,
            note="of one local step; leave it out for all pictures at once",
            sent=("batch_size",),
            local=True,
        ),
    ] = None
    lr: Annotated[float, Declared("Local learning rate.", above=0, sent=("lr", "learning_rate"))] = 0.01
    schedule: Annotated[
        str,
        Declared(
            "step, exponential or cosine, with settings.",
            limit=512,
            later=True,
            note="constant, step,size=N, exponential,gamma=G or cosine",
            local=True,
        ),
    ] = CONSTANT
    momentum: Annotated[float, Declared("Of SGD.", least=0, below=1, sent=("momentum",), local=True)] = 0.0
    nesterov: Annotated[bool, Declared("Nesterov's momentum.", later=True, sent=("nesterov",), local=True)] = False
    weight_decay: Annotated[float, Declared("Local weight decay.", least=0, sent=("weight_decay",), local=True)] = 0.0
    proximal: Annotated[float, Declared("FedProx's mu.", least=0, later=True, sent=("proximal_mu",), local=True)] = 0.0
    clip_norm: Annotated[
        float | None,
        Declared(
            "Largest norm of a step's gradient.",
            above=0,
            expected="positive, or None for no clipping",
            later=True,
            note="largest norm of the gradient of a step; leave it out where none is clipped",
            local=True,
        ),
    ] = None
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], Declared("Local optimiser.", local=True)] = "sgd"
    dropout: Annotated[
        float | None,
        Declared("Replaces every rate.", least=0, below=1, note="rate that replaces that of every dropout layer"),
    ] = None
    accumulate: Annotated[int, Declared("Micro-batches of a step.", least=1, limit=10**4, later=True)] = 1
    shuffle: Annotated[bool, Declared("A new order each epoch.", later=True, local=True)] = False
    drop_last: Annotated[bool, Declared("Leaves a partial last batch out.", later=True, local=True)] = False
    defence: Annotated[str, Declared("NAME[,key=value…].", limit=512, later=True, note="NAME[,key=value...]")] = NONE

    def __post_init__(self) -> None:
        check(self, "A local rule's")
        if self.share == "gradient" and (self.epochs != 1 or self.batch_size is not None):
            raise BadSetting("A client that shares a gradient takes no local steps; use share='delta' for several.")
        if self.share == "gradient" and self.shuffle:
            raise BadSetting("A gradient over all pictures has no order; use share='delta' to shuffle.")
        if self.share == "gradient" and (self.optimizer != "sgd" or self.momentum or self.weight_decay):
            raise BadSetting("A shared gradient has not been through an optimiser; use share='delta' for one.")
        if self.share == "gradient" and (self.schedule != CONSTANT or self.proximal):
            what = "a proximal term, which is 0 at the weights that were sent" if self.proximal else "a schedule"
            raise BadSetting(f"A shared gradient takes no step that {what} could change; use share='delta'.")
        if self.share == "gradient" and self.clip_norm is not None:
            raise BadSetting(
                "clip_norm clips the gradient of a local step; a client that clips the gradient that it shares has "
                f"the defence clip_noise,clip={self.clip_norm:g},noise=0."
            )
        if self.momentum and self.optimizer != "sgd":
            raise BadSetting(f"momentum belongs to sgd; {self.optimizer} has moments of its own.")
        if self.nesterov and not self.momentum:
            raise BadSetting("Nesterov's momentum needs a momentum above 0; give one, or leave nesterov out.")
        if self.defence != NONE:  # which is there without a search among the defences
            defence_of(self.defence)
        schedule_of(self.schedule)

    @property
    def left(self) -> Left:
        """What is left of its update, see :class:`leakmap.defences.Defence`: where steps are clipped, no sizes."""
        left = defence_of(self.defence).left
        return "ratios" if left == "values" and self.clip_norm is not None else left

    def rate(self, step: int, count: int) -> float:
        """The learning rate of a local step, counted from 0, of a client with ``count`` pictures."""
        schedule = schedule_of(self.schedule)
        if schedule.per == "epoch":
            return schedule.rate(self.lr, self.part(step, count)[0], self.epochs)
        return schedule.rate(self.lr, step, self.steps(count))

    def without_steps(self) -> "LocalRule":
        """The rule of a client that shares one gradient and is else the same."""
        usual = {entry.name: entry.default for entry in entries(LocalRule) if entry.declared.local}
        return replace(self, **usual, share="gradient")

    def steps(self, count: int) -> int:
        """Local steps that a client with ``count`` pictures takes."""
        return self.epochs * len(self._batches(count))

    def forwards(self, count: int) -> int:
        """Forward passes in training that a client with ``count`` pictures makes: BatchNorm counts each of them."""
        sizes = (part.stop - part.start for part in self._batches(count))
        return self.epochs * sum(len(self.micro_batches(size)) for size in sizes)

    def held_by(self, step: int, count: int, order_seed: int | None = None) -> "Tensor":
        """Which of a client's pictures a local step holds.

        Args:
            step: Its number, from 0 to ``steps(count) - 1``.
            count: The client's pictures.
            order_seed: Seeds the orders of a rule that shuffles; None keeps the pictures' own.

        Returns:
            ``(B,)`` indices.
        """
        import torch

        from leakmap.seeds import generator

        epoch, part = self.part(step, count)
        if not self.shuffle or order_seed is None:
            return torch.arange(count)[part]
        return torch.randperm(count, generator=generator(order_seed, "epoch", epoch))[part]

    def part(self, step: int, count: int) -> tuple[int, slice]:
        """The epoch of a local step, and its place in that epoch's order of a client's ``count`` pictures."""
        batches = self._batches(count)
        epoch, place = divmod(step, len(batches))
        return epoch, batches[place]

    def _batches(self, count: int) -> list[slice]:
        size = self.batch_size or count
        batches = list(_slices(count, size))
        return batches[:-1] if self.drop_last and count % size and len(batches) > 1 else batches

    def micro_batches(self, size: int) -> list[slice]:
        """Parts that a step of ``size`` pictures is split into, one forward pass each."""
        return list(_slices(size, -(-size // self.accumulate)))


def _slices(count: int, size: int) -> Iterator[slice]:
    """``0..count`` in parts of ``size``, the last one possibly smaller."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
