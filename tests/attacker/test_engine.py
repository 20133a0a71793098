"""The engine against graphs written out: what it returns, when it distrusts itself, what it leaves behind."""

import gc
import math
import weakref
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models import mobilenet_v3_small

from leakmap import LocalRule, Task, ThreatModel, Update, attack, build_network, observe, simulate
from leakmap.attacker.matching import engine as engine_module
from leakmap.attacker.matching import selfcheck
from leakmap.attacker.matching.context import Guess, SearchContext, Trace
from leakmap.attacker.matching.derivatives import Exact, Frozen, _full_precision
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine
from leakmap.attacker.matching.masks import draw_masks, open_masks
from leakmap.attacker.matching.selfcheck import AGREEMENT, LADDER, REFERENCE, SelfCheck
from leakmap.attacker.matching.statistics import Statistics
from leakmap.attacker.matching.terms import TaskLoss
from leakmap.attacker.matching.weighting import Partial
from leakmap.client_step import Training, arrange
from leakmap.errors import NotApplicable
from leakmap.models.adapt import freeze_running_statistics
from tests.conftest import batch_of, observed

BATCHNORM = "convnet,width=4,norm=batch,head=pool"
DROPPING = "resnet,blocks=1-1,width=4,dropout=0.5"
FOUR_STEPS = LocalRule("delta", epochs=2, batch_size=2, lr=0.1)
RULES = {
    "gradient": LocalRule(),
    "gradient in inference mode": LocalRule(mode="eval"),
    "gradient of two micro-batches": LocalRule(accumulate=2),
    "one step": LocalRule("delta", lr=0.1),
    "four steps": FOUR_STEPS,
    "four steps in inference mode": replace(FOUR_STEPS, mode="eval"),
    "momentum and decay": replace(FOUR_STEPS, momentum=0.9, weight_decay=0.01),
    "proximal term, clipped steps": replace(FOUR_STEPS, proximal=0.5, clip_norm=0.8),
    "nesterov, falling rate": replace(FOUR_STEPS, momentum=0.9, nesterov=True, schedule="cosine"),
    "adam": LocalRule("delta", optimizer="adam", epochs=2, weight_decay=0.01),
    "adamw, partial last batch": LocalRule("delta", optimizer="adamw", batch_size=3, weight_decay=0.1),
    "shuffled": replace(FOUR_STEPS, shuffle=True),
    "micro-batches in steps": replace(FOUR_STEPS, accumulate=2),
}


def doubled(context: SearchContext) -> SearchContext:
    """The same in float64."""

    def double(tensors):
        return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}

    network, update = context.observation.network, context.observation.update
    network = replace(network, weights=double(network.weights))
    observation = replace(context.observation, network=network, update=replace(update, tensors=double(update.tensors)))
    return replace(context, observation=observation)


def context_of(model, task, rule=None, count=4, y=None) -> SearchContext:
    rule = rule or LocalRule()
    round, observation = observed(model, task, rule=rule, count=count)
    return SearchContext(observation, rule, round.batch.y if y is None else y, 0)


def context_of_network(network, rule, count) -> SearchContext:
    """Of a user's own network."""
    round = simulate(network, rule, batch_of(count, network.task))
    return SearchContext(observe(round, ThreatModel()), rule, round.batch.y, 0)


def guess_of(context: SearchContext, task: Task, *shape: int, masks: tuple[Tensor, ...] = (), seed: int = 0) -> Guess:
    """Random pictures; one-sided differences are worst where nothing is special."""
    dtype = next(iter(context.observation.update.tensors.values())).dtype
    x = torch.randn(
        *(shape or (len(context.y),)), *task.shape, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )
    y = context.y.to(dtype) if context.y.is_floating_point() else context.y
    return Guess(x, y, masks)


def unrolled(training: Training, rule: LocalRule, x: Tensor, y: Tensor) -> list[Tensor]:
    """What the client would share, with the graph of all its steps."""
    parameters, memory = training.start, []
    for step in range(rule.steps(len(y))):
        loss = training.objective(parameters, *training.batch(step, x, y))
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        if rule.share == "gradient":
            return list(gradients)
        parameters, memory = training.advance(step, len(y), parameters, gradients, memory)
    return [after - before.detach() for after, before in zip(parameters, training.start, strict=True)]


