"""The pieces of gradient matching: what each must leave unchanged, and what it must find."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from leakmap import LocalRule, ThreatModel, attack, build_network, observe, simulate
from leakmap.attacker.matching.context import Guess, SearchContext
from leakmap.attacker.matching.decoders import Free, Pixels, PixelsOfEpochs, median_filter, merge_epochs
from leakmap.attacker.matching.descent import Descent
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.matching.masks import Masked
from leakmap.attacker.matching.priors import SamePictures, TotalVariation
from leakmap.attacker.matching.starts import first_guess
from leakmap.attacker.matching.terms import TaskLoss
from leakmap.attacker.matching.weighting import ByDepth, Largest, Partial
from leakmap.errors import BadSetting, UsageError
from tests.conftest import batch_of, matching_term, observed, pictures

DROPPING = "resnet,blocks=1-1,width=8,dropout=0.5"


def same(left, right):
    return torch.equal(left.pictures, right.pictures)


SIGNED = "inverting_gradients,tv=0.01,fade=1.0,lr=0.3,sign=hard,steps=6"


@pytest.mark.parametrize(
    ("plain", "cosine"),
    [
        ("fedleak_style,share=1.0,flatness=0,steps=6", SIGNED),
        ("dropout_inversion,steps=6", SIGNED),
        ("multiscale,stages=1,lr=0.3,steps=6", SIGNED),
        ("dimitrov,lr=0.3,steps=6", SIGNED),
        ("recovered_statistics,weight=0,steps=6", "inverting_gradients,steps=6"),
    ],
)
def test_an_attack_without_its_idea_is_cosine_matching_bit_by_bit(plain, cosine, task):
    _, observation = observed("resnet,blocks=1-1,width=8", task, threat=ThreatModel("known"))
    assert same(attack(observation, plain, seed=3), attack(observation, cosine, seed=3))


@pytest.mark.parametrize(
    "changed",
    [
        GradientMatching(steps=6, weighting=Largest(3)),
        GradientMatching(steps=6, weighting=ByDepth()),
        GradientMatching(steps=6, weighting=Partial(0.3)),
        GradientMatching(steps=6, weighting=Partial(0.3, "magnitude")),
        GradientMatching(steps=6, flatness=0.5),
        GradientMatching(steps=6, median_every=2),
        GradientMatching(steps=6, restarts=2, group=1.0),
        GradientMatching(steps=6, descent=Descent(noise=0.5)),
        GradientMatching(steps=6, descent=Descent(sign="soft")),
        GradientMatching(steps=6, descent=Descent(warmup=3)),
        GradientMatching(steps=6, stages=(Pixels(0.5), Pixels())),
        GradientMatching(steps=6, start="tiles"),
        GradientMatching(steps=6, soft_labels=True),
    ],
)
def test_every_piece_has_an_effect_and_repeats(changed, task):
    _, observation = observed("resnet,blocks=1-1,width=8", task, threat=ThreatModel("known"))
    found = attack(observation, changed, seed=3)
    assert not same(found, attack(observation, GradientMatching(steps=6), seed=3))
    assert same(found, attack(observation, changed, seed=3))


def test_largest_keeps_the_largest_tensors_and_partial_its_share():
    target = [torch.full((4,), 3.0), torch.full((50, 40), 1e-3), torch.full((2,), 1.0)]
    assert [float(w) for w in Largest(2)(target, 0, 0)] == [1, 0, 1]
    kept = Partial(0.3)(target, 0, 0)[1]
    assert 0.25 < float(kept.mean()) < 0.35
    assert not torch.equal(kept, Partial(0.3)(target, 1, 0)[1])
    source = torch.arange(10.0)
    assert Partial(0.3, "magnitude")([source], 0, 0)[0].tolist() == [0] * 7 + [1] * 3


class Recorder(nn.Module):
    """Dropout that remembers its masks."""

    def __init__(self, rate, kept):
        super().__init__()
        self.rate, self.kept = rate, kept

    def forward(self, x):
        mask = (torch.rand(x.shape) >= self.rate).to(x)
        self.kept.append(mask)
        return x * mask / (1 - self.rate)


def test_with_the_true_masks_the_distance_at_the_truth_is_zero(task):
    network, batch = build_network(task, DROPPING), batch_of(3, task)
    round = simulate(network, LocalRule(), batch, seed=1)
    observation = observe(round, ThreatModel("known"))
    context = SearchContext(observation, LocalRule(), batch.y, 0)
    engine = Engine(context, DISTANCES["cosine"], kind="exact", masks=True)
    x = task.normalize(batch.pictures)
    engine.record_masks(x, batch.y)
    shapes = [shape for shape, _ in engine.masks.shapes]
    assert len(shapes) == 2
    kept = []
    module = network.module().train()
    for block in module.stages:
        block.dropout = Recorder(0.5, kept)
    gradient = torch.autograd.grad(network.loss()(module(x), batch.y), list(module.parameters()))
    names = [name for name, _ in module.named_parameters()]
    truth = replace(observation, update=replace(observation.update, tensors=dict(zip(names, gradient, strict=True))))
    engine = Engine(replace(context, observation=truth), DISTANCES["cosine"], kind="exact", masks=True)
    engine.record_masks(x, batch.y)
    assert [tuple(mask.shape) for mask in kept] == shapes
    assert float(engine.value(Guess(x, batch.y, tuple(kept)))) < 1e-6
    assert float(engine.value(Guess(x, batch.y, tuple(torch.ones_like(mask) for mask in kept)))) > 1e-2


def test_masks_have_the_shape_that_each_kind_of_dropout_draws():
    class Masks:
        def take(self, shape, rate):
            self.shape = shape
            return torch.zeros(shape)

    masks, x = Masks(), torch.ones(2, 3, 4, 5)
    for kind, shape in {
        "element": (2, 3, 4, 5),
        "channel": (2, 3, 1, 1),
        "example": (2, 1, 1, 1),
        "batch": (1,) * 4,
    }.items():
        assert Masked(0.5, kind, masks)(x).abs().max() == 0
        assert masks.shape == shape


def test_masks_are_searched_and_counted(task):
    _, observation = observed(DROPPING, task, threat=ThreatModel("known"))
    found = attack(observation, "dropout_inversion,steps=3")
    expected = (2 * 8 * 16 * 16 + 2 * 16 * 8 * 8) / (2 * 3 * 16 * 16)
    assert found.notes["mask values per pixel value"] == pytest.approx(expected, abs=1e-3)
    plain = attack(observation, "inverting_gradients,steps=3")
    assert not same(found, plain)


def test_several_epochs_in_another_order_are_searched_apart_and_merged(task):
    rule = LocalRule("delta", epochs=2, batch_size=2, lr=0.1)
    round, observation = observed("convnet,width=4", task, rule=rule, threat=ThreatModel("known"), count=4)
    context = SearchContext(observation, rule, round.batch.y, 0)
    truth = task.normalize(round.batch.pictures)
    free = PixelsOfEpochs()(context, truth)
    assert free.decode().shape == (2, 4, *task.shape)
    engine = Engine(context, DISTANCES["cosine"], kind="exact")
    repeated = torch.stack([truth, truth])
    assert float(engine.value(Guess(repeated, round.batch.y))) == pytest.approx(0, abs=1e-6)
    shuffled = torch.stack([truth, truth[[2, 1, 0, 3]]])
    assert float(engine.value(Guess(shuffled, round.batch.y))) > 1e-6
    one_class = torch.zeros(4, dtype=torch.int64)
    assert torch.allclose(merge_epochs(shuffled, one_class), truth, atol=1e-6)
    found = attack(observation, "dimitrov,steps=3")
    assert found.pictures.shape == (4, *task.shape)


def test_the_order_invariant_prior_does_not_see_the_order(task):
    x = pictures(8, task).view(2, 4, *task.shape)
    prior = SamePictures(1.0)
    permuted = torch.stack([x[0], x[1, [3, 0, 2, 1]]])
    assert float(prior(permuted)) == pytest.approx(float(prior(x)), abs=1e-7)
    assert float(prior(torch.stack([x[0], x[0, [1, 2, 3, 0]]]))) == pytest.approx(0, abs=1e-7)
    assert float(prior(x)) > 1e-4


def test_the_median_filter_removes_a_single_pixel(task):
    x = torch.zeros(1, 3, 8, 8)
    x[0, 0, 3, 3] = 1
    assert median_filter(x).abs().max() == 0


@pytest.mark.parametrize("kind", ["normal", "truncated", "uniform", "zeros", "tiles"])
def test_starts_have_the_shape_asked_for_and_repeat(kind):
    first, second = (first_guess(kind, (2, 3, 7, 9), torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == (2, 3, 7, 9)
    assert torch.equal(first, second)


def test_the_first_attack_finds_picture_and_label_of_a_smooth_network(task):
    network = build_network(task, "convnet,width=12,depth=2,activation=sigmoid", seed=4)
    with torch.no_grad():
        weights = {name: torch.rand(t.shape, generator=torch.Generator().manual_seed(i)) - 0.5
                   for i, (name, t) in enumerate(network.weights.items())}  # fmt: skip
    round = simulate(replace(network, weights=weights), LocalRule(mode="eval"), batch_of(1, task, 2))
    found = attack(observe(round, ThreatModel()), "dlg,steps=60", seed=0)
    assert found.y.tolist() == round.batch.y.tolist()
    error = (found.pictures - round.batch.pictures).square().mean()
    assert -10 * float(error.log10()) > 20


def test_restarts_that_leave_the_finite_numbers_are_counted_and_not_returned(task):
    _, observation = observed("convnet,width=4", task)
    calls = []

    def prior(x):
        calls.append(0)
        return x.sum() * (float("nan") if len(calls) == 1 else 0.0)

    found = attack(observation, GradientMatching(steps=2, restarts=2, priors=(prior,)))
    assert found.notes["restarts lost"] == 1
    assert found.notes["restart"] == 1


GENERATOR = """
import torch
from torch import nn

