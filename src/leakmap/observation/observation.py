"""What the attacker holds, as data and as a file.

The file is safetensors: tensors by name, and in its header a JSON manifest with the schema version, the order, kind,
shape and type of every tensor, and every granted fact. Reading never executes anything: no pickle, no architecture is
built, sizes and names are checked before use, and whatever is wrong ends in one sentence that names file and field.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from leakmap.drawing import card
from leakmap.errors import BadSetting, NotGranted, ObservationError, UnknownName, check_type
from leakmap.files import write_bytes
from leakmap.local_rule import LocalRule
from leakmap.memory import check_fits
from leakmap.models.network import Code, Network
from leakmap.observation.checks import (
    Unsound,
    check_count,
    check_known_pixels,
    check_labels,
    check_public,
    check_update,
    check_values,
)
from leakmap.observation.contents import Public, Update
from leakmap.observation.manifest import DTYPES, SCHEMA, Manifest
from leakmap.problem.task import Task
from leakmap.registry.spec import Spec

FILE_LIMIT = 32 * 2**30
HEADER_LIMIT = 100_000_000
"""Bytes of a header, as in safetensors itself."""
PARSED = 50
"""Most bytes of memory that a byte of JSON takes as Python objects: 44 where it is lists in lists, and its text."""
GRANT_LABELS = (
    "grant the labels with --labels known in an audit, with --labels 3,0,… in leakmap attack, with "
    "ThreatModel(labels='known') in Python"
)
HOW_TO_GRANT = {
    "count": "grant the number of examples (ThreatModel(count=True), --count; --count N of leakmap capture or attack)",
    "rule": "grant the local rule (ThreatModel(rule=True), --rule; [rule] in the facts of a capture)",
    "labels": f"{GRANT_LABELS}, or name a label rule in the attack",
    "label_counts": "grant the label counts (ThreatModel(labels='counts'), --labels counts)",
    "buffers": "grant the client's returned buffers (ThreatModel(buffers=True), --buffers)",
    "public": "grant public pictures (ThreatModel(public=N), --public N)",
    "known_pixels": "grant a share of the true pixels, for a study of starts (--known-pixels 0.3)",
}
"""By fact: how it comes into an Observation."""


@dataclass(frozen=True)
class Observation:
    """All that an attacker holds. A fact that the threat model does not grant is None.

    Args:
        network: Task, architecture and the weights that the server sent.
        update: What the client shared.
        count: Number of the client's examples.
        labels: What each example is labelled with, see :mod:`leakmap.problem.targets`, or ``(count, M, 5)`` objects,
            see :mod:`leakmap.problem.objects`.
        label_counts: ``(classes,)`` examples, or objects, of each class.
        buffers: The client's buffers after its step, by name.
        rule: The client's local rule.
        public: Public pictures from the same source.
        known_pixels: ``(count, C, H, W)`` in [0, 1]: true pixels, NaN where they are not given.

    Raises:
        ObservationError: names, shapes or types do not fit together, or values are not finite.
    """

    network: Network
    update: Update
    count: int | None = None
    labels: Tensor | None = None
    label_counts: Tensor | None = None
    buffers: Mapping[str, Tensor] | None = None
    rule: LocalRule | None = None
    public: Public | None = None
    known_pixels: Tensor | None = None

    def __post_init__(self) -> None:
        task, update = self.network.task, self.update
        try:
            check_update(self.network, update, self.buffers, self.rule)
            check_values(self._tensors(), update.tensors.keys())
            check_count(task, self.count)
            check_labels(task, self.count, self.labels, self.label_counts)
            check_public(task, self.public)
            check_known_pixels(task, self.count, self.known_pixels)
        except Unsound as error:
            raise ObservationError(f"This Observation: {error}.") from None

    def __repr__(self) -> str:
        return f"<Observation: {', '.join(f'{name} {fact}' for name, fact in self._told().items() if fact)}>"

    def _repr_html_(self) -> str:
        public = {} if self.public is None else {"public pictures": list(self.public.pictures)}
        return card("Observation", self._told(), public)

    def _told(self) -> dict[str, str]:
        """What is said of it in a line, or in a notebook: of tensors how many there are, never their values."""
        tensors, task = self.update.tensors, self.network.task
        values, granted = sum(tensor.numel() for tensor in tensors.values()), self.granted()
        return {
            "update": f"{self.update.kind} of {len(tensors)} tensors with {values:,} values",
            "model": f"{self.network.model} for pictures of {' x '.join(map(str, task.shape))}",
            "granted": ", ".join(fact for fact, given in granted.items() if given) or "nothing else",
            "withheld": ", ".join(fact for fact, given in granted.items() if not given),
        }

    def need(self, *facts: str) -> None:
        """Checks that facts are granted.

        Raises:
            NotGranted: one is not; the message says how to grant it.
        """
        for fact in facts:
            if getattr(self, fact) is None:
                raise NotGranted(f"This attack needs the fact {fact!r}, which is not granted; {HOW_TO_GRANT[fact]}.")

    def granted(self) -> dict[str, bool]:
        """Which of the facts that can be withheld are granted."""
        return {fact: getattr(self, fact) is not None for fact in HOW_TO_GRANT}

    def digest(self) -> str:
        """SHA-256 of the file form."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file form; a user's own code is left out."""
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in self._tensors()}
        manifest = {
            "schema": SCHEMA,
            "task": {**asdict(self.network.task), "loss": asdict(self.network.task.loss)},
            "model": asdict(self.network.model),
            "update": self.update.kind,
            "count": self.count,
            "rule": None if self.rule is None else asdict(self.rule),
            "granted": [fact for fact, given in self.granted().items() if given],
            "tensors": [{"name": name, "shape": list(t.shape), "dtype": str(t.dtype)} for name, t in tensors.items()],
        }
        return save(tensors, metadata={"leakmap": json.dumps(manifest)})

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name in the file form, in the order of the file."""
        public = self.public and {"pictures": self.public.pictures, "labels": self.public.labels}
        groups: list[tuple[str, Mapping[str, Tensor] | None]] = [
            ("weights", self.network.weights),
            ("update", self.update.tensors),
            ("buffers", self.buffers),
            ("public", public),
        ]
        for group, tensors in groups:
            for name, tensor in (tensors or {}).items():
                yield f"{group}/{name}", tensor
        alone = (("labels", self.labels), ("label_counts", self.label_counts), ("known_pixels", self.known_pixels))
        yield from ((name, tensor) for name, tensor in alone if tensor is not None)

    def through_bytes(self) -> "Observation":
        """The same, written to the file form and read back, on its device: no graph, storage or hook is shared."""
        return Observation.from_bytes(self.to_bytes(), code=self.network.code).to(self.network.device)

    def to_file(self, path: Path | str) -> None:
        """Writes the file form; no half file is ever seen."""
        write_bytes(Path(path), self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, *, code: Code | None = None, where: str = "These bytes") -> "Observation":
        """Reads the file form.

        Args:
            data: The file's bytes.
            code: The user's own architecture or loss, which no file holds.
            where: What to call the source in messages.

        Raises:
            ObservationError: the bytes are not a sound Observation; the sentence names the field.
            UsageError: its header, read, does not fit into memory.
        """
        return _read(data, code or Code(), where)

    @classmethod
    def from_file(cls, path: Path | str, *, code: Code | None = None) -> "Observation":
        """Reads a file; see :meth:`from_bytes`.

        Raises:
            ObservationError: the file is absent, too large, or not a sound Observation.
            UsageError: it does not fit into memory.
        """
        check_type(path, (str, Path), "The path of an Observation", "text or a pathlib.Path")
        path = Path(path)
        if not path.is_file():
            raise ObservationError(f"There is no Observation file {path}.")
        if (size := path.stat().st_size) > FILE_LIMIT:
            raise ObservationError(f"{path} has {size} bytes; at most {FILE_LIMIT} are read.")
        check_fits(3 * size, f"Reading {path} takes", "read it on a machine with more")
        return cls.from_bytes(path.read_bytes(), code=code, where=str(path))

    def to(self, device: torch.device | str) -> "Observation":
        """The same Observation on a device; this one, where it is there already."""
        if all(tensor.device == torch.device(device) for _, tensor in self._tensors()):
            return self

        def move(tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
            return None if tensors is None else {name: t.to(device) for name, t in tensors.items()}

        return replace(
            self,
            network=self.network.to(device),
            update=Update(self.update.kind, move(self.update.tensors) or {}),
            labels=None if self.labels is None else self.labels.to(device),
            label_counts=None if self.label_counts is None else self.label_counts.to(device),
            buffers=move(self.buffers),
            public=self.public and Public(self.public.pictures.to(device), self.public.labels.to(device)),
            known_pixels=None if self.known_pixels is None else self.known_pixels.to(device),
        )


def _header(data: bytes, where: str) -> dict[str, Any]:
    if data[8:9] != b"{" and (data[:2] == b"PK" or data[:1] == b"\x80"):
        raise ObservationError(f"{where}: this is a pickle or zip archive, which is never read; expected safetensors.")
    if len(data) < 8 or (size := int.from_bytes(data[:8], "little")) > len(data) - 8:
        raise ObservationError(f"{where}: the header is cut off or absent; expected a safetensors file.")
    if size > HEADER_LIMIT:
        raise ObservationError(f"{where}: the header claims {size} bytes; at most {HEADER_LIMIT} are read.")
    check_fits(PARSED * size, f"The header of {where} may take", "read it on a machine with more")
    try:
        header = json.loads(data[8 : 8 + size])
        return json.loads(header["__metadata__"]["leakmap"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ObservationError(f"{where}: the header holds no leakmap manifest; expected a file of leakmap.") from None


def _read(data: bytes, code: Code, where: str) -> Observation:
    raw = _header(data, where)
    if isinstance(raw, dict) and isinstance(raw.get("schema"), int) and raw["schema"] != SCHEMA:
        raise ObservationError(f"{where}: 'schema' is version {raw['schema']}; this leakmap reads version {SCHEMA}.")
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])[:80] or "manifest"
        raise ObservationError(f"{where}: {field!r} in the manifest is wrong: {first['msg']}.") from None
    for entry in manifest.tensors:
        if entry.dtype not in DTYPES:
            raise ObservationError(f"{where}: {entry.name!r} has type {entry.dtype!r}, which is not read.")
        size = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        if size > len(data):
            raise ObservationError(f"{where}: {entry.name!r} claims {size} bytes, the file has {len(data)}.")
    try:
        tensors = {name: tensor.clone() for name, tensor in load(data).items()}  # aligned, as rounding depends on it
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise ObservationError(f"{where}: the tensors cannot be read ({str(error)[:200]!r}).") from None
    order = [entry.name for entry in manifest.tensors]
    if len(set(order)) != len(order) or set(order) != set(tensors):
        odd = sorted(set(order) ^ set(tensors)) or [name for name, count in Counter(order).items() if count > 1]
        raise ObservationError(f"{where}: manifest and tensors disagree about {odd[0]!r}.")
    for entry in manifest.tensors:
        got = tensors[entry.name]
        if list(got.shape) != entry.shape or str(got.dtype) != entry.dtype:
            raise ObservationError(
                f"{where}: {entry.name!r} is {got.dtype} {tuple(got.shape)}, "
                f"the manifest says {entry.dtype} {tuple(entry.shape)}."
            )
    return _assemble(manifest, {name: tensors[name] for name in order}, code, where)


def _assemble(manifest: Manifest, tensors: dict[str, Tensor], code: Code, where: str) -> Observation:
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "update": {}, "buffers": {}, "public": {}}
    single: dict[str, Tensor] = {}
    for full, tensor in tensors.items():
        group, slash, name = full.partition("/")
        if slash and group in groups:
            groups[group][name] = tensor
        elif full in ("labels", "label_counts", "known_pixels"):
            single[full] = tensor
        else:
            raise ObservationError(f"{where}: {full!r} is not a tensor that an Observation has.")
    if groups["public"] and set(groups["public"]) != {"pictures", "labels"}:
        raise ObservationError(f"{where}: 'public' must hold 'pictures' and 'labels', got {sorted(groups['public'])}.")
    granted = set(manifest.granted)
    try:
        t = manifest.task
        task = Task(
            (t.shape[0], t.shape[1], t.shape[2]),
            t.classes,
            tuple(t.mean),
            tuple(t.std),
            Spec(t.loss.name, dict(t.loss.params)),
            t.objects,
            t.target,
            t.output,
        )
        rule = None if manifest.rule is None else LocalRule(**manifest.rule.model_dump())
        observation = Observation(
            Network(task, Spec(manifest.model.name, dict(manifest.model.params)), groups["weights"], code),
            Update(manifest.update, groups["update"]),
            manifest.count,
            single.get("labels"),
            single.get("label_counts"),
            groups["buffers"] if "buffers" in granted else None,
            rule,
            Public(**groups["public"]) if groups["public"] else None,
            single.get("known_pixels"),
        )
    except (BadSetting, UnknownName, ObservationError) as error:
        raise ObservationError(f"{where}: {str(error).removeprefix('This Observation: ')}") from None
    actual = {fact for fact, given in observation.granted().items() if given}
    if actual != granted:
        odd = sorted(actual ^ granted)[0]
        raise ObservationError(f"{where}: 'granted' and the contents disagree about {odd!r}.")
    return observation
