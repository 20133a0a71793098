"""What keeps a search moving and near pictures: steps of one size, whitened waves, polish, a learned start, seconds."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from leakmap import LocalRule, ThreatModel, attack, attacks
from leakmap.attacker.attack import fit
from leakmap.attacker.attacks.strongest import strongest
from leakmap.attacker.budget import FEWEST, Pace, pace_within
from leakmap.attacker.learned.rehearsal import CLIENTS, ENOUGH, FINAL, FURTHER, rehearsals_of
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.spectrum import Likely, Whitened, spectrum_of
from leakmap.attacker.protocol import Fitted, nothing_kept
from leakmap.attacker.reconstruction import Reconstruction
from leakmap.attacker.setting import setting_of
from leakmap.attacker.suite import PORTFOLIO, Strongest
from leakmap.errors import BadSetting, NotApplicable, NotGranted
from leakmap.observation.contents import Public
from leakmap.observation.observation import Observation
from leakmap.seeds import generator
from tests.attacker.test_strongest import Failing
from tests.conftest import observed, pictures


def shown(observation: Observation, count: int) -> Observation:
    """With so many public pictures."""
    task = observation.network.task
    return replace(observation, public=Public(pictures(count, task, 3), torch.arange(count) % task.classes))


def test_white_numbers_stand_for_pictures_and_have_the_same_spread_in_public_ones(task):
    source = generator(0, "waves")
    coarse, fine = torch.randn(200, 3, 4, 4, generator=source), torch.randn(200, *task.shape, generator=source)
    x = torch.nn.functional.interpolate(coarse, size=task.shape[1:], mode="bilinear") + 0.05 * fine
    spectrum = spectrum_of(x)
    z = spectrum.white(x)
    assert torch.allclose(spectrum.pictures(z), x, atol=1e-4)
    assert z.mean(0).abs().max() < 1e-3
    assert torch.allclose(z.square().mean(0), torch.ones_like(z[0]), atol=1e-2)
    # A step of one size moves coarse waves more than fine ones, as pictures differ.
    first, last = torch.zeros_like(z[:1]), torch.zeros_like(z[:1])
    first[0, -1, 0, 1], last[0, -1, -1, -1] = 1, 1
    blank = spectrum.pictures(torch.zeros_like(first))
    assert (spectrum.pictures(first) - blank).norm() > 3 * (spectrum.pictures(last) - blank).norm()


def test_a_whitened_search_needs_public_pictures_and_stays_in_the_range_of_pictures(task):
    observation = observed("convnet,width=4", task, threat=ThreatModel("known", public=0))[1]
    for how in (GradientMatching(stages=(Whitened(),)), GradientMatching(measured=(Likely(0.1),))):
        assert "public" in how.needs
        with pytest.raises(NotGranted, match="public"):
            attack(observation, how)
    with pytest.raises(BadSetting, match="waves"):
        attacks.build("inverting_gradients,basis=whitened,median_every=5")
    granted = shown(observation, 16)
    how = GradientMatching(stages=(Whitened(),), descent=Descent(0.4, sign="unit"), steps=5)
    seen: list[torch.Tensor] = []

    def watching(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach().clone())
        return x.sum() * 0

    attack(granted, replace(how, priors=(watching,)))
    low, high = task.bounds(seen[0])
    assert all(bool((x >= low - 1e-3).all() and (x <= high + 1e-3).all()) for x in seen)
    assert not torch.equal(seen[0], seen[-1])


@pytest.mark.parametrize("sign", ["unit", "hard", "none"])
def test_a_single_huge_gradient_stops_adam_but_not_steps_of_one_size(sign):
    """What happens on a trained deep network, in one number: the spike is remembered for a thousand iterations."""
    descent, x = Descent(0.1, schedule="constant", sign=sign), torch.zeros(1, 4, requires_grad=True)
    optimizer = descent.start([x])
    places = []
    for step in range(60):
        gradient = torch.full((1, 4), 1e4 if step == 5 else 1.0)
        x.grad = descent.shape(gradient, step, 60, torch.Generator())
        optimizer.step()
        places.append(float(x.detach().mean()))
    moved = abs(places[-1] - places[-30])
    assert moved < 0.1 if sign == "none" else moved > 2.0


def test_an_update_that_vanishes_beside_the_observed_one_counts_as_none():
    """Its squares underflow, so that its cosine is noise, and a search would take it for a perfect match."""
    dot, square, target = (torch.tensor([v], dtype=torch.float64) for v in (1e-20, 1e-44, 1.0))
    for name in ("cosine", "layer_cosine"):
        value, a, b = DISTANCES[name](dot, square, target)
        assert float(value) == 1
        assert not a.any()
        assert not b.any()


def test_a_search_outlives_gradients_that_are_not_finite(task):
    observation = observed("convnet,width=8", task, threat=ThreatModel("known"))[1]
    calls: list[int] = []

    def rarely_broken(x: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        return x.sum() * (math.nan if len(calls) % 7 == 3 else 1e-6)

    found = attack(observation, GradientMatching(priors=(rarely_broken,), steps=60))
    assert torch.isfinite(found.pictures).all()
    assert found.objective < 0.9


def test_polish_goes_on_without_priors_where_the_term_is_near_its_floor(task):
    observation = observed("convnet,width=32", task, threat=ThreatModel("known"), count=1)[1]
    plain = attacks.build("inverting_gradients,tv=0.05,fade=1,steps=120")
    polished = attack(observation, replace(plain, polish=50), seed=1)
    assert polished.objective < 0.5 * attack(observation, plain, seed=1).objective
    far = attack(observation, replace(plain, steps=6, polish=3), seed=1)
    assert far.notes["plateau at iteration"] == "3", "what is far from its floor is not polished"
    assert plain.paced(50).polish == 0
    assert replace(plain, polish=40).paced(60).polish == 20


def test_a_learned_start_begins_at_the_inverse_and_is_held_there(task):
    observation = shown(observed("convnet,width=4,norm=batch", task, threat=ThreatModel("known"), count=2)[1], 24)
    first = attack(observation, "learned_inverse,clients=20", seed=2).pictures
    held, free = (
        attack(observation, f"learned_start,clients=20,steps=15,lr=0.2,near={near}", seed=2).pictures
        for near in (1e3, 0)
    )
    assert (held - first).abs().mean() < 0.5 * (free - first).abs().mean()
    start, inverse = attacks.build("learned_start,clients=20"), attacks.build("learned_inverse,clients=20")
    assert start.fits == inverse.fits, "fitted once"


def test_seconds_become_iterations_and_rehearsals_split_them(task):
    rule = LocalRule(mode="eval")
    observation = shown(observed("convnet,width=4", task, threat=ThreatModel("known"), rule=rule)[1], 40)
    setting = setting_of(observation)
    few, many = (
        pace_within(attacks.build("inverting_gradients"), setting, {}, observation, seconds, 0).steps
        for seconds in (1e-9, 1.0)
    )
    assert few == FEWEST
    assert many > 2 * few
    suite = strongest(budget=0.05, **{"learned_inverse.clients": 20})
    state = fit(suite, setting, 0, lambda fraction: None).state
    paces = {key.removeprefix("pace/"): Pace.of(t) for key, t in state.items() if key.startswith("pace/")}
    assert set(PORTFOLIO) <= set(paces)
    assert all(pace.steps >= FEWEST for pace in paces.values())
    assert not any(key.startswith("learned_start/") for key in state), "it shares the fit of learned_inverse"
    found = attack(observation, suite.restored(setting, state), seed=1)
    assert found.notes["won"] in {name for name, _ in suite.members}
    assert suite.cost.parts[-1].seconds == 0.05
    with pytest.raises(BadSetting, match="budget"):
        strongest(budget=1.0, steps=3)


@dataclass(frozen=True)
class Refusing(Failing):
    def fit(self, setting, seed, tick, kept):
        raise NotApplicable("it reads no such layer")


@dataclass(frozen=True)
class Unfit(Failing):
    def why_not(self, observation):
        return "it reads no such layer"


@pytest.mark.parametrize("member", [Refusing(), Unfit()])
def test_a_suite_of_which_no_member_can_rehearse_has_no_time_to_split(task, member):
    setting = setting_of(shown(observed("convnet,width=4", task, threat=ThreatModel("known"))[1], 40))
    suite = Strongest((("own", member),), "v1", rehearses="own", seconds=0.05)
    assert not [key for key in fit(suite, setting, 0, lambda fraction: None).state if not key.startswith("refused/")]


def test_without_rehearsals_the_seconds_are_shared_and_the_term_chooses_among_no_portfolio(task):
    observation = observed("convnet,width=4", task, threat=ThreatModel("known", public=0))[1]
    found = attack(observation, "strongest,budget=0.05", seed=1)
    attempts = {attempt.name: attempt for attempt in found.attempts}
    assert attempts["inverting_gradients"].pictures is not None
    assert all(attempts[name].pictures is None and "rehearsed" in attempts[name].note for name in ("low_variation",))


def test_a_member_that_is_beaten_on_the_first_clients_is_tried_on_no_more_and_never_wins(task):
    rule = LocalRule(mode="eval")
    observation = shown(observed("convnet,width=4", task, threat=ThreatModel("known"), rule=rule, count=1)[1], 40)
    rehearsals = rehearsals_of(setting_of(observation), 0)
    assert rehearsals is not None
    calls: list[int] = []

    def guess(seen: Observation, seed: int, tick: object) -> Reconstruction:
        calls.append(seed)
        return Reconstruction(torch.rand(1, *task.shape, generator=generator(seed, "guess")), seen.labels, 0.0)

    member = Fitted(frozenset(), guess)
    best = torch.tensor([0.9, 0.9, -1.0, -1.0, -1.0, -1.0])
    found = rehearsals.ncc(member, "guess", 0, nothing_kept, lambda fraction: None, clients=rehearsals.first, best=best)
    assert len(calls) == ENOUGH
    assert found.shape == best.shape
    assert float(found.mean()) < float(best.mean())
    rehearsals.ncc(member, "guess", 0, nothing_kept, lambda fraction: None, clients=rehearsals.first, best=-best)
    assert len(calls) == ENOUGH + len(best), "where it is better once, it goes on"


@dataclass(frozen=True)
class Scripted(Failing):
    """Comes so near to the pictures of the rehearsals, one after the other."""

    pictures: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    near: tuple[float, ...] = ()
    calls: list[int] = field(default_factory=list)

    def __call__(self, observation: Observation, seed: int, tick: object) -> Reconstruction:
        place = len(self.calls)
        self.calls.append(seed)
        noise = torch.rand(self.pictures[0].shape, generator=generator(seed, "noise"))
        mixed = self.near[place] * self.pictures[place] + (1 - self.near[place]) * noise
        return Reconstruction(mixed, observation.labels, 0.0)


@pytest.mark.parametrize(("lucky", "calls"), [((1, 0, 1, 1, 0, 1), 18), ((1, 1, 1, 1, 1, 0.9), 6)])
def test_the_two_best_rehearse_further_where_the_first_clients_leave_open_which_is_better(task, lucky, calls):
    rule = LocalRule(mode="eval")
    observation = observed("convnet,width=4", task, threat=ThreatModel("known"), rule=rule, count=1)[1]
    setting = setting_of(shown(observation, FINAL * FURTHER))
    rehearsals = rehearsals_of(setting, 0)
    assert rehearsals is not None
    assert (len(rehearsals.first), len(rehearsals.all)) == (CLIENTS, FINAL)
    steady = Scripted(pictures=rehearsals.pictures, near=(0.5,) * FINAL)
    wild = Scripted(pictures=rehearsals.pictures, near=(*lucky, *(0.0,) * (FINAL - CLIENTS)))
    suite = Strongest((("even_steps", steady), ("whitened", wild)), "v2", rehearses="both")
    state = suite.fit(setting, 0, lambda fraction: None, nothing_kept).state
    assert (len(steady.calls), len(wild.calls)) == (calls, calls)
    means = {name: float(state[f"rehearsed/{name}"].mean()) for name in ("even_steps", "whitened")}
    first = {name: float(state[f"rehearsed/{name}"][:CLIENTS].mean()) for name in means}
    assert first["whitened"] > first["even_steps"], "by luck"
    assert (means["even_steps"] > means["whitened"]) == (calls == FINAL)