class Paint(nn.Module):
    latent = (4,)
    def __init__(self, task):
        super().__init__()
        torch.manual_seed(0)
        self.task, self.layer = task, nn.Linear(4, 3 * 16 * 16)
    def forward(self, z):
        return torch.sigmoid(self.layer(z)).view(-1, 3, 16, 16)

def build(task):
    return Paint(task)

def wrong(task):
    return nn.Linear(2, 2)
"""


def test_a_users_generator_is_searched_in_latent_and_weights(task, tmp_path):
    path = tmp_path / "paint.py"
    path.write_text(GENERATOR)
    _, observation = observed("convnet,width=16", task, rule=LocalRule(mode="eval"), count=1)
    found = attack(observation, f"generator,build={path}:build,steps=60,lr=0.05", seed=1)
    assert min(found.curve[30:]) < min(found.curve[:5])
    with pytest.raises(UsageError, match="'latent'"):
        attack(observation, f"generator,build={path}:wrong,steps=2")
    other = tmp_path / "other.py"
    other.write_text(GENERATOR.replace("view(-1, 3, 16, 16)", "view(-1, 3, 8, 32)"))
    with pytest.raises(BadSetting, match="paints"):
        attack(observation, f"generator,build={other}:build,steps=2")


def test_priors_take_pictures_of_several_epochs(task):
    x = pictures(4, task)
    assert float(TotalVariation(1.0)(x.view(2, 2, *task.shape))) == pytest.approx(float(TotalVariation(1.0)(x)))


def test_a_blind_search_goes_on_from_stage_to_stage(task):
    _, observation = observed("convnet,width=4", task, threat=ThreatModel("known"))
    floor = GradientMatching(steps=40, stages=(Pixels(0.25), Pixels()), descent=Descent(0.3)).blind()
    found = attack(observation, floor, seed=1).pictures
    coarse = torch.nn.functional.avg_pool2d(found, 4)
    smoothed = torch.nn.functional.interpolate(coarse, size=task.shape[1:], mode="bilinear")
    noise = attack(observation, replace(floor, stages=(Pixels(),), steps=1), seed=1).pictures
    assert (found - smoothed).abs().mean() < 0.5 * (noise - smoothed).abs().mean()


def test_a_distance_that_is_not_a_number_stays_one():
    broken = torch.tensor([torch.nan], dtype=torch.float64)
    assert all(DISTANCES[name](broken, broken, broken)[0].isnan() for name in DISTANCES)


@pytest.mark.parametrize(
    "rule", [LocalRule(accumulate=2), LocalRule("delta", batch_size=3, epochs=2)], ids=["micro", "steps"]
)
def test_the_clients_loss_pulls_at_every_picture_of_every_pass(rule, task):
    observation = observed("convnet,width=4", task, rule=rule, count=4)[1]
    context = SearchContext(observation, rule, torch.arange(4), 0)
    guess = Guess(task.normalize(pictures(4, task)), context.y)
    pull = Engine(context, DISTANCES["cosine"], weight=0.0, penalties=[TaskLoss(1.0)(context)]).value_and_grad(guess)
    assert (pull.gradient[0].flatten(1).norm(dim=1) > 0).all()


def test_features_are_left_out_behind_several_forward_passes(task):
    for rule in (LocalRule("delta", batch_size=2), LocalRule(accumulate=2)):
        _, observation = observed("convnet,width=4", task, rule=rule, threat=ThreatModel("known"), count=4)
        assert "several forward passes" in attack(observation, "modern,steps=2").notes["known"]


def test_iterates_are_compared_over_all_entries_where_a_random_share_is_matched(task):
    _, observation = observed("convnet,width=8", task, threat=ThreatModel("known"), count=1)
    found = attack(observation, GradientMatching(steps=30, weighting=Partial(0.3, every=5)), seed=0)
    context = SearchContext(observation, LocalRule(), found.y, 0)
    assert matching_term(context, task.normalize(found.pictures)) == pytest.approx(found.objective, rel=1e-3)


class Own:
    """A user's decoder: pixels, from where it likes."""

    def __init__(self, start=None):
        self.start = start

    def __call__(self, context, start, before=None):
        x = (start if self.start is None else self.start).clone().requires_grad_()
        low, high = context.observation.network.task.bounds(x)

        def project():
            with torch.no_grad():
                x.clamp_(low, high)

        project()
        return Free([x], lambda: x, project)


