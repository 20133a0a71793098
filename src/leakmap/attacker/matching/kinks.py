"""Kinks, recorded in one forward pass and replayed in the next.

A difference of two gradients is a derivative only where nothing switches between the two points. So the first pass
records every switch and the later ones take the same: the sign of each ReLU's input, the winners of each pooling,
comparisons, random draws, and whatever autograd takes for constant (detached tensors, integers, all that is computed
under ``no_grad``). What autograd calls the derivative at a kink is the derivative with the switches held.
"""

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from leakmap.seeds import random_state, set_random_state

Operation = Callable[..., Any]


@dataclass(frozen=True)
class Kink:
    """How one kind of operation is recorded and replayed; both get its arguments as they were given.

    Args:
        record: ``record(operation, *args, **kwargs) -> (output, saved)``.
        replay: ``replay(saved, operation, *args, **kwargs) -> output``, smooth in the arguments.
    """

    record: Callable[..., tuple[Any, Any]]
    replay: Callable[..., Any]


class Kinks(TorchFunctionMode):
    """Records within the first ``with`` block, replays within every later one.

    Raises:
        RuntimeError: a later block ran other operations than the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tape: dict[int, tuple[Operation, Any]] = {}
        self._recorded = self._stopped = False
        self._place = 0

    def __enter__(self) -> "Kinks":
        self._place, self._stopped = 0, False
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._recorded = True

    def __torch_function__(self, func: Operation, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch in place of every operation."""
        self._place += 1
        kwargs = kwargs or {}
        kink = None if self._stopped else _KINKS.get(func)
        if func is _SWITCH:
            self._stopped = not args[0]
        elif kink is not None and kink is not _CONSTANT and not _is_smooth(args[0] if args else kwargs.get("input")):
            kink = None
        if not self._recorded:
            if kink is not None:
                output, saved = kink.record(func, *args, **kwargs)
            else:
                output = saved = func(*args, **kwargs)
            if kink is not None or self._is_constant(output):
                self._tape[self._place] = func, saved
            return output
        if self._place not in self._tape:
            return func(*args, **kwargs)
        recorded, saved = self._tape[self._place]
        if recorded != func:
            raise RuntimeError(f"{_name(func)} was called where {_name(recorded)} had been recorded.")
        return saved if kink is None else kink.replay(saved, func, *args, **kwargs)

    def _is_constant(self, output: Any) -> bool:
        """Whether autograd sees no derivative of this output."""
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(first, Tensor):
            return False
        return self._stopped or not (first.is_floating_point() or first.is_complex())