def written_out(context, guess, name="cosine", penalties=(), masks=False):
    """Matching term, penalties and gradient, by one graph of everything."""
    network, rule = context.observation.network, context.rule
    module = network.module()
    given = open_masks(module, rule) if masks else None
    module = freeze_running_statistics(arrange(module, rule, dropout=False))
    trace = Trace(module, dict.fromkeys(name for penalty in penalties for name in penalty.layers))
    leaves = [tensor.clone().requires_grad_() for tensor in guess.movable()]
    if given is not None:
        given.give(leaves[-len(guess.masks) :])
    y = leaves[1] if guess.y.is_floating_point() else guess.y
    training = Training(module, network.weights, rule, network.loss())
    shared = dict(zip(training.names, unrolled(training, rule, leaves[0], y), strict=True))
    targets = {name: tensor.flatten().double() for name, tensor in context.observation.update.tensors.items()}
    parts = {name: shared[name].flatten().double() for name in targets}
    own, target = torch.cat(list(parts.values())), torch.cat(list(targets.values()))
    cosine = own @ target / (own.norm() * target.norm())
    match = {
        "cosine": lambda: 1 - cosine,
        "angular": lambda: cosine.acos() / math.pi,
        "layer_cosine": lambda: torch.stack(
            [1 - parts[n] @ t / (parts[n].norm() * t.norm()) for n, t in targets.items()]
        ).mean(),
        "squared": lambda: (own - target).square().sum() / target.square().sum(),
    }[name]()
    seen = trace.take()
    penalty = sum((penalty.value(seen).double() for penalty in penalties), torch.zeros_like(match))
    gradient = torch.autograd.grad(match + penalty, leaves, allow_unused=True, materialize_grads=True)
    return match.detach(), penalty.detach(), list(gradient)


def flat(tensors):
    return torch.cat([tensor.flatten().double() for tensor in tensors])


