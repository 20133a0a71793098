"""Frozen switches: a replayed pass takes the switches, draws and constants of the recorded one, and no others."""

from contextlib import nullcontext

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakmap.attacker.matching.switches import FrozenSwitches

SHAPE = (2, 4, 6, 6)
PLACES = torch.tensor([-6, -3, -1, -0.5, 0, 0.1, 0.2, 0.3, 0.5, 0.6, 1, 2, 3, 6], dtype=torch.float64)
"""Where the operations below have their switches; entries of the same place are ties."""
TABLE = torch.tensor([0.3, -0.7, 1.1, 2.0, -1.4, 0.9], dtype=torch.float64)
SLOPES = torch.tensor([0.25, 0.1, -0.2, 0.3], dtype=torch.float64)


class Swish(torch.autograd.Function):
    """Runs its forward without gradients, and has a derivative all the same."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * s * (1 + x * (1 - s))


def without_gradients(x):
    with torch.no_grad():
        weight = x * 3
        weight[weight < 0] = 0.5
    return weight * x


def switched_off(x):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    weight = x.sin()
    torch.set_grad_enabled(before)
    return weight * x


@torch.no_grad()
def decorated(x):
    return x.square()


def nested(x):
    with torch.no_grad():
        with torch.enable_grad():
            alive = x.square()
        dead = x.exp().clamp(max=3.0)
    return x * dead + alive


def clamped_positions(x):
    positions = torch.arange(6)
    positions.clamp_(0, 3)
    return x[..., positions] * x


OVERWRITING = {
    "relu_": (lambda h: h.relu_(), F.relu),
    "torch.relu_": (torch.relu_, F.relu),
    "relu, by name": (lambda h: F.relu(h, inplace=True), F.relu),
    "relu, by place": (lambda h: F.relu(h, True), F.relu),
    "relu6": (lambda h: F.relu6(h, True), F.relu6),
    "leaky_relu, by name": (lambda h: F.leaky_relu(h, 0.1, inplace=True), lambda x: F.leaky_relu(x, 0.1)),
    "leaky_relu, by place": (lambda h: F.leaky_relu(h, 0.1, True), lambda x: F.leaky_relu(x, 0.1)),
    "leaky_relu_": (lambda h: F.leaky_relu_(h, 0.1), lambda x: F.leaky_relu(x, 0.1)),
    "hardtanh": (lambda h: F.hardtanh(h, -1.0, 3.0, True), lambda x: F.hardtanh(x, -1.0, 3.0)),
    "hardtanh_": (F.hardtanh_, F.hardtanh),
    "threshold": (lambda h: F.threshold(h, 0.3, 0.1, True), lambda x: F.threshold(x, 0.3, 0.1)),
    "threshold_": (lambda h: torch.threshold_(h, 0.3, 0.1), lambda x: F.threshold(x, 0.3, 0.1)),
    "hardswish": (lambda h: F.hardswish(h, True), F.hardswish),
    "hardsigmoid": (lambda h: F.hardsigmoid(h, inplace=True), F.hardsigmoid),
    "elu": (lambda h: F.elu(h, 0.7, True), lambda x: F.elu(x, 0.7)),
    "elu_": (lambda h: F.elu_(h, 0.7), lambda x: F.elu(x, 0.7)),
    "selu": (lambda h: F.selu(h, inplace=True), F.selu),
    "selu_": (torch.selu_, F.selu),
    "clamp_": (lambda h: h.clamp_(0, 1), lambda x: x.clamp(0, 1)),
    "clip_": (lambda h: h.clip_(min=0.2), lambda x: x.clamp(min=0.2)),
    "clamp_min_": (lambda h: h.clamp_min_(0.2), lambda x: x.clamp(min=0.2)),
    "torch.clamp_max_": (lambda h: torch.clamp_max_(h, 0.2), lambda x: x.clamp(max=0.2)),
    "abs_": (lambda h: h.abs_(), torch.abs),
    "absolute_": (lambda h: h.absolute_(), torch.abs),
    "nn.ReLU": (nn.ReLU(inplace=True), F.relu),
    "nn.LeakyReLU": (nn.LeakyReLU(0.1, inplace=True), lambda x: F.leaky_relu(x, 0.1)),
}
"""What overwrites its input -> the same out of place."""

SWITCHES = {
    "relu": F.relu,
    "torch.relu": torch.relu,
    "x.relu": lambda x: x.relu(),
    "relu of an input by name": lambda x: F.relu(input=x),
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "hardtanh": lambda x: F.hardtanh(x, min_val=-1.0, max_val=3.0),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "prelu": lambda x: F.prelu(x, SLOPES),
    "prelu of one slope": lambda x: torch.prelu(x, SLOPES[:1]),
    "threshold": lambda x: F.threshold(x, 0.3, 0.1),
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp of a minimum": lambda x: torch.clamp(x, min=0.2),
    "clamp of a tensor": lambda x: x.clamp(min=x.detach() * 0 + 0.1),
    "clip": lambda x: torch.clip(x, 0.1, 0.6),
    "clamp_min": lambda x: x.clamp_min(0.1),
    "clamp_max": lambda x: torch.clamp_max(x, 0.1),
    "built-in abs": abs,
    "abs": torch.abs,
    "absolute": lambda x: x.absolute(),
    "max": lambda x: x.max(),
    "min": torch.min,
    "max of a dimension": lambda x: x.max(1).values,
    "max of a dimension by name": lambda x: x.max(dim=1, keepdim=True)[0],
    "max of two": lambda x: torch.max(x, x.flip(0)),
    "amax": lambda x: x.amax((2, 3)),
    "amin": lambda x: torch.amin(x, 1, keepdim=True),
    "maximum": lambda x: torch.maximum(x, 0 * x),
    "minimum": lambda x: x.minimum(x.flip(1)),
    "fmax": lambda x: torch.fmax(x, x.flip(1)),
    "fmin": lambda x: x.fmin(x.flip(1)),
    "topk": lambda x: x.topk(2, 1).values,
    "sort": lambda x: x.sort(1)[0] * SLOPES[:, None, None],
    "msort": lambda x: x.movedim(1, 0).msort() * SLOPES[:, None, None, None],
    "median": lambda x: x.median(),
    "median of a dimension": lambda x: x.median(1).values,
    "nanmedian": lambda x: x.nanmedian(2)[0],
    "kthvalue": lambda x: x.kthvalue(2, 1).values,
    "cummax": lambda x: torch.cummax(x, 1).values,
    "cummin": lambda x: torch.cummin(x, 1)[0],
    "l1_loss": lambda x: F.l1_loss(x, x.detach() * 0 + 0.1),
    "l1_loss of each": lambda x: F.l1_loss(x, x.flip(0) * 0.1, reduction="none"),
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(2), 2),
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "max_pool2d of one picture": lambda x: F.max_pool2d(x[0], 2),
    "max_pool2d, overlapping": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "nn.MaxPool2d": nn.MaxPool2d(3, 2, 1),
    "max_pool2d with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "max_pool2d and back": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2) + x,
    "max_pool3d": lambda x: F.max_pool3d(x, 2),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x.flatten(2), 3),
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d(2),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(x, 2),
    "comparison and where": lambda x: torch.where(x > 0, x, 2 * x),
    "where, as a method": lambda x: x.where(x > 0, 2 * x),
    "comparison as a factor": lambda x: x * (x > 0.5),
    "comparison and arithmetic": lambda x: x * (x >= 0.1).to(x.dtype).mul_(2),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.3),
    "boolean index": lambda x: x[x > 0],
    "integer tensor": lambda x: x * (x + 0.5).long().clamp(min=-1),
    "argsort": lambda x: x.gather(1, x.argsort(1)) * SLOPES[:, None, None],
    "argmax": lambda x: x * F.one_hot(x.argmax(3), 6),
    "bucketize": lambda x: x * TABLE[torch.bucketize(x, TABLE[:5].sort().values.round())],
    "round": lambda x: x * x.round(),
    "floor": lambda x: x * torch.floor(x),
    "ceil": lambda x: x * x.ceil(),
    "trunc": lambda x: x * x.trunc(),
    "fix": lambda x: x * x.fix(),
    "sign": lambda x: x * x.sign(),
    "sgn": lambda x: x * torch.sgn(x),
    "heaviside": lambda x: x * torch.heaviside(x.detach(), torch.ones_like(x)),
    "floor_divide": lambda x: x * torch.floor_divide(x.detach(), 1),
    **{f"in place: {name}": lambda x, f=overwrite: f(x * 1) for name, (overwrite, _) in OVERWRITING.items()},
}
"""Operations whose gradient jumps."""

CONSTANTS = {
    "detach": lambda x: x * x.detach(),
    "data": lambda x: x * x.data,
    "no_grad": without_gradients,
    "set_grad_enabled": switched_off,
    "a function without gradients": lambda x: x * decorated(x),
    "gradients on within off": nested,
    "item": lambda x: x * x.sum().item(),
    "float": lambda x: x * float(x.sum()),
    "tolist": lambda x: x * torch.tensor(x.mean((0, 2, 3)).tolist(), dtype=x.dtype).view(1, -1, 1, 1),
    "numpy": lambda x: x * torch.from_numpy(numpy.exp(x.detach().numpy())),
}
"""What autograd takes for constant, though it changes smoothly with the input."""


def noisy(x, kind):
    noise = torch.empty_like(x)
    getattr(noise, kind)()
    return x * noise


DRAWS = {
    "rand_like": lambda x: x * torch.rand_like(x),
    "randn_like": lambda x: x * torch.randn_like(x),
    "rand": lambda x: x * torch.rand(x.shape, dtype=x.dtype),
    "randn": lambda x: x * torch.randn(x.shape, dtype=x.dtype),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "bernoulli, as a method": lambda x: x * x.sigmoid().bernoulli(),
    "normal": lambda x: x * torch.normal(torch.zeros_like(x)),
    "poisson": lambda x: x * torch.poisson(torch.full_like(x, 3.0)),
    "multinomial": lambda x: x[..., torch.multinomial(torch.ones(6), 20, replacement=True)],
    "randint": lambda x: x * torch.randint(5, x.shape),
    "randperm": lambda x: x * TABLE[torch.randperm(6)],
    **{
        kind: lambda x, k=kind: noisy(x, k) for kind in ("normal_", "uniform_", "bernoulli_", "exponential_", "random_")
    },
}
"""What is drawn anew in every plain pass."""

DROPOUTS = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "nn.Dropout": nn.Dropout(0.5),
    "dropout by default": lambda x: F.dropout(x),
    "dropout in place": lambda x: F.dropout(x * 1, 0.5, inplace=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True),
    "dropout2d": lambda x: F.dropout2d(x, 0.5),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "two dropouts": lambda x: F.dropout(F.dropout(x, 0.5) + 1, 0.3),
    "dropout behind a draw": lambda x: F.dropout(x * torch.rand_like(x), 0.5),
    "attention with dropout": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
}

SMOOTH = {
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "softmax": lambda x: x.softmax(1),
    "product of two": lambda x: x @ x.mT,
    "instance norm": lambda x: F.instance_norm(x) * x,
    "overwriting arithmetic": lambda x: (x * 2).add_(x.square()).mul_(x),
    "part overwritten": lambda x: torch.zeros_like(x).index_copy_(3, torch.arange(6), x.square()),
    "custom function": Swish.apply,
    "custom function twice": lambda x: Swish.apply(Swish.apply(x) + x),
    "dropout not in training": lambda x: F.dropout(x.square(), 0.5, False),
    "dropout of rate 0": lambda x: F.dropout(x.square(), 0.0),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.sin(), x),
    "attention called by names": lambda x: F.scaled_dot_product_attention(query=x, key=x.sin(), value=x),
    "integers clamped in place": clamped_positions,
    "switches of integers": lambda x: x * F.relu(torch.arange(-3, 3)) + x * torch.arange(-3, 3).abs().max(),
    "average pooling": lambda x: F.avg_pool2d(x.square(), 2),
    "clone behind detach": lambda x: x.square() + x.detach().clone().zero_(),
}
"""Operations without anything to hold."""

HELD = {**SWITCHES, **CONSTANTS, **DRAWS, **DROPOUTS}
WRITTEN_OUT = {
    "hardsigmoid": lambda x: F.relu6(x + 3) / 6,
    "in place: hardsigmoid": lambda x: F.relu6(x + 3) / 6,
}
"""The same with a double backward, where torch has none; nor has it a sixth of more than float32 there."""

ALL = {**HELD, **SMOOTH}


pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar"),
]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def here():
    """Where passes are recorded: on no switch."""
    return 2 * torch.randn(SHAPE, generator=generator(0), dtype=torch.float64)


def far():
    """Where they are replayed: nearly every entry sits on a switch, ties everywhere."""
    places = PLACES[torch.randint(len(PLACES), SHAPE, generator=generator(1))]
    return places + 1e-4 * torch.randn(SHAPE, generator=generator(2), dtype=torch.float64)


def direction():
    return torch.randn(SHAPE, generator=generator(3), dtype=torch.float64)


def total(output: Tensor) -> Tensor:
    """No even function, else the switch of a modulus would vanish in it."""
    return (output + 1).square().sum()


def passed(
    function, x: Tensor, switches: FrozenSwitches | None = None, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """Output, and gradient of its total."""
    if seed is not None:
        torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    with switches or nullcontext():
        output = function(x)
    (gradient,) = torch.autograd.grad(total(output), x)
    return output.detach().clone(), gradient


def recorded(function, seed: int = 0) -> FrozenSwitches:
    switches = FrozenSwitches()
    passed(function, here(), switches, seed)
    return switches


def slope(function, x: Tensor, width: float, switches: FrozenSwitches | None = None) -> Tensor:
    """A central difference of the gradient."""
    after, before = (passed(function, x + side * width * direction(), switches)[1] for side in (1, -1))
    return (after - before) / (2 * width)


def unlike(first: Tensor, second: Tensor) -> float:
    """Distance over size."""
    return float((first - second).norm() / second.norm().clamp(min=1e-12))


def second_derivative(function, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        output = function(x)
    (gradient,) = torch.autograd.grad(total(output), x, create_graph=True)
    return torch.autograd.grad(gradient, x, direction())[0]


def same(first, second, within=1e-12):
    torch.testing.assert_close(first, second, rtol=within, atol=within)


def recording_changes_nothing(function):
    same(passed(function, here(), FrozenSwitches(), seed=0), passed(function, here(), seed=0))


def replay_repeats(function, within=1e-12):
    switches, plain = recorded(function), passed(function, here(), seed=0)
    for seed in (1, 2):
        same(passed(function, here(), switches, seed), plain, within)


def replay_is_smooth(function):
    switches = recorded(function)
    difference = unlike(slope(function, far(), 1e-3, switches), slope(function, far(), 1e-6, switches))
    assert difference < 1e-4


def replay_has_the_second_derivative(function, written_out=None):
    switches = recorded(function)
    difference = unlike(slope(function, here(), 1e-6, switches), second_derivative(written_out or function, here()))
    assert difference < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_recording_changes_neither_value_nor_gradient(name):
    recording_changes_nothing(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_replay_at_the_same_point_repeats_value_and_gradient(name):
    replay_repeats(ALL[name], within=1e-7 if name in WRITTEN_OUT else 1e-12)


@pytest.mark.parametrize("name", ALL)
def test_replay_is_smooth_where_every_switch_would_flip(name):
    replay_is_smooth(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_a_difference_of_replayed_gradients_is_the_second_derivative(name):
    replay_has_the_second_derivative(ALL[name], WRITTEN_OUT.get(name))


@pytest.mark.parametrize("name", SWITCHES)
def test_without_replay_the_gradient_jumps(name):
    """Else the tests above would prove nothing about this operation."""
    difference = unlike(slope(SWITCHES[name], far(), 1e-3), slope(SWITCHES[name], far(), 1e-6))
    assert difference > 1e-2


@pytest.mark.parametrize("name", CONSTANTS)
def test_without_replay_what_autograd_takes_for_constant_moves(name):
    difference = unlike(slope(CONSTANTS[name], here(), 1e-6), second_derivative(CONSTANTS[name], here()))
    assert difference > 1e-2


@pytest.mark.parametrize("name", {**DRAWS, **DROPOUTS})
def test_without_replay_another_draw_is_made(name):
    function = {**DRAWS, **DROPOUTS}[name]
    difference = unlike(passed(function, here(), seed=1)[0], passed(function, here(), seed=0)[0])
    assert difference > 1e-2


@pytest.mark.parametrize("name", SMOOTH)
def test_what_has_no_switch_is_computed_anew(name):
    """A custom function too, whose forward runs without gradients."""
    function = SMOOTH[name]
    switches = recorded(function)
    same(passed(function, far(), switches), passed(function, far()))


@pytest.mark.parametrize("name", OVERWRITING)
def test_what_works_in_place_overwrites_its_input_and_nothing_else(name):
    overwrite, out_of_place = OVERWRITING[name]
    switches, apart = FrozenSwitches(), FrozenSwitches()
    for x in (here(), far()):
        source = x.clone().requires_grad_()
        with switches:
            h = source * 1
            returned = overwrite(h)
        with apart:
            expected = out_of_place(source)
        assert returned is h
        assert torch.equal(h, expected)
        assert torch.equal(source, x)
        same(*(torch.autograd.grad(total(output), source)[0] for output in (h, expected)))


def test_the_winners_of_a_pooling_are_those_recorded():
    switches, first, second = FrozenSwitches(), here(), far()
    with switches:
        _, winners = F.max_pool2d(first, 2, return_indices=True)
    with switches:
        values, again = F.max_pool2d(second, 2, return_indices=True)
    assert torch.equal(again, winners)
    assert torch.equal(values, second.flatten(2).gather(2, winners.flatten(2)).view_as(values))


def test_a_whole_network_is_smooth_in_its_weights():
    """Many switches of many kinds one behind the other, some in place."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Hardswish(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 8),
        nn.PReLU(),
        nn.Linear(8, 5),
    ).double()
    weights = [p.detach() for p in network.parameters()]
    names = [name for name, _ in network.named_parameters()]
    along = [torch.randn(w.shape, generator=generator(i), dtype=w.dtype) for i, w in enumerate(weights)]

    def gradient(switches, distance):
        x = here().requires_grad_()
        moved = [w + distance * v for w, v in zip(weights, along, strict=True)]
        with switches or nullcontext():
            output = torch.func.functional_call(network, dict(zip(names, moved, strict=True)), (x,))
        return torch.autograd.grad(total(output), x)[0]

    def jump(switches):
        wide, narrow = (
            (gradient(switches, 0.3 + width) - gradient(switches, 0.3 - width)) / width for width in (1e-3, 1e-5)
        )
        return unlike(wide, narrow)

    switches = FrozenSwitches()
    gradient(switches, 0.0)
    assert jump(switches) < 1e-3
    assert jump(None) > 1e-2