def _is_smooth(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


_SWITCH: Operation = torch._C._set_grad_enabled
"""What ``no_grad`` calls; a custom ``autograd.Function`` turns gradients off in another way."""


def _name(operation: Operation) -> str:
    return getattr(operation, "__name__", str(operation))


def _split(operation: Operation, args: tuple, kwargs: dict) -> tuple[Operation, list[Tensor], Tensor | None]:
    """A call out of place: the function of its floating tensors, these tensors, and what is to be overwritten."""
    bare = _IN_PLACE.get(operation, operation)
    settings = {name: value for name, value in kwargs.items() if name != "inplace"}
    position = _INPLACE_AT.get(operation, len(args))
    inplace = bare is not operation or kwargs.get("inplace", False) or any(args[position:])
    flat = [*args[:position], *settings.values()]
    places = [i for i, value in enumerate(flat) if isinstance(value, Tensor) and value.is_floating_point()]

    def call(*tensors: Tensor) -> Any:
        filled = list(flat)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        positional = len(flat) - len(settings)
        return bare(*filled[:positional], **dict(zip(settings, filled[positional:], strict=True)))

    held = [flat[place] for place in places]
    overwritten = held[0] if inplace else None
    return call, [held[0].clone(), *held[1:]] if inplace else held, overwritten


def _returned(output: Any, overwritten: Tensor | None) -> Any:
    return output if overwritten is None else overwritten.copy_(output)


def _record_lines(operation: Operation, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    call, held, overwritten = _split(operation, args, kwargs)
    output = call(*held)
    return _returned(output, overwritten), ([tensor.detach() for tensor in held], output)


def _replay_lines(saved: Any, operation: Operation, *args: Any, **kwargs: Any) -> Any:
    call, held, overwritten = _split(operation, args, kwargs)
    before, output = saved
    if isinstance(output, tuple):
        return type(output)((_on_the_line(lambda *tensors: call(*tensors)[0], before, held), *output[1:]))
    return _returned(_on_the_line(call, before, held), overwritten)


def _on_the_line(function: Operation, before: Sequence[Tensor], now: Sequence[Tensor]) -> Tensor:
    """``f(before) + f'(before) (now - before)``: a piecewise linear function with its switches held."""
    _load_forward_mode()
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(a, b - a) for a, b in zip(before, now, strict=True)]
        value, change = forward_ad.unpack_dual(function(*duals))
    return value if change is None else value + change


@cache
def _load_forward_mode() -> None:
    """Torch loads this on first use, with a warning about its own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def _record_by_input(operation: Operation, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    call, held, overwritten = _split(operation, args, kwargs)
    return _returned(call(*held), overwritten), held[0].detach()


def _record_relu(operation: Operation, input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    overwritten = input if operation in _IN_PLACE or kwargs.get("inplace") or any(args) else None
    output = torch.relu(input if overwritten is None else input.clone())
    return _returned(output, overwritten), output.detach()


def _replay_relu(saved: Tensor, operation: Operation, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    overwritten = input if operation in _IN_PLACE or kwargs.get("inplace") or any(args) else None
    x = input if overwritten is None else input.clone()
    return _returned(torch.ops.aten.threshold_backward(x, saved, 0), overwritten)


def _replay_hardswish(saved: Tensor, operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    _, (x,), overwritten = _split(operation, args, kwargs)
    return _returned(x * _on_the_line(_hard_sigmoid, [saved], [x]), overwritten)


def _replay_hard_sigmoid(saved: Tensor, operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    _, (x,), overwritten = _split(operation, args, kwargs)
    return _returned(_on_the_line(_hard_sigmoid, [saved], [x]), overwritten)


def _hard_sigmoid(x: Tensor) -> Tensor:
    """Of operations that can be differentiated twice."""
    return F.hardtanh(x + 3, 0.0, 6.0) / 6


def _replay_elu(saved: Tensor, operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    call, (x,), overwritten = _split(operation, args, kwargs)
    positive = saved > 0
    slope = call(torch.ones_like(x[..., :1]))
    return _returned(torch.where(positive, slope * x, call(torch.where(positive, -1.0, x))), overwritten)


def _replay_prelu(saved: Tensor, operation: Operation, input: Tensor, weight: Tensor) -> Tensor:
    slopes = weight.reshape(-1, *[1] * (input.ndim - 2)) if weight.numel() > 1 else weight
    return torch.where(saved > 0, input, slopes * input)


def _record_pool(operation: Operation, input: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
    output, winners = F.max_pool2d(input, *args, **{**kwargs, "return_indices": True})
    return ((output, winners) if kwargs.get("return_indices") else output), winners


def _replay_pool(saved: Tensor, operation: Operation, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    output = input.flatten(-2).gather(-1, saved.flatten(-2)).reshape(saved.shape)
    return (output, saved) if kwargs.get("return_indices") else output


def _record_constant(operation: Operation, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    output = operation(*args, **kwargs)
    return output, output


def _replay_constant(saved: Any, operation: Operation, *args: Any, **kwargs: Any) -> Any:
    return args[0].copy_(saved) if operation in _DRAWN_IN_PLACE else saved


def _record_draw(operation: Operation, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Dropout: where torch's stream stood, if anything is drawn from it."""
    rates = [value for value in (kwargs.get("p"), kwargs.get("dropout_p"), *args) if isinstance(value, float)]
    drawn = any(rates) and kwargs.get("training", True)
    return operation(*args, **kwargs), random_state(args[0].device) if drawn else None


def _replay_draw(saved: Tensor | None, operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    device = args[0].device
    if saved is not None:
        set_random_state(saved, device)
    return operation(*args, **kwargs)


_RELU = Kink(_record_relu, _replay_relu)
_LINES = Kink(_record_lines, _replay_lines)
_HARDSWISH = Kink(_record_by_input, _replay_hardswish)
_HARD_SIGMOID = Kink(_record_by_input, _replay_hard_sigmoid)
_ELU = Kink(_record_by_input, _replay_elu)
_POOL = Kink(_record_pool, _replay_pool)
_CONSTANT = Kink(_record_constant, _replay_constant)
_DRAW = Kink(_record_draw, _replay_draw)


def _named(names: str, *homes: Any) -> list[Operation]:
    return [getattr(home, name) for name in names.split() for home in homes if hasattr(home, name)]


_EVERYWHERE = (torch, Tensor, F)
_PIECEWISE_LINEAR = (
    "leaky_relu hardtanh relu6 threshold softshrink hardshrink clamp clip clamp_min clamp_max abs absolute "
    "max min amax amax amin maximum minimum fmax fmin topk sort msort median nanmedian kthvalue cummax cummin l1_loss "
    "max_pool1d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
)
_WITHOUT_DERIVATIVE = "detach item tolist numpy sign sgn round floor ceil trunc fix heaviside floor_divide __float__"
_DRAWN = "rand randn rand_like randn_like bernoulli normal multinomial poisson"
_DRAWN_IN_PLACE = frozenset(_named("bernoulli_ uniform_ normal_ exponential_ random_", Tensor))
_DROPOUTS = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout scaled_dot_product_attention"
_INPLACE_AT = {F.relu6: 1, F.selu: 1, F.hardswish: 1, F.hardsigmoid: 1, F.leaky_relu: 2, F.elu: 2} | {
    F.hardtanh: 3,
    F.threshold: 3,
}
"""Where an operation takes ``inplace`` among its positional arguments."""

_KINKS: dict[Operation, Kink] = {
    **dict.fromkeys(_named("relu relu_", *_EVERYWHERE), _RELU),
    **dict.fromkeys(_named(_PIECEWISE_LINEAR, *_EVERYWHERE), _LINES),
    **dict.fromkeys(_named("".join(f"{name}_ " for name in _PIECEWISE_LINEAR.split()), *_EVERYWHERE), _LINES),
    **dict.fromkeys(_named("hardswish", F), _HARDSWISH),
    **dict.fromkeys(_named("hardsigmoid", F), _HARD_SIGMOID),
    **dict.fromkeys(_named("elu elu_ selu selu_", *_EVERYWHERE), _ELU),
    **dict.fromkeys(_named("prelu", *_EVERYWHERE), Kink(_record_by_input, _replay_prelu)),
    **dict.fromkeys(_named("max_pool2d max_pool2d_with_indices", F), _POOL),
    **dict.fromkeys(_named(_WITHOUT_DERIVATIVE, *_EVERYWHERE), _CONSTANT),
    **dict.fromkeys(_named(_DRAWN, torch, Tensor), _CONSTANT),
    **dict.fromkeys(_DRAWN_IN_PLACE, _CONSTANT),
    **dict.fromkeys(_named(_DROPOUTS, *_EVERYWHERE), _DRAW),
    vars(torch._C.TensorBase)["data"].__get__: _CONSTANT,
}
_IN_PLACE: dict[Operation, Operation] = {
    getattr(home, f"{name}_"): getattr(home, name, None) or getattr(F, name)
    for home in _EVERYWHERE
    for name in ("relu", "elu", "selu", *_PIECEWISE_LINEAR.split())
    if hasattr(home, f"{name}_")
}
"""Operation that overwrites its input -> the same out of place."""