def unlike(first, second) -> float:
    """Distance over size, tensor by tensor; the largest."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True))


def cosine(first, second) -> float:
    return float(F.cosine_similarity(flat(first), flat(second), dim=0))


def agrees(pull, direct, within):
    match, penalty, gradient = direct
    assert float(pull.match) == pytest.approx(float(match), rel=within, abs=1e-12)
    assert float(pull.penalty) == pytest.approx(float(penalty), rel=within, abs=1e-12)
    assert unlike(pull.gradient, gradient) < within


# Exact: one graph of everything gives the same.


@pytest.mark.parametrize("name", list(DISTANCES))
@pytest.mark.parametrize("rule", [LocalRule(), LocalRule(share="delta", epochs=2, lr=0.1)], ids=["gradient", "delta"])
def test_the_engines_gradient_equals_plain_double_backward(name, rule, task):
    context = context_of("convnet,width=4,activation=tanh", task, rule, 2)
    guess = guess_of(context, task)
    pull = Engine(context, DISTANCES[name], kind="exact").value_and_grad(guess)
    agrees(pull, written_out(context, guess, name), 1e-4)


@pytest.mark.parametrize("name", RULES)
def test_local_steps_pulled_back_one_by_one_equal_their_unrolled_graph(name, task):
    context = doubled(context_of(BATCHNORM, task, RULES[name]))
    guess = guess_of(context, task)
    pull = Engine(context, DISTANCES["cosine"], kind="exact").value_and_grad(guess)
    agrees(pull, written_out(context, guess), 1e-7)


@pytest.mark.parametrize("rule", [FOUR_STEPS, replace(FOUR_STEPS, optimizer="adam")], ids=["sgd", "adam"])
def test_pictures_of_every_epoch_have_gradients_of_their_own(rule, task):
    context = doubled(context_of(BATCHNORM, task, rule))
    guess = guess_of(context, task, 2, 4)
    pull = Engine(context, DISTANCES["cosine"], kind="exact").value_and_grad(guess)
    agrees(pull, written_out(context, guess), 1e-7)
    first, second = pull.gradient[0]
    assert 0.1 < unlike([first], [second]) < math.inf
    assert 0.1 < unlike([second], [first]) < math.inf


def soft(count, classes, seed=0):
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)).softmax(1)


@pytest.mark.parametrize("rule", [LocalRule(), FOUR_STEPS], ids=["gradient", "four steps"])
def test_soft_labels_are_pulled_too(rule, task):
    context = doubled(context_of(BATCHNORM, task, rule, y=soft(4, task.classes)))
    guess = guess_of(context, task)
    pull = Engine(context, DISTANCES["cosine"], kind="exact").value_and_grad(guess)
    assert [gradient.shape for gradient in pull.gradient] == [guess.x.shape, guess.y.shape]
    agrees(pull, written_out(context, guess), 1e-7)


def with_masks(context, task, kind, **more):
    engine = Engine(context, DISTANCES["cosine"], kind=kind, masks=True, **more)
    plain = guess_of(context, task)
    engine.record_masks(plain.x, plain.y)
    drawn = draw_masks(engine.masks.shapes, plain.x, torch.Generator().manual_seed(0))
    masks = tuple(0.1 + 0.8 * mask for mask in drawn)
    return engine, replace(plain, masks=masks)


@pytest.mark.parametrize("rule", [LocalRule(), FOUR_STEPS], ids=["gradient", "four steps"])
def test_dropout_masks_are_pulled_too(rule, task):
    context = doubled(context_of(DROPPING, task, rule, y=soft(4, task.classes)))
    engine, guess = with_masks(context, task, "exact")
    pull = engine.value_and_grad(guess)
    assert len(pull.gradient) == 2 + 2 * rule.steps(4)
    agrees(pull, written_out(context, guess, masks=True), 1e-7)


@pytest.mark.parametrize("rule", [LocalRule(), LocalRule(accumulate=2), FOUR_STEPS], ids=["one", "micro", "four steps"])
def test_penalties_read_all_forward_passes_of_the_client(rule, task):
    context = doubled(context_of(BATCHNORM, task, rule))
    penalties = [Statistics("running", 0.1)(context), TaskLoss(0.3)(context)]
    guess = guess_of(context, task)
    pull = Engine(context, DISTANCES["cosine"], kind="exact", penalties=penalties).value_and_grad(guess)
    assert float(pull.penalty) > 0.01
    agrees(pull, written_out(context, guess, penalties=penalties), 1e-7)


@pytest.mark.parametrize("kind", ["exact", "frozen"])
def test_where_only_penalties_pull_the_update_does_not_count(kind, task):
    context = doubled(context_of(BATCHNORM, task, FOUR_STEPS))
    penalties = [Statistics("running", 0.1)(context)]
    guess = guess_of(context, task)
    pull = Engine(context, DISTANCES["cosine"], kind=kind, weight=0.0, penalties=penalties).value_and_grad(guess)
    other = replace(context.observation, update=replace(context.observation.update, tensors={
        name: -tensor.square() for name, tensor in context.observation.update.tensors.items()
    }))  # fmt: skip
    again = Engine(replace(context, observation=other), DISTANCES["cosine"], weight=0.0, penalties=penalties)
    assert torch.equal(again.value_and_grad(guess).gradient[0], pull.gradient[0])
    both = written_out(context, guess, penalties=penalties)[2]
    alone = [a - b for a, b in zip(both, written_out(context, guess)[2], strict=True)]
    assert unlike(pull.gradient, alone) < 1e-7


@pytest.mark.parametrize("kind", ["exact", "frozen"])
def test_what_was_not_shared_pulls_nothing(kind, task):
    context = doubled(context_of(BATCHNORM, task, FOUR_STEPS))
    update = context.observation.update
    some = replace(update, tensors=dict(list(update.tensors.items())[2:5]))
    context = replace(context, observation=replace(context.observation, update=some))
    guess = guess_of(context, task)
    pull = Engine(context, DISTANCES["layer_cosine"], kind=kind).value_and_grad(guess)
    agrees(pull, written_out(context, guess, "layer_cosine"), 1e-7 if kind == "exact" else 1e-3)


def test_a_weight_scales_the_matching_term_and_not_its_value(task):
    context = doubled(context_of(BATCHNORM, task))
    guess = guess_of(context, task)
    one, three = (
        Engine(context, DISTANCES["cosine"], kind="exact", weight=w).value_and_grad(guess) for w in (1.0, 3.0)
    )
    assert float(one.match) == float(three.match)
    assert unlike(three.gradient, [3 * gradient for gradient in one.gradient]) < 1e-12


def test_a_random_share_of_the_entries_pulls_alone(task):
    context = doubled(context_of(BATCHNORM, task, FOUR_STEPS))
    guess = guess_of(context, task)
    engine = Engine(context, DISTANCES["squared"], kind="exact", weighting=Partial(0.3, every=0))
    weights = Partial(0.3, every=0)(list(context.observation.update.tensors.values()), 0, context.seed)
    tensors = {
        name: tensor * weight.double()
        for (name, tensor), weight in zip(context.observation.update.tensors.items(), weights, strict=True)
    }
    network, rule = context.observation.network, context.rule
    x = guess.x.clone().requires_grad_()
    module = freeze_running_statistics(arrange(network.module(), rule, dropout=False))
    shared = unrolled(Training(module, network.weights, rule, network.loss()), rule, x, guess.y)
    own, target = flat(s * w for s, w in zip(shared, weights, strict=True)), flat(tensors.values())
    value = (own - target).square().sum() / target.square().sum()
    pull = engine.value_and_grad(guess)
    assert float(pull.match) == pytest.approx(float(value.detach()), rel=1e-9)
    assert unlike(pull.gradient, torch.autograd.grad(value, [x])) < 1e-7


def test_an_update_of_zeros_has_distance_one_and_no_gradient(task):
    round, observation = observed("mlp,hidden=8", task)
    zero = Update("gradient", {name: torch.zeros_like(t) for name, t in observation.update.tensors.items()})
    for kind in ("exact", "frozen", "auto"):
        engine = Engine(
            SearchContext(replace(observation, update=zero), LocalRule(), round.batch.y, 0),
            DISTANCES["cosine"],
            kind=kind,
        )
        pull = engine.value_and_grad(Guess(torch.randn(2, *task.shape), round.batch.y))
        assert float(pull.match) == 1
        assert pull.gradient[0].abs().max() == 0


class Shifted(nn.Module):
    """Two parameters with one and the same gradient, in torch's memory too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(1, 4, 8, 8)), nn.Parameter(torch.ones(1, 4, 8, 8))

    def forward(self, x):
        return (x + self.a + self.b).tanh()


