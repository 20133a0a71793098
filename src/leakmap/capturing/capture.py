"""From what was sent and what came back to the Observation of an honest-but-curious server."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from leakmap.capturing.facts import Facts, read_facts
from leakmap.errors import ObservationError
from leakmap.models.naming import Names, matched, names_of, shown
from leakmap.models.network import Code, Network
from leakmap.models.weights import LONGEST_NAME
from leakmap.observation.contents import Update
from leakmap.observation.observation import Observation
from leakmap.registry.spec import Spec

Kind = Literal["weights", "delta", "gradient"]
"""What comes back: the weights afterwards, weights afterwards less those before, or a gradient."""
Payload = nn.Module | Mapping[str, Any] | Sequence[Any] | Tensor | np.ndarray
"""A module, tensors or arrays by name, a list of them, or one flat vector."""


def capture(
    before: Payload,
    after: Payload,
    facts: Facts | Path | str,
    *,
    kind: Kind = "weights",
    count: int | None = None,
    order: Sequence[str] | None = None,
    buffers: bool = True,
    code: Code | None = None,
    file: Path | str | None = None,
) -> Observation:
    """What a server sees of one client's round, from the weights that it sent and what came back.

    Nothing of the client's pictures is taken or needed. Take ``before`` as a copy, as training changes a module:
    ``before = copy.deepcopy(model)``. Names, lists and flat vectors are brought to the names of the architecture, see
    :func:`leakmap.models.naming.matched`. Clients that keep their normalization layers to themselves (FedBN) send the
    others alone.

    Args:
        before: The module or its state dict, as the server sent it.
        after: The same after local training; or what ``kind`` says.
        facts: What the payload cannot tell, or the TOML file with it.
        kind: What ``after`` is. A delta may hold the differences of buffers too; they are then those sent plus these.
        count: Pictures of the client, in place of that of the facts.
        order: Names of the tensors of a list, where it has an order of its own.
        buffers: Whether the buffers that came back are kept.
        code: The user's own architecture and loss, where the facts name such; a module that is given serves as one.
        file: Where to write the Observation; None keeps it in memory.

    Raises:
        BadSetting: the facts are not sound.
        ModelError: weights, or a list of any kind, do not fit the architecture.
        ObservationError: what came back does not fit the weights, or is not finite.
    """
    facts = facts if isinstance(facts, Facts) else read_facts(facts)
    if code is None and isinstance(before, nn.Module):
        code = Code(model=before)
    blank = Network(facts.task, Spec.parse(facts.model), {}, code or Code())
    own = names_of(blank.blank())
    sent = matched(tensors_of(before), own, order, "What was sent")
    found = matched(tensors_of(after), own, order, "What came back")
    if not buffers:
        found = {name: t for name, t in found.items() if name in own.parameters or name not in own.shapes}
    network = replace(blank, weights=own.whole(sent)).fitted()
    _check(found, network, own, kind)
    cast = {name: found[name].to(tensor.dtype) for name, tensor in network.weights.items() if name in found}
    tensors = {
        name: cast[name] - network.weights[name] if kind == "weights" else cast[name]
        for name in own.trained
        if name in cast
    }
    returned = {
        name: _moved(network.weights[name], found[name]) if kind == "delta" else tensor
        for name, tensor in cast.items()
        if name not in own.parameters
    }
    share = "gradient" if kind == "gradient" else "delta"
    observation = Observation(
        network,
        Update(share, tensors),
        facts.count if count is None else count,
        buffers=returned or None,
        rule=None if facts.rule is None else facts.rule.rule(share),
    )
    if file is not None:
        observation.to_file(file)
    return observation


def _check(found: Mapping[str, Tensor], network: Network, own: Names, kind: Kind) -> None:
    """Refuses what came back if it is not the network's, and shows it."""
    if unknown := [name for name in found if name not in network.weights]:
        raise ObservationError(
            f"What came back has {len(unknown)} names that were not sent ({shown(unknown)}); expected those of the "
            f"architecture ({shown(own.shapes)}), all with one prefix at most. Give the names that its tensors have "
            "there, in the order in which they came: --order FILE."
        )
    missing = [name for name in own.trained if name not in found]
    if missing and not own.kept(found):
        raise ObservationError(
            f"What came back lacks {len(missing)} of {len(own.trained)} trained parameters ({shown(missing)}); "
            f"{len(found)} tensors came ({shown(found)}). Freeze those that the client does not train: "
            "requires_grad_(False) in the architecture."
        )
    for name, tensor in found.items():
        if tensor.shape != network.weights[name].shape:
            raise ObservationError(
                f"{name!r} came back with shape {tuple(tensor.shape)}, it was sent with "
                f"{tuple(network.weights[name].shape)}."
            )
    if kind == "gradient" and (buffers := [name for name in found if name not in own.parameters]):
        raise ObservationError(
            f"What came back as a gradient holds {len(buffers)} buffers ({shown(buffers)}), of which there is no "
            "gradient: leave the buffers out (--no-buffers), or give the kind that it is (--kind weights or delta)."
        )


def tensors_of(found: Payload) -> dict[str, Tensor]:
    """Tensors by name, those of a list by number; on the CPU, free of graph and storage.

    Raises:
        ObservationError: something is not a tensor or an array of numbers, or has a name that is none.
    """
    if isinstance(found, nn.Module):
        found = found.state_dict()
    elif isinstance(found, Tensor | np.ndarray):
        found = [found]
    if not isinstance(found, Mapping):
        if not isinstance(found, Sequence) or isinstance(found, str | bytes):
            raise ObservationError(f"A {_kind_of(found)} is no update; expected tensors or arrays by name, or a list.")
        found = {str(i): value for i, value in enumerate(found)}
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
            raise ObservationError(f"The name {reprlib.repr(name)} is none; expected 1 to {LONGEST_NAME} characters.")
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8:
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        if not isinstance(value, Tensor) or not _is_plain(value):
            raise ObservationError(f"{name!r} is {_kind_of(value)}; expected a tensor or an array of real numbers.")
        tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors


def _moved(sent: Tensor, difference: Tensor) -> Tensor:
    """A buffer from its difference; in float64, as a sum in the type of a half-precision difference would round it."""
    moved = sent.double() + difference.double()
    return (moved if sent.is_floating_point() else moved.round()).to(sent.dtype)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_complex())


def _kind_of(value: Any) -> str:
    return f"{type(value).__name__} of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