def test_a_recording_serves_many_replays_and_is_apart_from_others():
    first, second = FrozenSwitches(), FrozenSwitches()
    x, ones = torch.tensor([-1.0, 2.0]), torch.ones(2)
    found = {first: [], second: []}
    for switches, given in ((first, x), (second, -x), (first, ones), (second, ones), (first, ones)):
        with switches:
            output = F.relu(given)
        found[switches].append(output.tolist())
    assert found == {first: [[0, 2], [0, 1], [0, 1]], second: [[1, 0], [1, 0]]}
    assert F.relu(x).tolist() == [0, 2]


def test_a_network_that_does_something_else_the_second_time_is_noticed():
    switches, x = FrozenSwitches(), here()
    with switches:
        F.relu(x)
    with pytest.raises(RuntimeError, match="abs was called where relu had been recorded"), switches:
        torch.abs(x)
    with pytest.raises(RuntimeError, match="sin was called where relu had been recorded"), switches:
        torch.sin(x)
    switches = FrozenSwitches()
    with switches:
        F.relu(x.sin())
    with pytest.raises(RuntimeError, match="had been recorded"), switches:
        F.max_pool2d(x, 2).sin().relu()


@pytest.mark.parametrize(
    "second",
    [lambda x: x.relu().relu(), lambda x: x.sin(), lambda x: x.sin().relu().abs()],
    ids=["a switch where there was none", "too few", "too many"],
)
def test_a_pass_of_other_operations_is_refused(second):
    switches, x = FrozenSwitches(), here()
    with switches:
        x.sin().relu()
    with pytest.raises(RuntimeError), switches:
        second(x)


