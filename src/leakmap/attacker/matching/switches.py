"""Frozen switches: the kinks of a network, recorded in one forward pass and replayed in the next.

A difference of two gradients is a derivative only where nothing switches between the two points. So the first pass
records every switch and the later ones take the same: the sign of each ReLU's input, the winners of each pooling,
comparisons, random draws, and whatever autograd takes for constant (detached tensors, integers, all that is computed
under ``no_grad``). What autograd calls the derivative at a switch is the derivative with the switches held.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from leakmap.seeds import random_state, set_random_state

Operation = Callable[..., Any]


@dataclass(frozen=True)
class Switch:
    """How one kind of operation is recorded and replayed; both get its arguments as they were given.

    Args:
        record: ``record(operation, *args, **kwargs) -> (output, saved)``.
        replay: ``replay(saved, operation, *args, **kwargs) -> output``, smooth in the arguments.
    """

    record: Callable[..., tuple[Any, Any]]
    replay: Callable[..., Any]


@dataclass(frozen=True)
class _Record:
    """What was seen of one call.

    Args:
        operation: What was called.
        saved: Of a switch, or the output of a constant, or what the first argument was overwritten with.
        kind: ``switch``; ``constant``: the same output is returned again; ``done``: the first argument is such one,
            was overwritten then and stays so; ``written``: it is overwritten again with the same.
        state: Where torch's random stream stood afterwards, if it was drawn from.
    """

    operation: Operation
    saved: Any
    kind: Literal["switch", "constant", "done", "written"] = "switch"
    state: Tensor | None = None


class FrozenSwitches(TorchFunctionMode):
    """Records within the first ``with`` block, replays within every later one.

    Raises:
        RuntimeError: a later block ran other operations than the first, or the network overwrote what was recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tape: dict[int, _Record] = {}
        self._constants: dict[int, Tensor] = {}
        self._memory: set[int] = set()
        self._recorded = self._stopped = False
        self._place = self._length = 0

    def __enter__(self) -> "FrozenSwitches":
        self._place, self._stopped = 0, False
        super().__enter__()
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        super().__exit__(kind, value, trace)
        if not self._recorded:
            self._length, self._recorded = self._place, True
        elif kind is None and self._place != self._length:
            raise RuntimeError(f"{self._place} operations were called where {self._length} had been recorded.")

    def __torch_function__(self, func: Operation, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch in place of every operation."""
        if func is _SWITCH:
            self._stopped = not args[0]
            return func(*args)
        self._place += 1
        play = self._replay if self._recorded else self._record
        return play(func, args, kwargs or {})

    def _record(self, func: Operation, args: Any, kwargs: Any) -> Any:
        first = _first(args, kwargs)
        if self._switches(func, first):
            output, saved = _SWITCHES[func].record(func, *args, **kwargs)
            self._tape[self._place] = _Record(func, saved)
            return output
        version = first._version if isinstance(first, Tensor) else 0
        output = func(*args, **kwargs)
        state = random_state(_device(output)) if func in _DRAWN or func in _DRAWN_IN_PLACE else None
        if isinstance(first, Tensor) and first._version != version:
            if id(first) in self._constants:
                if first.requires_grad:
                    raise RuntimeError(f"{_name(func)} made a constant depend on the weights.")
                self._tape[self._place] = _Record(func, output is not None, "done", state)
            elif first.untyped_storage().data_ptr() in self._memory:
                raise RuntimeError(f"{_name(func)} overwrote what is held as a constant under another name.")
            elif func in _WRITTEN:
                self._tape[self._place] = _Record(func, first.detach().clone(), "written", state)
        elif self._is_constant(func, output):
            output = output.detach() if isinstance(output, Tensor) and output.requires_grad else output
            for tensor in output if isinstance(output, tuple) else (output,):
                if isinstance(tensor, Tensor) and tensor.numel():
                    # Held as well as noted: the id of a tensor that died could be given to another one.
                    self._constants[id(tensor)] = tensor
                    self._memory.add(tensor.untyped_storage().data_ptr())
            self._tape[self._place] = _Record(func, output, "constant", state)
        return output

    def _switches(self, func: Operation, first: Any) -> bool:
        """Whether this call is one of a switch."""
        return func in _SWITCHES and not self._stopped and isinstance(first, Tensor) and first.is_floating_point()

    def _is_constant(self, func: Operation, output: Any) -> bool:
        """Whether autograd sees no derivative of this output."""
        if func in _WITHOUT_DERIVATIVE or func in _DRAWN:
            return True
        first = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(first, Tensor):
            return False
        return self._stopped or not (first.is_floating_point() or first.is_complex())

    def _replay(self, func: Operation, args: Any, kwargs: Any) -> Any:
        record = self._tape.get(self._place)
        if record is None and not self._switches(func, _first(args, kwargs)):
            return func(*args, **kwargs)
        if record is None or record.operation != func:
            recorded = "something smooth" if record is None else _name(record.operation)
            raise RuntimeError(f"{_name(func)} was called where {recorded} had been recorded.")
        if record.state is not None:
            set_random_state(record.state, _device(args[0] if args else record.saved))
        if record.kind == "switch":
            return _SWITCHES[func].replay(record.saved, func, *args, **kwargs)
        if record.kind == "done":
            return args[0] if record.saved else None
        if record.kind == "written":
            with torch.no_grad():
                return args[0].copy_(record.saved)
        return record.saved


_SWITCH: Operation = torch._C._set_grad_enabled
"""What ``no_grad`` calls; a custom ``autograd.Function`` turns gradients off in another way."""


def _name(operation: Operation) -> str:
    return getattr(operation, "__name__", str(operation))


def _first(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else kwargs.get("input", kwargs.get("query"))


def _device(value: Any) -> torch.device:
    return value.device if isinstance(value, Tensor) else torch.device("cpu")


def _keep(tensor: Tensor) -> tuple[Tensor, int]:
    """Without its graph, and with its version."""
    # The version shows an overwriting at the price of a number; copies would cost memory at every switch.
    return tensor.detach(), tensor._version


def _kept(saved: tuple[Tensor, int]) -> Tensor:
    tensor, version = saved
    if tensor._version != version:
        raise RuntimeError("The network overwrote what had been recorded.")
    return tensor


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
    rest = (type(output), output[1:]) if isinstance(output, tuple) else None
    return _returned(output, overwritten), ([_keep(tensor) for tensor in held], rest)


def _replay_lines(saved: Any, operation: Operation, *args: Any, **kwargs: Any) -> Any:
    call, held, overwritten = _split(operation, args, kwargs)
    before = [_kept(pair) for pair in saved[0]]
    if saved[1] is None:
        return _returned(_on_the_line(call, before, held), overwritten)
    kind, rest = saved[1]
    value = _on_the_line(lambda *tensors: call(*tensors)[0], before, held)
    return (value, *rest) if kind is tuple else kind((value, *rest))


def _on_the_line(function: Operation, before: Sequence[Tensor], now: Sequence[Tensor]) -> Tensor:
    """``f(before) + f'(before) (now - before)``: a piecewise linear function with its switches held."""
    _load_forward_mode()
    with forward_ad.dual_level():
        # Forward mode takes the switches at the recorded point, and of a piecewise linear function it is exact.
        duals = [forward_ad.make_dual(a, b - a) for a, b in zip(before, now, strict=True)]
        value, change = forward_ad.unpack_dual(function(*duals))
    return value if change is None else value + change


@cache
def _load_forward_mode() -> None:
    """Torch loads this on first use, with a warning about its own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def _record_by_input(operation: Operation, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    call, held, overwritten = _split(operation, args, kwargs)
    return _returned(call(*held), overwritten), _keep(held[0])


def _record_relu(operation: Operation, input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    overwritten = input if operation in _IN_PLACE or kwargs.get("inplace") or any(args) else None
    output = torch.relu(input if overwritten is None else input.clone())
    return _returned(output, overwritten), _keep(output)


def _replay_relu(saved: Any, operation: Operation, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    overwritten = input if operation in _IN_PLACE or kwargs.get("inplace") or any(args) else None
    x = input if overwritten is None else input.clone()
    # Passes x where the recorded output is positive, in one operation that can be differentiated again.
    return _returned(torch.ops.aten.threshold_backward(x, _kept(saved), 0), overwritten)


def _replay_hardswish(saved: Any, operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    _, (x,), overwritten = _split(operation, args, kwargs)
    # Between its kinks it is a parabola, of which a tangent would be wrong; its factor is piecewise linear.
    return _returned(x * _on_the_line(_hard_sigmoid, [_kept(saved)], [x]), overwritten)


def _replay_hard_sigmoid(saved: Any, operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    _, (x,), overwritten = _split(operation, args, kwargs)
    return _returned(_on_the_line(_hard_sigmoid, [_kept(saved)], [x]), overwritten)


def _hard_sigmoid(x: Tensor) -> Tensor:
    """Of operations that can be differentiated twice."""
    return F.hardtanh(x + 3, 0.0, 6.0) / 6


def _replay_elu(saved: Any, operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """``slope x`` above 0, ``depth (exp(x) - 1)`` below."""
    call, (x,), overwritten = _split(operation, args, kwargs)
    positive = _kept(saved) > 0
    # Read off the operation, whatever its constants are: its values at 1 and at minus infinity.
    slope, depth = call(x.new_ones(())), -call(x.new_full((), -math.inf))
    # Zeros where the other branch is taken: an overflow there would come back as 0 * inf in the gradient.
    below = depth * torch.expm1(torch.where(positive, 0.0, x))
    return _returned(torch.where(positive, slope * x, below), overwritten)


def _replay_prelu(saved: Any, operation: Operation, input: Tensor, weight: Tensor) -> Tensor:
    slopes = weight.reshape(-1, *[1] * (input.ndim - 2)) if weight.numel() > 1 else weight
    return torch.where(_kept(saved) > 0, input, slopes * input)


def _record_pool(operation: Operation, input: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
    output, winners = F.max_pool2d(input, *args, **{**kwargs, "return_indices": True})
    return ((output, winners) if kwargs.get("return_indices") else output), winners


def _replay_pool(saved: Tensor, operation: Operation, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    # The recorded winners, even if another entry is larger by now.
    output = input.flatten(-2).gather(-1, saved.flatten(-2)).reshape(saved.shape)
    return (output, saved) if kwargs.get("return_indices") else output


def _record_dropout(operation: Operation, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Where torch's stream stood before, if anything is drawn from it."""
    rates = [value for value in (kwargs.get("p"), kwargs.get("dropout_p"), *args) if isinstance(value, float)]
    drawn = any(rates) and kwargs.get("training", True)
    # The stream and not the mask, which fused attention draws inside and shows nobody.
    state = random_state(_first(args, kwargs).device) if drawn else None
    return operation(*args, **kwargs), state


def _replay_dropout(saved: Tensor | None, operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    if saved is not None:
        set_random_state(saved, _first(args, kwargs).device)
    return operation(*args, **kwargs)


_RELU = Switch(_record_relu, _replay_relu)
_LINES = Switch(_record_lines, _replay_lines)
_HARDSWISH = Switch(_record_by_input, _replay_hardswish)
_HARD_SIGMOID = Switch(_record_by_input, _replay_hard_sigmoid)
_ELU = Switch(_record_by_input, _replay_elu)
_POOL = Switch(_record_pool, _replay_pool)
_DROPOUT = Switch(_record_dropout, _replay_dropout)


def _named(names: str, *homes: Any) -> list[Operation]:
    return [getattr(home, name) for name in names.split() for home in homes if hasattr(home, name)]


_EVERYWHERE = (torch, Tensor, F)
_PIECEWISE_LINEAR = (
    "leaky_relu hardtanh relu6 threshold softshrink hardshrink clamp clip clamp_min clamp_max abs absolute "
    "max min amax amin maximum minimum fmax fmin topk sort msort median nanmedian kthvalue cummax cummin "
    "remainder fmod frac l1_loss "
    "max_pool1d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "max_pool1d_with_indices max_pool3d_with_indices adaptive_max_pool1d_with_indices "
    "adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices"
)
_WITHOUT_DERIVATIVE = frozenset(
    [
        *_named("detach item tolist numpy sign sgn round floor ceil trunc fix heaviside floor_divide", *_EVERYWHERE),
        *_named("__float__ __int__ __bool__ __index__ __complex__", Tensor),
        vars(torch._C.TensorBase)["data"].__get__,
    ]
)
_DRAWN = frozenset(_named("rand randn rand_like randn_like bernoulli normal multinomial poisson", torch, Tensor))
_DRAWN_IN_PLACE = frozenset(
    _named("bernoulli_ uniform_ normal_ exponential_ random_ log_normal_ cauchy_ geometric_", Tensor)
)
_WRITTEN = _DRAWN_IN_PLACE.union(_named("sign_ sgn_ round_ floor_ ceil_ trunc_ fix_ floor_divide_", *_EVERYWHERE))
_DROPOUTS = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout scaled_dot_product_attention"
_INPLACE_AT = {F.relu6: 1, F.selu: 1, F.hardswish: 1, F.hardsigmoid: 1, F.leaky_relu: 2, F.elu: 2} | {
    F.hardtanh: 3,
    F.threshold: 3,
}
"""Where an operation takes ``inplace`` among its positional arguments."""

_SWITCHES: dict[Operation, Switch] = {
    **dict.fromkeys(_named("relu relu_", *_EVERYWHERE), _RELU),
    **dict.fromkeys(_named(_PIECEWISE_LINEAR, *_EVERYWHERE), _LINES),
    **dict.fromkeys(_named("".join(f"{name}_ " for name in _PIECEWISE_LINEAR.split()), *_EVERYWHERE), _LINES),
    **dict.fromkeys(_named("hardswish", F), _HARDSWISH),
    **dict.fromkeys(_named("hardsigmoid", F), _HARD_SIGMOID),
    **dict.fromkeys(_named("elu elu_ selu selu_", *_EVERYWHERE), _ELU),
    **dict.fromkeys(_named("prelu", *_EVERYWHERE), Switch(_record_by_input, _replay_prelu)),
    **dict.fromkeys(_named("max_pool2d max_pool2d_with_indices", torch, F), _POOL),
    **dict.fromkeys(_named(_DROPOUTS, *_EVERYWHERE), _DROPOUT),
}
_IN_PLACE: dict[Operation, Operation] = {
    getattr(home, f"{name}_"): getattr(home, name, None) or getattr(F, name)
    for home in _EVERYWHERE
    for name in ("relu", "elu", "selu", *_PIECEWISE_LINEAR.split())
    if hasattr(home, f"{name}_")
}
"""Operation that overwrites its input -> the same out of place."""
