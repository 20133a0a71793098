"""What trials run on: a network, and pictures in disjoint groups."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from leakmap.client.groups import Groups
from leakmap.errors import StoreError
from leakmap.files import write_tensors
from leakmap.models.network import IN_MEMORY, Code, Network
from leakmap.observation.contents import Public
from leakmap.observation.observation import Observation
from leakmap.problem.task import Task
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code, user_code_digest
from leakmap.scoring.regions import crops

_GROUPS = (
    *("images", "labels", "victims", "swaps", "controls", "reference", "public", "training", "rehearsals"),
    *("distractors", "objects", "areas", "values"),
)


@dataclass(frozen=True)
class Setup:
    """What trials are run on: a network and pictures in disjoint groups.

    Args:
        network: The network.
        groups: The pictures.
        name: SHA-256 of the recipe that both were made by; empty where there is none, as for a module in memory.
        captured: What the victims really sent, each with the network that it got; empty where they are simulated.
    """

    network: Network
    groups: Groups
    name: str = ""
    captured: tuple[Observation, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The name, else SHA-256 of the weights, the pictures and the public facts."""
        return self.name or _digest(self._facts(), self._tensors())

    @cached_property
    def network_digest(self) -> str:
        """SHA-256 of the weights and the public facts, whatever the pictures."""
        return _digest(self._facts(), self.network.weights)

    @property
    def only_here(self) -> bool:
        """Whether the network is a module, or its loss a function, that only this process has."""
        network = self.network
        own_loss = network.code.loss is not None and not is_user_code(network.task.loss.name)
        return network.model.name == IN_MEMORY or own_loss

    @cached_property
    def public(self) -> Public:
        """The public pictures with what the network's loss takes for them; all trials of a process share them."""
        index = self.groups.public
        return Public(self.groups.pictures(index), self.targets(index))

    def targets(self, index: Tensor) -> Tensor:
        """What the network's task labels some pictures with: the planted control classifies those with objects too."""
        task = self.network.task
        return self.groups.targets(index) if task.objects or not task.counted else self.groups.labels[index]

    @cached_property
    def spare_objects(self) -> tuple[Tensor, list[Tensor]]:
        """``(K,)`` classes and ``(C, h, w)`` crops of the large objects among the distractors."""
        return crops(self.groups.pictures(self.groups.distractors), self.groups.objects[self.groups.distractors])

    def save(self, path: Path) -> None:
        """Writes network and pictures as safetensors; a user's own code is left out."""
        tensors = self._tensors()
        metadata = {"setup": json.dumps(self._facts()), "order": json.dumps(list(tensors)), "name": self.name}
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path, code: Code | None = None) -> "Setup":
        """Reads what :meth:`save` wrote.

        Raises:
            StoreError: the file is not a setup.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                facts, order, name = json.loads(metadata["setup"]), json.loads(metadata["order"]), metadata["name"]
                # Aligned, as rounding depends on it.
                tensors = {key: file.get_tensor(key).clone() for key in dict.fromkeys(order)}
            t = facts["task"]
            task = Task(**t | {key: tuple(t[key]) for key in ("shape", "mean", "std")} | {"loss": Spec(**t["loss"])})
            groups = Groups(classes=tuple(facts["classes"]), **{key: tensors[f"groups/{key}"] for key in _GROUPS})
            weights = {n.removeprefix("weights/"): tensor for n, tensor in tensors.items() if n.startswith("weights/")}
            network = Network(task, Spec(**facts["model"]), weights, code or Code())
            sent = [tensor for n, tensor in tensors.items() if n.startswith("captured/")]
            captured = tuple(Observation.from_bytes(tensor.numpy().tobytes(), code=code) for tensor in sent)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise StoreError(f"{path} is not a setup of leakmap ({reason}); remove it and run again.") from None
        return cls(network, groups, name, captured)

    def to(self, device: torch.device | str) -> "Setup":
        """The same setup with its weights on a device."""
        captured = tuple(observation.to(device) for observation in self.captured)
        return replace(self, network=self.network.to(device), captured=captured)

    def _facts(self) -> dict[str, Any]:
        task = self.network.task
        return {
            "task": asdict(task),
            "model": asdict(self.network.model),
            "code": self.network.code.fingerprint(),
            "files": [user_code_digest(self.network.model), user_code_digest(task.loss)],
            "classes": list(self.groups.classes),
        }

    def _tensors(self) -> dict[str, Tensor]:
        weights = {f"weights/{name}": tensor for name, tensor in self.network.weights.items()}
        groups = {f"groups/{name}": getattr(self.groups, name) for name in _GROUPS}
        sent = [torch.frombuffer(bytearray(one.to_bytes()), dtype=torch.uint8) for one in self.captured]
        return weights | groups | {f"captured/{i}": tensor for i, tensor in enumerate(sent)}


def _digest(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\x1f{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
