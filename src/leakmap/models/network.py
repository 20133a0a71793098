"""The network that every participant knows: task, architecture and the weights that the server sent."""

import copy
import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leakmap.errors import LeakmapError, ModelError, NonFinite, check_type, in_words
from leakmap.models import models
from leakmap.models.accepted import accepted
from leakmap.models.adapt import replace_layers
from leakmap.models.outputs import Picking, expected, fits, told
from leakmap.models.weights import compare_weights, fit_weights, read_weights
from leakmap.once import once
from leakmap.problem.targets import Form, Loss, form_for, like_of
from leakmap.problem.task import Task, build_loss
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code, load_user_code
from leakmap.seeds import derive, generator


@dataclass(frozen=True)
class Code:
    """A user's own architecture and loss: Python objects that no file can hold.

    Args:
        model: The architecture; its weights do not matter, they travel as tensors.
        loss: ``loss(outputs, y) -> scalar``.
    """

    model: nn.Module | None = None
    loss: Loss | None = None

    def fingerprint(self) -> str:
        """SHA-256 of what the code does, as far as its source or bytecode tells."""
        parts: list[str] = []
        if self.model is not None:
            kinds = {type(layer) for layer in self.model.modules()}
            own = sorted((k for k in kinds if not k.__module__.startswith("torch.")), key=lambda k: k.__qualname__)
            parts += [repr(self.model), *(_source(kind) for kind in own)]
        if self.loss is not None:
            parts.append(_source(self.loss))
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Network:
    """An architecture with its task and weights.

    Args:
        task: The public facts about the problem.
        model: How the architecture is written down.
        weights: Every parameter and buffer by name, as the server sent them.
        code: The user's own architecture or loss, where the specifications point to such.
    """

    task: Task
    model: Spec
    weights: Mapping[str, Tensor]
    code: Code = field(default_factory=Code)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.weights.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type that the network computes in."""
        return next(tensor.dtype for tensor in self.weights.values() if tensor.is_floating_point())

    def module(self) -> nn.Module:
        """A fresh module of this architecture with these weights; no activation layer overwrites its input.

        Raises:
            ModelError: the architecture is a user's own code that was not supplied, or the weights do not fit it.
        """
        module = copy.deepcopy(self._outline)
        own = module.state_dict()
        module.load_state_dict({n: self.weights.get(n, own[n]).detach().clone() for n in own}, assign=not _tied(module))
        return module.to(self.device)

    @cached_property
    def _outline(self) -> nn.Module:
        """The architecture, built and initialised once; its parameters take no memory, unless some are tied."""
        if self.code.model is not None:
            module = _emptied(accepted(self.code.model, self.model), self.task)
        else:
            outline = self._without_memory()
            if outline is not None:
                compare_weights(outline, self.weights, where=f"The weights of {self.model}")
            module = _built_outline(self.model, self.task)
        compare_weights(module, self.weights, where=f"The weights of {self.model}")
        return module

    def fitted(self) -> "Network":
        """The same in the order and types of the architecture, as a client has it who loads these weights.

        Averaging turns BatchNorm's whole numbers into floats; loading cuts them off again.

        Raises:
            ModelError: the weights do not fit the architecture.
        """
        own = self._outline.state_dict()
        return replace(
            self, weights={n: self.weights[n].to(tensor.dtype) for n, tensor in own.items() if n in self.weights}
        )

    def trained(self) -> list[str]:
        """Names of the parameters that a client trains, in the order of the architecture."""
        return [name for name, parameter in self._outline.named_parameters() if parameter.requires_grad]

    def blank(self) -> nn.Module:
        """The architecture for its names and shapes, without memory where that can be; the weights need not fit it."""
        if self.code.model is not None:
            return self.code.model
        return self._without_memory() or _built(self.model, self.task)

    def loss(self) -> Loss | None:
        """What the client minimises, of targets as they stand in a batch, see :mod:`leakmap.problem.targets`.

        None where the module computes it from ``(x, y)``, as detectors do.

        Raises:
            ModelError: the loss is a user's own code that was not supplied, or takes no form of such targets.
        """
        return None if self.task.objects else self._loss

    @cached_property
    def _loss(self) -> Loss:
        own, spec = self.code.loss, self.task.loss
        if own is None and is_user_code(spec.name):
            raise ModelError(
                f"The loss {spec} is code of your own; leakmap does not run code that a file names: "
                "pass the function as code=Code(loss=...)."
            )
        loss = build_loss(spec) if own is None else own
        return loss if own is None and self.task.target == "class" else _fitted(loss, self._form(loss), self._loss_name)

    @property
    def _loss_name(self) -> str:
        return (
            f"The loss {self.task.loss}" if self.code.loss is None or is_user_code(self.task.loss.name) else "The loss"
        )

    def _form(self, loss: Loss) -> Form:
        """The form of targets that the loss takes, tried on what the model gives in either mode."""
        first: Exception | None = None
        for mode in (False, True):
            module = self.module().train(mode)
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    outputs = module(self._random_inputs())
                return form_for(self.task.target, loss, outputs, self.task.tried(3).to(self.device))
            except MemoryError:
                raise
            except (Exception, SystemExit) as error:
                first = first or error if isinstance(error, Exception) else ModelError(f"{in_words(error)}.")
        assert first is not None
        if isinstance(first, LeakmapError):
            raise first
        raise ModelError(
            f"{self._loss_name} does not take what {self.model} gives for 2 inputs beside {self.task.target} targets: "
            f"{in_words(first)}."
        ) from first

    def _random_inputs(self) -> Tensor:
        x = torch.randn(2, *self.task.shape, generator=generator(0, "check"))
        return x.to(self.device, self.dtype)

    def to(self, device: torch.device | str) -> "Network":
        """The same network with its weights on a device."""
        return replace(self, weights={name: tensor.to(device) for name, tensor in self.weights.items()})

    def _without_memory(self) -> nn.Module | None:
        """The architecture without values, as the specification may be hostile.

        None for a library's constructor that computes on tensors; the library bounds its sizes.
        """
        if is_user_code(self.model.name) or self.model.name == IN_MEMORY:
            raise ModelError(
                f"The architecture {self.model} is code of your own; leakmap does not run code that a file names: "
                "pass the module as code=Code(model=...)."
            )
        try:
            with torch.device("meta"):
                return models.build(self.model, self.task)
        except (RuntimeError, NotImplementedError) as error:
            if "/" in self.model.name:
                return None
            raise ModelError(f"{self.model} cannot be built: {error}.") from None


def same_networks(a: Network, b: Network) -> bool:
    """Whether two are the same in everything, weights included."""
    if a is b:
        return True
    if (a.task, a.model, a.code, a.device, list(a.weights)) != (b.task, b.model, b.code, b.device, list(b.weights)):
        return False
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


def _built(model: Spec, task: Task) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return models.build(model, task)


@once(Spec.__eq__)
def _built_outline(model: Spec, task: Task) -> nn.Module:
    return _emptied(_built(model, task), task)


def _emptied(module: nn.Module, task: Task) -> nn.Module:
    """The module as it is run, without memory for its parameters unless some are tied."""
    module = replace_layers(module)
    if task.output:
        module.register_forward_hook(Picking(task.output))
    if not _tied(module):
        for layer in module.modules():
            for name, parameter in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad))
    return module


def _tied(module: nn.Module) -> bool:
    """Whether a parameter stands in several places."""
    return len(list(module.parameters())) < len(list(module.named_parameters(remove_duplicate=False)))


def _fitted(loss: Loss, form: Form, name: str) -> Loss:
    """The loss of targets as they stand in a batch; what it raises is told in a sentence."""

    def computed(outputs: Any, y: Tensor) -> Tensor:
        try:
            return loss(outputs, form(y, like_of(outputs)))
        except (LeakmapError, MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{name} failed: {in_words(error)}.") from error

    return computed


def _source(code: Any) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        compiled = getattr(code, "__code__", None) or getattr(getattr(code, "forward", None), "__code__", None)
        return f"{code!r}" if compiled is None else f"{compiled.co_code!r}{compiled.co_consts!r}{compiled.co_names!r}"


Mode = Literal["train", "eval"]
IN_MEMORY = "(in memory)"
"""The name of an architecture that was given as a module, not as a specification."""


def build_network(
    task: Task,
    model: Spec | str | nn.Module,
    *,
    seed: int = 0,
    weights: Path | str | None = None,
    loss: Loss | None = None,
    mode: Mode = "eval",
) -> Network:
    """A network with fresh weights drawn from ``seed``, or with weights from a file.

    Args:
        task: The public facts about the problem.
        model: A specification, a user's ``file.py:function``, or a module (which keeps its own weights).
        seed: For the initialisation.
        weights: A safetensors file, or a checkpoint that ``torch.load(weights_only=True)`` can read.
        loss: A loss function of the user's own, in place of ``task.loss``.
        mode: Of the client, in which the network is tried.

    Raises:
        ModelError: the model does not map the task's inputs to its classes, or the weights do not fit.
    """
    check_type(task, Task, "The task", "a leakmap.Task")
    if isinstance(model, nn.Module):
        spec, architecture = Spec(IN_MEMORY), accepted(model, Spec(IN_MEMORY))
    else:
        spec = Spec.parse(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "weights"))
            architecture = user_code(spec, task.loss).model or models.build(spec, task)
    if weights is not None:
        fit_weights(architecture, read_weights(Path(weights)), where=str(weights))
    own = isinstance(model, nn.Module) or is_user_code(spec.name)
    if loss is None and is_user_code(task.loss.name):
        loss = build_loss(task.loss)
    state = {name: tensor.detach().clone().contiguous() for name, tensor in architecture.state_dict().items()}
    network = Network(task, spec, state, Code(architecture if own else None, loss))
    check_network(network, mode)
    return network


def user_code(model: Spec, loss: Spec) -> Code:
    """Runs the files that specifications name, if they name any. Only for specifications that the user typed."""
    return Code(
        _call_user_code(model) if is_user_code(model.name) else None,
        build_loss(loss) if is_user_code(loss.name) else None,
    )


def _call_user_code(spec: Spec) -> nn.Module:
    try:
        module = load_user_code(spec.name)(**spec.params)
    except (LeakmapError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{spec} failed when it was built: {in_words(error)}.") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{spec} returned {type(module).__name__}; it must return a torch.nn.Module.")
    return accepted(module, spec)


def outputs_of(
    model: Spec | str | nn.Module,
    shape: tuple[int, int, int],
    output: str = "",
    mode: Mode = "eval",
) -> Tensor | None:
    """What a user's own model gives for 2 random pictures; None where it gives no tensor, which a check then tells.

    Args:
        model: ``file.py:function``, or a module.
        shape: ``(C, H, W)`` of one input.
        output: Which part of what it returns.
        mode: Of the client.
    """
    module = accepted(model, Spec(IN_MEMORY)) if isinstance(model, nn.Module) else _call_user_code(Spec.parse(model))
    x = torch.randn(2, *shape, generator=generator(0, "outputs"))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            given = module.train(mode == "train")(x.to(next(module.parameters())))
            given = Picking(output)(module, x, given) if output else given
    except (Exception, SystemExit):
        return None
    return given.cpu() if isinstance(given, Tensor) else None


def check_network(network: Network, mode: Mode = "eval") -> None:
    """Tries one forward and one backward pass, so that a model that cannot be attacked is refused at once.

    Args:
        network: To try.
        mode: Of the client: a model may give something else in training mode, such as auxiliary outputs.

    Raises:
        ModelError: the outputs have the wrong shape, or the loss has no derivative.
    """
    task, spec = network.task, network.model
    module = network.module().train(mode == "train")
    x = network._random_inputs().requires_grad_()
    y = task.tried(2).to(network.device)
    try:
        with torch.random.fork_rng(devices=[]):
            outputs = module(x, y) if task.objects else module(x)
    except (LeakmapError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        takes = "pictures and their objects, which a detector takes," if task.objects else "inputs"
        raise ModelError(
            f"{spec} does not take {takes} of shape (N, {', '.join(map(str, task.shape))}) in {mode} mode: "
            f"{in_words(error)}. A model that takes more than these is wrapped in a module whose forward takes them."
        ) from error
    if network.code.loss is None and not fits(task, outputs):
        raise ModelError(
            f"{spec} gives {told(outputs)} for 2 inputs in {mode} mode; expected {expected(task, outputs)}."
        )
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError(f"{spec} has no trainable parameter, so a client has nothing to share.")
    loss = network.loss()
    try:
        value = outputs if loss is None else loss(outputs, y)
        signal = torch.autograd.grad(value, [*parameters, x], allow_unused=True, materialize_grads=True)
    except (LeakmapError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{spec} cannot be attacked by gradient matching: {in_words(error)}. "
            "The loss needs a derivative with respect to the weights and the pictures."
        ) from error
    if not all(bool(torch.isfinite(gradient).all()) for gradient in signal):
        raise NonFinite(f"{spec} gives a gradient that is not finite for random pictures.")