def scaled_draw(x):
    kept = x.new_empty((*x.shape[:2], 1, 1)).bernoulli_(0.7)
    kept.div_(0.7)
    return x * kept


def shifted_draw(x):
    noise = torch.rand_like(x)
    noise -= 0.5
    return x * noise


def overwritten_afterwards(x):
    h = x * 1
    largest = h.max(1).values
    h.neg_()
    return largest + h.mean(1)


def detached_and_overwritten(x):
    h = x * 1
    residual = h * 1 + h.detach()
    h.neg_()
    return residual + h


def filled_without_gradients(x):
    weight = torch.zeros(6, dtype=x.dtype)
    with torch.no_grad():
        weight.copy_(x.mean((0, 1, 2)))
    return x * weight


def overwritten_without_gradients(x):
    with torch.no_grad():
        weight = x * 3
        weight[0] = 2
        weight.mul_(2)
    return x * weight


OVERWRITTEN = {
    "a draw scaled in place": scaled_draw,
    "a draw shifted in place": shifted_draw,
    "a sign scaled in place": lambda x: x * x.sign().mul_(2),
    "a tensor from outside filled within no_grad": filled_without_gradients,
    "part overwritten within no_grad": overwritten_without_gradients,
}


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_what_the_network_overwrites_later_is_held_as_it_was_used(name):
    replay_repeats(OVERWRITTEN[name])