def test_a_decoder_of_the_users_own(task):
    round, observation = observed("convnet,width=8", task, threat=ThreatModel("known"))
    plain = attack(observation, GradientMatching(steps=6), seed=3)
    assert same(attack(observation, GradientMatching(steps=6, stages=(Own(),)), seed=3), plain)
    truth = task.normalize(round.batch.pictures)
    stays = attack(observation, GradientMatching(steps=6, stages=(Own(truth),), priors=()), seed=3)
    assert stays.objective < 1e-6
    assert (stays.pictures - round.batch.pictures).abs().max() < 1e-5


def test_a_search_on_a_plateau_ends_early_and_says_so(task):
    _, observation = observed("convnet,width=4", task, count=1)
    still = GradientMatching(steps=200, patience=25, descent=Descent(1e-9, schedule="constant"))
    found = attack(observation, still)
    assert found.notes["plateau at iteration"] == "26"
    moving = attack(observation, replace(still, descent=Descent(0.1)))
    assert "plateau at iteration" not in moving.notes or int(moving.notes["plateau at iteration"]) > 26
    patient = attack(observation, replace(still, patience=0))
    assert "plateau at iteration" not in patient.notes


def test_priors_fade_as_the_step_size_does(task):
    _, observation = observed("convnet,width=4", task, count=1)
    settings = "tv=1.0,lr=0.3,steps=60"
    kept, faded = (attack(observation, f"inverting_gradients,fade={fade},{settings}", seed=0) for fade in (1.0, 0.0))
    assert faded.objective < 0.8 * kept.objective


def test_patience_does_not_go_with_stages():
    with pytest.raises(BadSetting, match="single stage"):
        GradientMatching(patience=25, stages=(Pixels(), Pixels()))