@pytest.mark.parametrize("kind", ["exact", "frozen"])
def test_parameters_that_share_their_gradients_memory_are_pulled_apart(kind, task):
    context = doubled(own_context(task, Shifted(), count=1))
    assert torch.equal(context.observation.update.tensors["1.a"], context.observation.update.tensors["1.b"])
    guess = guess_of(context, task)
    pull = Engine(context, DISTANCES["squared"], kind=kind).value_and_grad(guess)
    agrees(pull, written_out(context, guess, "squared"), 1e-7 if kind == "exact" else 1e-3)


def test_the_value_alone_is_that_of_the_pull(task):
    context = context_of(BATCHNORM, task, FOUR_STEPS)
    guess = guess_of(context, task)
    for kind in ("exact", "frozen"):
        engine = Engine(context, DISTANCES["cosine"], kind=kind, penalties=[TaskLoss(0.3)(context)])
        assert torch.equal(engine.value(guess), engine.value_and_grad(guess).match)


# Frozen: differences in float32 agree with double backward.


def both(context, guess, **more):
    return [Engine(context, DISTANCES["cosine"], kind=k, **more).value_and_grad(guess) for k in ("frozen", "exact")]


def close(frozen, exact):
    """In direction and in length."""
    assert float(frozen.match) == pytest.approx(float(exact.match), rel=1e-5)
    for found, true in zip(frozen.gradient, exact.gradient, strict=True):
        assert cosine([found], [true]) > AGREEMENT
        assert float(found.norm()) == pytest.approx(float(true.norm()), rel=0.02)