@pytest.mark.parametrize("function", [overwritten_afterwards, detached_and_overwritten])
def test_what_was_recorded_and_then_overwritten_is_refused(function):
    def twice():
        switches = FrozenSwitches()
        for _ in range(2):
            with switches:
                function(x)

    x = here()
    with pytest.raises(RuntimeError, match="overw"):
        twice()


def test_views_of_a_constant_may_be_written_through():
    def targets(x):
        with torch.no_grad():
            boxes = x.detach() * 2
            boxes[0, 0] = boxes[0, 1] + 1
            boxes[1].mul_(3)
        return (x * boxes).relu()

    replay_repeats(targets)


def number_without_gradients(x):
    total = x.sum()
    with torch.no_grad():
        number = total.item()
    return x * number


def test_numbers_read_within_no_grad_are_held():
    replay_has_the_second_derivative(number_without_gradients)


def drawn_without_gradients(x):
    weight = torch.zeros(6, dtype=x.dtype)
    with torch.no_grad():
        weight.normal_()
    return x * weight


def attention_by_names(x):
    return F.scaled_dot_product_attention(query=x, key=x, value=x, dropout_p=0.5)


@pytest.mark.parametrize(
    "function",
    [drawn_without_gradients, attention_by_names],
    ids=["normal_ within no_grad", "dropout of attention called by names"],
)
def test_draws_are_held_wherever_they_are_made(function):
    replay_repeats(function)


