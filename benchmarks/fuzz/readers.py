"""Every reader of the project, each with small valid files."""

import json
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.torch import save

import leakmap
from benchmarks.fuzz.payloads import checkpoint, npy, npz, npz_list, picture
from leakmap.capturing.facts import as_toml, read_facts
from leakmap.capturing.files import read_order, read_state
from leakmap.client.data import load_pictures
from leakmap.client.groups import Groups
from leakmap.evidence.bundle import Manifest, listed_of
from leakmap.evidence.evidence import Evidence, Quantity, Record, Statement, Topic
from leakmap.evidence.planned import read_planned, write_planned
from leakmap.evidence.profile import template
from leakmap.evidence.verify import verify_bundle
from leakmap.files import read_json, write_tensors
from leakmap.plan.tuned import read_tuned
from leakmap.result.provenance import Provenance
from leakmap.runs.setup import Setup
from leakmap.runs.store import Store
from leakmap.runs.trial import Deranged, Outcome, Reached, Trial
from leakmap.scoring.score import Score
from leakmap.study import results
from leakmap.study.claims import read_claim
from leakmap.study.file import read_study
from leakmap.study.index import FILE, Prices, digest_of, record

Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """Something that reads files which anybody may have written.

    Args:
        name: What it reads.
        files: A valid payload.
        read: Reads it from a folder; None is a refusal where the reader says so.
    """

    name: str
    files: Files
    read: Callable[[Path], object]


@cache
def client() -> tuple[leakmap.Facts, leakmap.Network, torch.Tensor, leakmap.Round, leakmap.Observation]:
    """A small client: its facts, its network, pictures of which it holds the first two, what it sends and a capture."""
    facts = leakmap.Facts(
        model="mlp,hidden=3", shape=(1, 16, 16), classes=2, mean=(0.5,), std=(0.25,), count=2, rule=leakmap.RuleFacts()
    )
    network = leakmap.build_network(facts.task, facts.model)
    pictures = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = leakmap.Batch(pictures[:2], torch.tensor([0, 1]))
    round = leakmap.simulate(network, leakmap.LocalRule(share="delta"), batch)
    public = leakmap.Public(pictures[2:], torch.tensor([0, 1, 0, 1]))
    observation = leakmap.observe(round, leakmap.ThreatModel("known", public=2, known_pixels=0.2), public)
    return facts, network, pictures, round, observation


@cache
def readers() -> tuple[Reader, ...]:
    """Every reader of the project, with small files."""
    facts, network, pictures, round, observation = client()
    before = dict(network.weights)
    after = {name: before[name] + round.update.tensors[name] for name in before}
    names, arrays = list(before), [tensor.numpy() for tensor in after.values()]
    told = as_toml(facts).encode()

    def state(name: str, data: bytes) -> Reader:
        return Reader(name, {"state": data}, lambda folder: read_state(folder / "state"))

    def captured(folder: Path) -> object:
        facts = read_facts(folder / "facts.toml")
        sent, came = (read_state(folder / name) for name in ("before", "after"))
        return leakmap.capture(sent, came, facts).through_bytes()

    return (
        Reader(
            "Observation",
            {"client.safetensors": observation.to_bytes()},
            lambda folder: leakmap.Observation.from_file(folder / "client.safetensors").through_bytes(),
        ),
        state("state, safetensors", save(after)),
        state("state, checkpoint", checkpoint({"state_dict": after, "epoch": 3})),
        state("state, old checkpoint", checkpoint({"model": after}, _use_new_zipfile_serialization=False)),
        state("state, npz by name", npz(dict(zip(names, arrays, strict=True)))),
        state("state, npz list", npz({f"arr_{i}": array for i, array in enumerate(arrays)})),
        state("state, npy list", b"".join(map(npy, arrays))),
        Reader("order of names", {"names.txt": "\n".join(names).encode()}, lambda f: read_order(f / "names.txt")),
        Reader("facts", {"facts.toml": told}, lambda f: as_toml(read_facts(f / "facts.toml"))),
        Reader(
            "capture",
            {"facts.toml": told, "before": checkpoint({"model": before}), "after": npz_list(arrays)},
            captured,
        ),
        *_of_runs(network, pictures),
        *_of_evidence(),
        *_of_pictures(),
    )


