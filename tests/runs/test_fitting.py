"""What is fitted before any client answers: once, shared by all trials and processes, and safe against kills."""

import sys
from dataclasses import replace
from importlib.metadata import entry_points

import pytest
import torch

from leakmap import Plan, Spec, ThreatModel, attacks
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.runs.fitting import forget_fitted
from leakmap.runs.run import run, seen_by_server
from leakmap.runs.runner import Local
from leakmap.runs.store import Store
from leakmap.runs.trial import Trial

CLASS_MEANS = '''
"""Paints the mean public picture of each class: an attack that is fitted, as small as one can be."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from leakmap.attacker.labels import recover
from leakmap.attacker.protocol import CLOSED_FORM, Fitted, free_to_fit, trying_shows
from leakmap.attacker.reconstruction import Reconstruction

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ClassMeans:
    labels: str = "auto"

    needs = frozenset({"count", "public"})
    leaky_model = "convnet"
    cost = CLOSED_FORM
    why_not = trying_shows
    fit_cost = free_to_fit
    fits = "means of public pictures by class"

    def blind(self):
        return replace(self, labels="blind")

    def fit(self, setting, seed, tick, kept):
        with (HERE / "fits.log").open("a") as log:
            log.write("fit\\n")
        if (HERE / "interrupt").exists():
            (HERE / "interrupt").unlink()
            raise KeyboardInterrupt
        pictures, labels = setting.public.pictures, setting.public.labels
        noise = 0.01 * torch.randn(setting.network.task.shape, generator=torch.Generator().manual_seed(seed % 2**31))
        of_class = [pictures[labels == c] for c in range(setting.network.task.classes)]
        means = torch.stack([(own if len(own) else pictures).mean(0) for own in of_class])
        tick(1.0)
        return self.restored(setting, {"means": means + noise})

    def restored(self, setting, state):
        return Fitted(self.needs, partial(self.paint, state["means"]), state)

    def paint(self, means, observation, seed, tick):
        found = recover(observation, self.labels, seed)
        return Reconstruction(means[found.y], found.y, 0.0, used=self.needs.union(found.used))
'''


@pytest.fixture
def fits(tmp_path, monkeypatch):
    """A package with such an attack, as other processes find it too; counts its fits."""
    about = tmp_path / "class_means-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: class-means\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[leakmap.attack]\nclass_means = class_means:ClassMeans\n")
    (tmp_path / "class_means.py").write_text(CLASS_MEANS)
    attacks.names()  # before the package can be found: what is discovered stays registered
    monkeypatch.syspath_prepend(tmp_path)
    (entry,) = entry_points(group="leakmap.attack", name="class_means")
    monkeypatch.delitem(sys.modules, "class_means", raising=False)
    monkeypatch.setattr(attacks, "_entries", dict(attacks._entries))
    attacks.add("class_means")(entry.load())
    log = tmp_path / "fits.log"
    return lambda: log.read_text().count("fit") if log.exists() else 0


PLAN = Plan(
    "convnet,width=4",
    "samples",
    threat=ThreatModel(public=8),
    attack=Spec("class_means"),
    image_size=16,
    victims=2,
)


def scores(store: Store) -> dict[str, tuple]:
    found = {key: store.read(key).score for key in sorted(store.keys())}
    return {key: (score.values, score.ranks, score.pictures.numpy().tobytes()) for key, score in found.items()}


def test_it_is_fitted_once_for_all_processes_and_once_more_after_an_interruption(tmp_path, fits):
    """One fit for the audited network, shared by attack, floor and swapped updates; one for the planted control's."""
    prepared, here, elsewhere = prepare(PLAN), Store(tmp_path / "here"), Store(tmp_path / "elsewhere")
    perform(PLAN, prepared, here)
    assert fits() == 2
    (tmp_path / "interrupt").touch()
    with pytest.raises(KeyboardInterrupt):
        perform(PLAN, prepared, elsewhere)
    assert fits() == 3
    perform(PLAN, prepared, elsewhere, Local(2))
    assert fits() == 5
    assert len(list((elsewhere.folder / "fitted").iterdir())) == 2
    assert scores(here) == scores(elsewhere)


def test_without_a_folder_the_process_keeps_it_and_a_damaged_file_is_fitted_anew(tmp_path, fits):
    main = prepare(PLAN).main
    trial = Trial(main.digest, PLAN.rule, PLAN.threat, PLAN.attack)
    first = run(trial, main)
    assert first.used == {"count", "public"}
    floor = run(replace(trial, scoring="metrics"), main)
    assert floor.score.values == first.score.values
    assert (floor.score.pose_ranks, floor.deranged) == ((), None), "what is not asked of a floor is not computed"
    assert first.score.pose_ranks
    assert first.deranged
    assert run(replace(trial, client=1), main).failure is None
    assert fits() == 1
    for expected in (2, 2, 3):
        if expected == 3:
            (kept,) = (tmp_path / "fitted").iterdir()
            kept.write_bytes(kept.read_bytes()[:-8])
        forget_fitted()
        again = run(trial, main, fitted_in=tmp_path / "fitted")
        assert torch.equal(again.score.pictures, first.score.pictures)
        assert fits() == expected
    forget_fitted()


def test_captured_clients_share_a_fit_where_they_got_the_same_weights(fits):
    main = prepare(replace(PLAN, victims=3)).main
    planned = [Trial(main.digest, PLAN.rule, PLAN.threat, PLAN.attack, client=client) for client in range(3)]
    sent = [seen_by_server(trial, main) for trial in planned]
    later = replace(main.network, weights={name: 1.5 * tensor for name, tensor in main.network.weights.items()})
    captured = replace(main, captured=(sent[0], sent[1], replace(sent[2], network=later)))
    assert [run(trial, captured).failure for trial in planned] == [None] * 3
    assert fits() == 2
    forget_fitted()