def test_an_elu_of_a_number_is_held():
    replay_repeats(lambda x: F.elu(x.sum()))


RARER = {
    "torch.max_pool2d": lambda x: torch.max_pool2d(x, 2),
    "adaptive_max_pool2d with indices": lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[0],
    "max_pool1d with indices": lambda x: F.max_pool1d(x.flatten(2), 2, return_indices=True)[0],
    "round_": lambda x: x * x.clone().round_(),
    "floor_": lambda x: x * (x + 0).floor_(),
    "sign_": lambda x: x * x.clone().sign_(),
    "remainder": lambda x: x * (x % 1),
    "frac": lambda x: x * x.frac(),
    "int": lambda x: x * sum(int(value) for value in x[0, 0].flatten()),
}


@pytest.mark.parametrize("name", RARER)
def test_rarer_switches_are_frozen_too(name):
    replay_is_smooth(RARER[name])


LEFT = {
    "aminmax": lambda x: torch.aminmax(x, dim=1).max,
    "quantile": lambda x: x.quantile(0.3, dim=1),
    "norm of order 1": lambda x: x.norm(p=1, dim=1),
    "vector_norm of order 1": lambda x: torch.linalg.vector_norm(x, ord=1),
    "cdist of order 1": lambda x: torch.cdist(x[0], 0 * x[1], p=1),
    "rrelu": F.rrelu,
    "division rounded": lambda x: x * torch.div(x, 1, rounding_mode="floor"),
}


@pytest.mark.parametrize("name", LEFT)
def test_some_switches_are_left_to_the_self_check(name):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        replay_is_smooth(LEFT[name])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.rrelu(x * torch.rand_like(x), training=True),
        lambda x: F.gumbel_softmax(x * torch.rand_like(x), dim=1),
        lambda x: x * torch.rand_like(x) * torch.empty_like(x).log_normal_(),
        lambda x: torch.feature_dropout(x * torch.rand_like(x), 0.5, True),
    ],
    ids=["rrelu", "gumbel_softmax", "log_normal_", "feature_dropout"],
)
def test_draws_behind_a_held_one_are_the_same(function):
    switches = recorded(function, seed=0)
    same(passed(function, here(), switches, seed=0), passed(function, here(), seed=0))


def test_a_refusal_within_no_grad_leaves_gradients_on():
    def once(x, more):
        with torch.no_grad():
            kept = x.sign()
            kept = kept.abs() if more else kept.exp()
        return x * kept

    switches, x = FrozenSwitches(), here()
    with switches:
        once(x, False)
    with pytest.raises(RuntimeError, match="had been recorded"), switches:
        once(x, True)
    assert torch.is_grad_enabled()