def _of_runs(network: leakmap.Network, pictures: torch.Tensor) -> Iterator[Reader]:
    index = {
        name: torch.arange(count).reshape(shape)
        for name, count, shape in (
            ("victims", 2, (1, 2)),
            ("swaps", 4, (2, 1, 2)),
            ("controls", 1, (1, 1)),
            ("reference", 0, (0,)),
            ("public", 2, (2,)),
            ("training", 0, (0,)),
            ("rehearsals", 0, (0, 2)),
            ("distractors", 3, (3,)),
        )
    }
    groups = Groups((pictures * 255).to(torch.uint8), torch.tensor([0, 1, 0, 1, 0, 1]), ("cat", "dog"), **index)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        Setup(network, groups, "a" * 64).save(folder / "setup.safetensors")
        setup = (folder / "setup.safetensors").read_bytes()
        store = Store(folder)
        store.claim({"model": "mlp", "seed": 0}, "audit")
        trial = Trial("a" * 64, leakmap.LocalRule(), leakmap.ThreatModel(), leakmap.Spec("linear"))
        values = {"psnr": (12.0, 13.0), "ssim": (0.1, 0.2)}
        score = Score(pictures[:2], values, (1.0, 2.0), (3, 3), 1.0)
        deranged = Deranged((2.0, 1.0), (3, 3), (2.0, 1.0), values)
        told = Outcome(
            trial, score, 0.1, (1.0, 0.1), used=frozenset({"rule"}), reached=(Reached("linear", 0.1, 1.0),),
            deranged=deranged, seconds=1.0,
        )  # fmt: skip
        store.put(told)
        outcome = store.path(trial.key).read_bytes()
        plan = (folder / "plan.json").read_bytes()
        result = _result()
        cell = {"state": "s", "result": result, "order": json.dumps(["0/original"])}
        write_tensors(folder / "cell", {"0/original": (pictures[:2] * 255).to(torch.uint8)}, cell)
        concluded = (folder / "cell").read_bytes()
    tried = {"settings": {"steps": 10}, "scores": [0.1, 0.2], "stopped": False, "failures": []}
    tuned = {
        "column": "rehearsal-tuned", "objective": "ssim", "budget": 1, "clients": 2, "facts": {"model": "mlp"},
        "attacks": {"linear": {"settings": {"steps": 10}, "score": 0.15, "default": 0.1, "tried": [tried]}},
        "pictures": ["0" * 64], "versions": {"leakmap": "0"}, "schema": 1,
    }  # fmt: skip

    def studied(folder: Path) -> object:
        study = read_study(folder / "study.toml", "small")
        return read_claim(study.claim, study.axes), study.resolved()

    def recorded(folder: Path) -> object:
        found = leakmap.recorded_status(folder / "study.toml", folder)
        return None if isinstance(found, str) else found

    planned: Any = SimpleNamespace(key="k", cell=SimpleNamespace(axes={"model": "mlp"}))
    yield Reader("setup", {"s.safetensors": setup}, lambda f: Setup.load(f / "s.safetensors").digest)
    yield Reader("outcome", {f"trials/{trial.key}.safetensors": outcome}, lambda f: Store(f).read(trial.key))
    yield Reader("plan of a folder", {"plan.json": plan}, lambda f: read_json(f / "plan.json"))
    yield Reader("cell", {"cells/k.safetensors": concluded}, lambda f: results._read(f, planned, "s"))
    yield Reader("result", {"r.json": result.encode()}, lambda f: leakmap.read_result(f / "r.json"))
    yield Reader("tuned settings", {"t.json": json.dumps(tuned).encode()}, lambda f: read_tuned(f / "t.json"))
    yield Reader("study", {"study.toml": STUDY.encode()}, studied)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        study, digest = STUDY.encode(), digest_of(STUDY.encode(), None)
        record(folder, digest, "Study", {"seed": [0, 1]}, 2, {trial.key: 0}, Prices(np.ones(1), {"f": 1.0}), [])
        index = (folder / FILE).read_bytes()
    yield Reader("record of a study", {FILE: index, "study.toml": study}, recorded)