MODELS = {
    "relu": "convnet,width=8",
    "relu and batch norm": BATCHNORM,
    "tanh": "convnet,width=8,activation=tanh",
    "resnet": "resnet,blocks=1-1,width=8",
    "pre-activation resnet": "resnet,blocks=1-1,width=8,preact=true",
    "vit": "vit,dim=24,depth=2",
    "max pooling": "resnet,blocks=1,width=8,stem=imagenet",
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_differences_with_frozen_switches_agree_with_double_backward(model, mode, task):
    context = context_of(model, task, LocalRule(mode=mode))
    close(*both(context, guess_of(context, task)))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_differences_agree_on_hard_swishes(mode):
    size, count = (64, 4) if mode == "train" else (32, 1)
    task = Task((3, size, size), 10, (0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    module = mobilenet_v3_small(num_classes=10, width_mult=0.5)
    if mode == "eval":
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None
        with torch.no_grad():
            module.train()(torch.randn(16, *task.shape))
    context = context_of_network(build_network(task, module), LocalRule(mode=mode, dropout=0.0), count)
    close(*both(context, guess_of(context, task)))


class Attention(nn.Module):
    """Over positions, by torch's own kernel, whose fused forms have no double backward."""

    def forward(self, x):
        tokens = x.flatten(2).mT.contiguous()[:, None]
        return F.scaled_dot_product_attention(tokens, tokens.sin(), tokens)


def test_differences_agree_on_fused_attention(task):
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(Attention()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="flash"):
        gradient.sum().backward()
    context = own_context(task, nn.Tanh(), Attention())
    close(*both(context, guess_of(context, task)))


@pytest.mark.parametrize("name", ["four steps", "momentum and decay", "adamw, partial last batch"])
def test_differences_agree_over_several_local_steps(name, task):
    context = context_of("resnet,blocks=1,width=8", task, RULES[name])
    close(*both(context, guess_of(context, task)))


@pytest.mark.parametrize("rule", [LocalRule(), FOUR_STEPS], ids=["gradient", "four steps"])
def test_differences_agree_on_masks_and_soft_labels(rule, task):
    context = context_of(DROPPING, task, rule, y=soft(4, task.classes))
    pulls = []
    for kind in ("frozen", "exact"):
        engine, guess = with_masks(context, task, kind)
        pulls.append(engine.value_and_grad(guess))
    close(*pulls)


@pytest.mark.parametrize("rule", [LocalRule(), FOUR_STEPS], ids=["gradient", "four steps"])
def test_differences_agree_beside_penalties(rule, task):
    context = context_of(BATCHNORM, task, rule)
    guess, (_, matching) = guess_of(context, task), both(context, guess_of(context, task))
    size = float(matching.gradient[0].norm())
    loss = Engine(context, DISTANCES["cosine"], weight=0.0, penalties=[TaskLoss(1.0)(context)]).value_and_grad(guess)
    penalties = [TaskLoss(size / float(loss.gradient[0].norm()))(context), Statistics("running", 0.01 * size)(context)]
    frozen, exact = both(context, guess, penalties=penalties)
    assert cosine(exact.gradient, matching.gradient) < 0.9
    close(frozen, exact)
    assert torch.equal(frozen.penalty, exact.penalty)


@pytest.mark.parametrize("central", [False, True], ids=["one-sided", "central"])
def test_differences_are_of_first_and_second_order(central, task):
    """In float64, ten times the width costs ten times the error, or a hundred times."""
    context = doubled(context_of("convnet,width=4,activation=tanh", task))
    guess = guess_of(context, task)
    exact = Engine(context, DISTANCES["cosine"], kind="exact").value_and_grad(guess).gradient
    errors = []
    for width in (1e-3, 1e-4):
        engine = Engine(context, DISTANCES["cosine"], kind="frozen")
        engine._derivative = Frozen(width, central)
        errors.append(unlike(engine.value_and_grad(guess).gradient, exact))
    assert errors[0] / errors[1] == pytest.approx(100 if central else 10, rel=0.2)


# The self-check.


class Planted(nn.Module):
    """A switch that no recording sees, with every input right on it."""

    def forward(self, x):
        return x + torch.ops.aten.relu(x - x.detach())


class Turning(nn.Module):
    """Harmless until it is turned."""

    turned = False

    def forward(self, x):
        return Planted()(x) if Turning.turned else F.relu(x)


class Sigmoid(nn.Module):
    """Without a double backward in torch."""

    def forward(self, x):
        return F.hardsigmoid(x)


class WrittenOut(nn.Module):
    def forward(self, x):
        return F.relu6(x + 3) / 6


def stacked(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), *layers, nn.Flatten(), nn.Linear(256, 4))


def own_context(task, *layers, rule=None, count=2):
    return context_of_network(build_network(task, stacked(*layers)), rule or LocalRule(), count)


def test_a_network_whose_switches_are_frozen_keeps_its_differences(task):
    context = context_of("convnet,width=8", task)
    guess = guess_of(context, task)
    engine = Engine(context, DISTANCES["cosine"])
    pull = engine.value_and_grad(guess)
    frozen, exact = both(context, guess)
    assert unlike(pull.gradient, frozen.gradient) == 0 < unlike(pull.gradient, exact.gradient)
    assert engine.check.checks == 1
    assert AGREEMENT < engine.check.lowest < 1
    assert str(engine).startswith("frozen (one-sided, 1e-05), 1 checks against double backward, lowest cosine 0.9")


def test_a_switch_that_is_not_frozen_is_found_out_and_double_backward_taken(task):
    context = own_context(task, nn.Tanh(), Planted(), Planted())
    guess = guess_of(context, task)
    exact = Engine(context, DISTANCES["cosine"], kind="exact").value_and_grad(guess)
    for candidate in LADDER:
        engine = Engine(context, DISTANCES["cosine"], kind="frozen")
        engine._derivative = candidate
        assert cosine(engine.value_and_grad(guess).gradient, exact.gradient) < AGREEMENT
    engine = Engine(context, DISTANCES["cosine"])
    pull = engine.value_and_grad(guess)
    assert torch.equal(pull.gradient[0], exact.gradient[0])
    assert torch.equal(pull.match, exact.match)
    assert str(engine).startswith("exact, 1 checks against double backward; exact from evaluation 1, as frozen")
    note = attack(context.observation, "inverting_gradients,steps=3").notes["engine"]
    assert "exact from evaluation 1, as frozen" in note


def test_without_double_backward_differences_are_held_against_central_ones(task):
    context = own_context(task, Sigmoid())
    guess = guess_of(context, task)
    with pytest.raises((RuntimeError, NotImplementedError)):
        Engine(context, DISTANCES["cosine"], kind="exact").value_and_grad(guess)
    engine = Engine(context, DISTANCES["cosine"])
    pull = engine.value_and_grad(guess)
    assert "1 checks against central differences, lowest cosine 0.999" in str(engine)
    twin = own_context(task, WrittenOut())
    true = Engine(twin, DISTANCES["cosine"], kind="exact").value_and_grad(guess)
    assert cosine(pull.gradient, true.gradient) > AGREEMENT


def test_without_double_backward_and_with_a_switch_not_frozen_it_refuses(task):
    context = own_context(task, Sigmoid(), Planted())
    engine = Engine(context, DISTANCES["cosine"])
    with pytest.raises(NotApplicable, match="cannot be trusted: the network has no double backward"):
        engine.value_and_grad(guess_of(context, task))
    with pytest.raises(NotApplicable, match="cannot be trusted"):
        attack(context.observation, "inverting_gradients,steps=3")


def test_the_check_is_repeated(task, monkeypatch):
    assert selfcheck.EVERY == 100
    monkeypatch.setattr(selfcheck, "EVERY", 3)
    context = context_of("mlp,hidden=8", task)
    engine = Engine(context, DISTANCES["cosine"])
    made = []
    for number in range(8):
        engine.value_and_grad(guess_of(context, task, seed=number))
        made.append(engine.check.checks)
    assert made == [1, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("smooth", [True, False], ids=["double backward", "none"])
def test_a_switch_that_comes_later_is_caught_at_the_next_check(smooth, task, monkeypatch):
    monkeypatch.setattr(selfcheck, "EVERY", 3)
    monkeypatch.setattr(Turning, "turned", False)
    layers = [WrittenOut() if smooth else Sigmoid(), Turning()]
    context, twin = own_context(task, *layers), own_context(task, WrittenOut(), Turning())
    engine, true = Engine(context, DISTANCES["cosine"]), Engine(twin, DISTANCES["cosine"], kind="exact")
    agreed = []
    for number in range(1, 6):
        if number == 2:
            monkeypatch.setattr(Turning, "turned", True)
        guess = guess_of(context, task, seed=number)
        agreed.append(cosine(engine.value_and_grad(guess).gradient, true.value_and_grad(guess).gradient) > AGREEMENT)
    after = Exact() if smooth else REFERENCE
    assert f"{after} from evaluation 4, as frozen (one-sided, 1e-05) had cosine" in str(engine)
    assert agreed == [True, False, False, smooth, smooth]


def wrong(how: object) -> list[Tensor]:
    return [torch.tensor([0.0, 1.0])]


@pytest.mark.parametrize("place", range(len(LADDER)))
def test_the_first_difference_that_agrees_is_taken_and_kept(place):
    right, calls = [torch.tensor([1.0, 0.0])], []

    def gradient(how):
        calls.append(how)
        return right if how in (Exact(), LADDER[place]) else wrong(how)

    check = SelfCheck()
    assert check.choose(gradient) == LADDER[place]
    assert calls == [Exact(), *LADDER[: place + 1]]
    assert len(check.changes) == (1 if place else 0)
    calls.clear()
    assert check.choose(gradient) == LADDER[place]
    assert calls == [Exact(), LADDER[place]]
    assert len(check.changes) == (1 if place else 0)


def test_a_difference_that_fails_counts_as_one_that_does_not_agree():
    def gradient(how):
        if how == LADDER[0]:
            raise RuntimeError("sin was called where relu had been recorded.")
        return [torch.tensor([1.0, 0.0])]

    assert SelfCheck().choose(gradient) == LADDER[1]


@pytest.mark.parametrize("where", [Exact(), LADDER[0]], ids=str)
def test_running_out_of_memory_is_no_disagreement(where):
    def gradient(how):
        if how == where:
            raise torch.OutOfMemoryError
        return [torch.tensor([1.0, 0.0])]

    with pytest.raises(torch.OutOfMemoryError):
        SelfCheck().choose(gradient)


# Memory.


class Memory(TorchDispatchMode):
    """The bytes of all living tensors that operations within returned."""

    def __init__(self, peak: bool = True):
        super().__init__()
        self._places, self._watched, self.peak = {}, peak, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                place = tensor.untyped_storage()
                if place._cdata not in self._places or self._places[place._cdata][0].expired():
                    self._places[place._cdata] = StorageWeakRef(place), place.nbytes()
        if self._watched:
            self.peak = max(self.peak, self.living())
        return output

    def living(self) -> int:
        self._places = {key: pair for key, pair in self._places.items() if not pair[0].expired()}
        return sum(size for _, size in self._places.values())


@cache
def peak(kind, steps):
    """Most bytes alive at a time, of a network of large activations, and the bytes of its weights."""
    task = Task((3, 16, 16), 4, (0.5,) * 3, (0.25,) * 3)
    context = context_of("convnet,width=8,head=pool", task, LocalRule("delta", epochs=steps))
    guess = guess_of(context, task)
    engine = Engine(context, DISTANCES["cosine"], kind=kind) if kind else None
    with Memory() as memory:
        engine.value_and_grad(guess) if engine else written_out(context, guess)
    return memory.peak, sum(tensor.nbytes for tensor in context.observation.network.weights.values())


@pytest.mark.parametrize("kind", ["exact", "frozen"])
def test_a_further_local_step_costs_memory_for_its_weights_only(kind):
    (three, weights), (eight, _) = peak(kind, 3), peak(kind, 8)
    assert weights < 0.05 * three
    assert eight - three <= 5 * weights + 0.01 * three


@pytest.mark.parametrize("kind", ["exact", "frozen"])
def test_several_local_steps_cost_as_much_memory_as_one_and_weights(kind):
    one, weights = peak(kind, 1)
    for steps in (2, 8):
        assert peak(kind, steps)[0] - one <= steps * weights + 0.15 * one


def test_an_unrolled_graph_costs_memory_for_every_step():
    """The instrument sees what the engine avoids."""
    (two, weights), (four, _) = peak(None, 2), peak(None, 4)
    assert four - two > 20 * weights


@pytest.mark.parametrize("kind", ["exact", "frozen", "auto"])
@pytest.mark.parametrize("watched", [False, True], ids=["plain", "with penalties"])
def test_no_reference_cycle_keeps_a_graph_alive(kind, watched, task, monkeypatch):
    clients = []

    class Watched(engine_module.Simulation):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            clients.append(weakref.ref(self))

    monkeypatch.setattr(engine_module, "Simulation", Watched)
    context = context_of("convnet,width=2,norm=batch,head=pool", task, LocalRule("delta", epochs=2))
    penalties = [Statistics("running", 0.1)(context)] if watched else []
    engine, guess = Engine(context, DISTANCES["cosine"], kind=kind, penalties=penalties), guess_of(context, task)
    gc.disable()
    try:
        living = []
        with Memory(peak=False) as memory:
            for _ in range(3):
                pull = engine.value_and_grad(guess)
                assert all(client() is None for client in clients)
                del pull
                living.append(memory.living())
    finally:
        gc.enable()
    assert len(clients) == (5 if kind == "auto" else 3)
    assert len(set(living)) == 1


@pytest.mark.parametrize("kind", ["exact", "frozen"])
def test_no_activations_are_left_behind_in_the_trace(kind, task):
    context = context_of(BATCHNORM, task, FOUR_STEPS)
    engine = Engine(context, DISTANCES["cosine"], kind=kind, penalties=[Statistics("running", 0.1)(context)])
    engine.value_and_grad(guess_of(context, task))
    assert len(engine._trace.take().tensors()) == 0


# Randomness.


class Dropping(nn.Module):
    """Functional dropout, which the engine cannot turn off."""

    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)


class Noisy(nn.Module):
    """A mask drawn by hand."""

    def forward(self, x):
        return x * (torch.rand_like(x) < 0.5) * 2 if self.training else x


DROPS = [pytest.param(Noisy, id="drawn"), pytest.param(Dropping, id="dropout")]


def evaluated(context, guess, kind, times=1):
    torch.manual_seed(7)
    engine = Engine(context, DISTANCES["cosine"], kind=kind)
    pulls = [engine.value_and_grad(guess) for _ in range(times)]
    return engine, pulls, torch.get_rng_state()


@pytest.fixture(params=[LocalRule(), FOUR_STEPS], ids=["gradient", "four steps"])
def exact_and_frozen(request, layer, task):
    context = own_context(task, nn.Tanh(), layer(), rule=request.param, count=4)
    guess = guess_of(context, task)
    return [evaluated(context, guess, kind, 2) for kind in ("exact", "frozen")]


@pytest.mark.parametrize("layer", DROPS)
def test_the_random_stream_does_not_depend_on_the_engine(layer, exact_and_frozen):
    (_, exact, after), (_, frozen, again) = exact_and_frozen
    assert torch.equal(after, again)
    assert not torch.equal(exact[0].match, exact[1].match)
    for one, other in zip(exact, frozen, strict=True):
        assert torch.equal(one.match, other.match)


@pytest.mark.parametrize("layer", DROPS)
def test_differences_see_the_masks_that_were_drawn(layer, exact_and_frozen):
    (_, exact, _), (_, frozen, _) = exact_and_frozen
    for one, other in zip(frozen, exact, strict=True):
        close(one, other)


def test_inference_mode_leaves_the_random_stream_alone(task):
    context = own_context(task, nn.Tanh(), Dropping(), rule=replace(FOUR_STEPS, mode="eval"), count=4)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    for kind in ("exact", "frozen", "auto"):
        Engine(context, DISTANCES["cosine"], kind=kind).value_and_grad(guess_of(context, task))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layer", DROPS)
def test_the_self_check_compares_gradients_of_the_same_draws(layer, task):
    context = own_context(task, nn.Tanh(), layer(), count=4)
    guess = guess_of(context, task)
    (engine, checked, after), (_, exact, again) = (evaluated(context, guess, kind) for kind in ("auto", "exact"))
    assert not engine.check.changes
    assert torch.equal(checked[0].match, exact[0].match)
    assert torch.equal(after, again)


# Precision on GPUs.


def test_differences_are_taken_without_tf32_and_the_users_choice_comes_back():
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "tf32"
    try:
        with _full_precision(torch.device("cuda")):
            assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        assert [backend.fp32_precision for backend in backends] == ["tf32", "tf32"]
        with pytest.raises(ZeroDivisionError), _full_precision(torch.device("cuda")):
            raise ZeroDivisionError
        assert [backend.fp32_precision for backend in backends] == ["tf32", "tf32"]
        with _full_precision(torch.device("cpu")):
            assert [backend.fp32_precision for backend in backends] == ["tf32", "tf32"]
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
