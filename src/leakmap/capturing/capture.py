"""From what was sent and what came back to the Observation of an honest-but-curious server."""

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from leakmap.capturing.facts import Facts, read_facts
from leakmap.errors import ObservationError
from leakmap.models.network import Code, Network
from leakmap.models.weights import LONGEST_NAME
from leakmap.observation.contents import Update
from leakmap.observation.observation import Observation
from leakmap.registry.spec import Spec

Kind = Literal["weights", "delta", "gradient"]
"""What comes back: the weights afterwards, weights afterwards less those before, or a gradient."""
State = Mapping[str, Any]
"""Tensors or arrays by name."""
PREFIXES = ("module.", "_module.", "_orig_mod.")
"""What DataParallel, Opacus and torch.compile put in front of every name."""


def capture(
    before: nn.Module | State,
    after: nn.Module | State,
    facts: Facts | Path | str,
    *,
    kind: Kind = "weights",
    count: int | None = None,
    code: Code | None = None,
    file: Path | str | None = None,
) -> Observation:
    """What a server sees of one client's round, from the weights that it sent and what came back.

    Nothing of the client's pictures is taken or needed. Take ``before`` as a copy, as training changes a module:
    ``before = copy.deepcopy(model)``.

    Args:
        before: The module or its state dict, as the server sent it.
        after: The same after local training; or a state dict of what ``kind`` says.
        facts: What the payload cannot tell, or the TOML file with it.
        kind: What ``after`` is.
        count: Pictures of the client, in place of that of the facts.
        code: The user's own architecture and loss, where the facts name such; a module that is given serves as one.
        file: Where to write the Observation; None keeps it in memory.

    Raises:
        BadSetting: the facts are not sound.
        ModelError: the weights do not fit the architecture.
        ObservationError: what came back does not fit the weights, or is not finite.
    """
    facts = facts if isinstance(facts, Facts) else read_facts(facts)
    if code is None and isinstance(before, nn.Module):
        code = Code(model=before)
    network = Network(facts.task, Spec.parse(facts.model), states(before), code or Code()).fitted()
    found, trained = states(after), network.trained()
    if missing := [name for name in trained if name not in found]:
        raise ObservationError(
            f"What came back lacks {len(missing)} of {len(trained)} trained parameters (first {missing[0]!r}); freeze "
            "those that the client does not train: requires_grad_(False) in the architecture."
        )
    if unknown := [name for name in found if name not in network.weights]:
        raise ObservationError(
            f"What came back has {len(unknown)} names that were not sent (first {unknown[0]!r}); expected those of the "
            f"architecture, such as {trained[0]!r}."
        )
    for name, tensor in found.items():
        if tensor.shape != network.weights[name].shape:
            raise ObservationError(
                f"{name!r} came back with shape {tuple(tensor.shape)}, it was sent with "
                f"{tuple(network.weights[name].shape)}."
            )
    own = {name: found[name].to(tensor.dtype) for name, tensor in network.weights.items() if name in found}
    tensors = {name: own[name] - network.weights[name] if kind == "weights" else own[name] for name in trained}
    parameters = {name for name, _ in network.module().named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in own.items() if name not in parameters and kind == "weights"}
    share = "gradient" if kind == "gradient" else "delta"
    observation = Observation(
        network,
        Update(share, tensors),
        facts.count if count is None else count,
        buffers=buffers or None,
        rule=None if facts.rule is None else facts.rule.rule(share),
    )
    if file is not None:
        observation.to_file(file)
    return observation


def named(arrays: Sequence[Any], names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors by name from a list of arrays in a known order, such as that of ``model.state_dict()``.

    Raises:
        ObservationError: there are more or fewer arrays than names.
    """
    if len(arrays) != len(names):
        raise ObservationError(
            f"{len(arrays)} arrays came back for {len(names)} names; give the names in the order of the list, as "
            "list(model.state_dict()) where the client sends its state, or of its parameters alone."
        )
    return states(dict(zip(names, arrays, strict=True)))


def states(found: nn.Module | State) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, free of graph and storage; prefixes of wrappers are removed.

    Raises:
        ObservationError: something is not a tensor or an array of numbers, or has a name that is none.
    """
    state: State = found.state_dict() if isinstance(found, nn.Module) else found
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
            raise ObservationError(f"The name {reprlib.repr(name)} is none; expected 1 to {LONGEST_NAME} characters.")
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8:
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        if not isinstance(value, Tensor) or not _is_plain(value):
            raise ObservationError(f"{name!r} is {_kind_of(value)}; expected a tensor or an array of real numbers.")
        tensors[name] = value.detach().cpu().contiguous().clone()
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_complex())


def _kind_of(value: Any) -> str:
    return f"{type(value).__name__} of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