def _of_evidence() -> Iterator[Reader]:
    """What a bundle is made of and consists of."""
    said = Statement("attack", "Attack", "measured", ["linear"])
    quantity = Quantity("psnr", "PSNR", 12.0, 11.0, None, "", 9.0, "best floor", 0.5)
    evidence = Evidence(
        "2026-01-01T00:00:00+00:00", "0", "exact", "It leaks.", False, (Topic("t", "T", "because", (said,)),),
        (quantity,), (Record(1, 1, 1.0, 9, 40.0, 0.9, "exact"),), ("client 2: died",),
    )  # fmt: skip
    files = {"evidence.json": TypeAdapter(Evidence).dump_json(evidence), "report.html": b"<p>It leaks."}
    listed = {name: listed_of(content) for name, content in files.items()}
    manifest = TypeAdapter(Manifest).dump_json(Manifest(evidence.made, "0", listed, {"report.pdf": "no printer"}))
    with tempfile.TemporaryDirectory() as text:
        path = Path(text) / "planned.json"
        write_planned(path, leakmap.Plan("mlp"), "partial")
        planned = path.read_bytes()
    provenance = Provenance(
        started=evidence.made, finished="", contents="0" * 64, architecture="0" * 64, weights="0" * 64,
        pictures="0" * 64, observations=(), parameters=9, pictures_per_client=1, leakmap="0", commit="", python="3",
        platform="Linux", processor="x", cores=2, device="cpu", packages=("torch==2",),
    ).model_dump_json(by_alias=True)  # fmt: skip
    profile = template().replace('controller = ""', 'controller = "A hospital"').encode()
    yield Reader("bundle", {"manifest.json": manifest, **files}, verify_bundle)
    yield Reader("profile", {"p.toml": profile}, lambda f: leakmap.read_profile(f / "p.toml"))
    yield Reader("plan of a bundle", {"planned.json": planned}, lambda f: read_planned(f / "planned.json"))
    yield Reader("provenance", {"p.json": provenance.encode()}, lambda f: Provenance.read(f / "p.json"))


def _result() -> str:
    """Of a small audit."""
    held = load_pictures("samples", 16)
    found = leakmap.audit("mlp,hidden=2", held.images, held.labels, attack="linear", victims=1)
    return found.result.as_json()


def _of_pictures() -> Iterator[Reader]:
    source = np.random.default_rng(0)
    images = source.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(6) % 2
    pngs = [picture(image, "PNG") for image in images]
    arrays = {f"{split}_{what}": values for split in ("test", "train") for what, values in _half(images, labels, split)}
    boxes = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 16} for i in range(2)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7, "bbox": [1, 2.5, 8, 9], "iscrowd": 0, "segmentation": [[1, 2]]}
            for i in range(2)
        ],
        "categories": [{"id": 7, "name": "cat"}],
    }
    pictures = {f"images/val/{i}.png": pngs[i] for i in range(2)}
    yolo = {f"labels/val/{i}.txt": f"{i} 0.5 0.5 0.25 0.5\n0 0.2 0.2 0.1 0.1\n".encode() for i in range(2)}
    classed = {f"{'cat' if i % 2 else 'dog'}/{i}.png": png for i, png in enumerate(pngs[:3])}
    classed["cat/3.jpg"] = picture(images[3], "JPEG")
    batches = {f"cifar-10-batches-py/{name}": pickle.dumps({b"data": [1], b"labels": [1]}) for name in _BATCHES}

    def read(source: str, size: int | None = 16) -> Callable[[Path], object]:
        return lambda folder: load_pictures(source.replace("DIR", str(folder)), size)

    yield Reader(
        "npz of pictures", {"p.npz": npz({**arrays, "class_names": np.array(["a", "b"])})}, read("npz:DIR/p.npz")
    )
    json_files = {"annotations/instances_val.json": json.dumps(boxes).encode(), **pictures}
    yield Reader("boxes, json", json_files, read("coco:DIR"))
    yield Reader("boxes, YOLO", {"data.yaml": b"names:\n  0: cat\n  1: dog\n", **yolo, **pictures}, read("coco:DIR"))
    yield Reader("folder of pictures", classed, read("folder:DIR", 24))
    yield Reader("cifar10", batches, read("cifar10:DIR", None))


_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
STUDY = """
title = "Which?"
seed = [0, 1]
presets.attack.mine = {name = "inverting_gradients", steps = 5}
[data]
source = "samples"
image_size = 16
victims = [2, 3]
[[model]]
name = "mlp"
hidden = 8
[[model]]
label = "wide"
name = "mlp"
hidden = [16, 32]
[client]
mode = ["train", "eval"]
lr = 0.1
[threat]
labels = "known"
public = 4
[attack]
name = "linear"
[[exclude]]
model = "wide"
seed = 1
[scale.small.data]
victims = 2
[claim]
id = "C0"
statement = "It leaks."
source = "Us"
expected = "yes"
[[claim.contrasts]]
name = "modes"
terms = [[1.0, {"client.mode" = "train"}], [-1.0, {"client.mode" = "eval"}]]
"""


def _half(images: np.ndarray, labels: np.ndarray, split: str) -> list[tuple[str, np.ndarray]]:
    part = slice(0, 3) if split == "test" else slice(3, 6)
    return [("images", images[part]), ("labels", labels[part])]
