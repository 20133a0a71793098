"""From what a platform calls its tensors, if it calls them anything, to the names of the architecture."""

import math
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from leakmap.errors import ModelError

SHOWN = 3
"""Names or shapes that a message shows of each side."""
_WRAPPERS = {"module", "_module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "default"}
"""What DataParallel, Opacus, torch.compile, FSDP and peft put in between the parts of a name."""
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_NUMBER = re.compile(r"(?:arr_)?(\d{1,9})", re.ASCII)
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Names:
    """What an architecture calls its tensors.

    Args:
        shapes: Of everything in the state dict, in its order.
        parameters: In the order of the architecture; a tied one under its first name alone.
        trained: Those of them that a client trains.
        twins: Further name of a tied parameter -> its first name.
        norms: Trained parameters of normalization layers, which clients of FedBN keep to themselves.
    """

    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    trained: tuple[str, ...]
    twins: Mapping[str, str]
    norms: tuple[str, ...]

    def kept(self, sent: Collection[str]) -> list[str]:
        """The trained parameters that a client keeps, as in FedBN: what is missing, if normalization layers are all."""
        missing = [name for name in self.trained if name not in sent]
        return missing if len(missing) < len(self.trained) and set(missing) <= set(self.norms) else []

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same with tied parameters under all their names, as a state dict has them."""
        return {**tensors, **{twin: tensors[first] for twin, first in self.twins.items() if first in tensors}}

    def orders(self) -> list[list[str]]:
        """Orders in which clients list their tensors, the usual one first."""
        state, tied = list(self.shapes), [name for name in self.shapes if name not in self.twins]
        kept = {name.rpartition(".")[0] for name in self.norms}
        return [
            state,
            [name for name in state if not name.endswith(_COUNTER)],
            list(self.parameters),
            list(self.trained),
            tied,
            [name for name in tied if not name.endswith(_COUNTER)],
            [name for name in tied if name.rpartition(".")[0] not in kept],
        ]


def names_of(module: nn.Module) -> Names:
    """The names of an architecture, which may be on the meta device."""
    named = dict(module.named_parameters())
    norms = {id(p) for layer in module.modules() if isinstance(layer, _NORMS) for p in layer.parameters(recurse=False)}
    first = {id(parameter): name for name, parameter in named.items()}
    return Names(
        {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()},
        tuple(named),
        tuple(name for name, parameter in named.items() if parameter.requires_grad),
        {n: first[id(p)] for n, p in module.named_parameters(remove_duplicate=False) if first[id(p)] != n},
        tuple(name for name, parameter in named.items() if parameter.requires_grad and id(parameter) in norms),
    )


def matched(tensors: Mapping[str, Tensor], own: Names, order: Sequence[str] | None, what: str) -> dict[str, Tensor]:
    """The same tensors under the names of the architecture.

    Names that are no numbers are brought to those of the architecture if a prefix does that, else they stay. Tensors
    that are numbered, as those of a list, are named by ``order`` or by the first of :meth:`Names.orders` that fits.

    Args:
        tensors: As they came.
        own: Of the architecture.
        order: Names of a list, or of tensors whose names are of nobody's.
        what: What they are, to begin a message.

    Raises:
        ModelError: a list has neither the number and shapes of any order, nor is it one flat vector.
    """
    if not tensors or tensors.keys() <= own.shapes.keys():
        found = dict(tensors)
    elif all(map(_NUMBER.fullmatch, tensors)):
        found = _listed(_sorted(tensors, what), own, order, what)
    elif renamed := _renamed(tensors, own.shapes):
        found = {renamed[name]: tensor for name, tensor in tensors.items()}
    elif order is not None and len(order) == len(tensors):
        found = dict(zip(order, tensors.values(), strict=True))
    else:
        found = dict(tensors)
    for twin, first in own.twins.items():
        if twin in found:
            found.setdefault(first, found[twin])
    return {name: tensor for name, tensor in found.items() if name not in own.twins}


def shown(names: Iterable[object]) -> str:
    """The first few, for a message."""
    listed = list(names)
    told = ", ".join(reprlib.repr(name) for name in listed[:SHOWN])
    return f"{told}{', …' if len(listed) > SHOWN else ''}" if listed else "nothing"


def _renamed(tensors: Mapping[str, Tensor], own: Mapping[str, tuple[int, ...]]) -> dict[str, str] | None:
    """Name that came -> name in the architecture, where one prefix, removed or added, makes all fit."""
    came, plain = {_plain(name): name for name in tensors}, {_plain(name): name for name in own}
    if len(came) < len(tensors) or len(plain) < len(own):
        came, plain = {name: name for name in tensors}, {name: name for name in own}
    first = next(iter(came))
    candidates = [{name: name for name in came}]
    candidates += [{name: name.removeprefix(lead) for name in came} for lead in _leads(first)]
    added = {name.removesuffix(first) for name in plain if name.endswith(f".{first}")}
    candidates += [{name: lead + name for name in came} for lead in sorted(added)]
    fitting = [one for one in candidates if set(one.values()) <= plain.keys() and len(set(one.values())) == len(one)]
    exact = [
        one for one in fitting if all(tuple(tensors[came[a]].shape) == own[plain[b]] for a, b in one.items())
    ] or fitting
    if len(exact) != 1:  # two places would fit as well, and a guess could be wrong
        return None
    return {came[name]: plain[other] for name, other in exact[0].items()}


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _leads(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) + "." for i in range(1, len(parts))]


def _sorted(tensors: Mapping[str, Tensor], what: str) -> list[Tensor]:
    """Numbered tensors in the order of their numbers."""
    numbers = {int(found[1]): name for name in tensors if (found := _NUMBER.fullmatch(name))}
    if sorted(numbers) != list(range(len(tensors))):
        raise ModelError(
            f"{what} is a list of {len(tensors)} tensors numbered {min(numbers)} to {max(numbers)}, of which some are "
            "missing or there twice; expected every number from 0 on."
        )
    return [tensors[numbers[i]] for i in range(len(numbers))]


def _listed(listed: Sequence[Tensor], own: Names, order: Sequence[str] | None, what: str) -> dict[str, Tensor]:
    """A list, or one flat vector, by name."""
    orders = own.orders() if order is None else [list(order), *own.orders()]
    shapes = [tuple(tensor.shape) for tensor in listed]
    for names in orders:
        if len(names) == len(listed) and shapes == [own.shapes.get(name) for name in names]:
            return dict(zip(names, listed, strict=True))
    if len(listed) == 1 and listed[0].ndim == 1:
        for names in orders:
            sizes = [math.prod(own.shapes.get(name, ())) for name in names]
            if sum(sizes) == len(listed[0]):
                parts = zip(names, listed[0].split(sizes), strict=True)
                return {name: part.reshape(own.shapes.get(name, ())) for name, part in parts}
    for names in orders:
        if shapes == [_keras(own.shapes.get(name, ())) for name in names]:
            raise ModelError(
                f"{what} is a list in the layout of TensorFlow: kernels are (height, width, in, out), dense layers "
                "(in, out). Transpose them: array.transpose(3, 2, 0, 1) and array.T."
            )
    told = f"{len(own.shapes)} of its state dict, {len(own.parameters)} of its parameters"
    told += "" if order is None else f", {len(order)} in the order given"
    whole = sum(map(math.prod, own.shapes.values())), sum(math.prod(own.shapes[name]) for name in own.parameters)
    raise ModelError(
        f"{what} is a list of {len(listed)} tensors without names, of shapes {shown(shapes)}; the architecture has "
        f"{told}, of shapes {shown(own.shapes.values())}, or one vector of {whole[0]} or {whole[1]} values. Give the "
        "names in the order of the list, one on each line of a file: --order FILE."
    )


def _keras(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that TensorFlow gives a kernel of this one."""
    return (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]
