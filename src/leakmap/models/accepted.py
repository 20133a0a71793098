"""Which modules leakmap takes: what it cannot copy, read or train is refused in a sentence that says what to pass."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from leakmap.errors import ModelError, in_words
from leakmap.registry.spec import Spec

_WRAPPED = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
"""Wrapper of a module -> where the module is."""


def accepted(module: nn.Module, spec: Spec) -> nn.Module:
    """A copy of a user's module without its hooks, if leakmap can work with it.

    Hooks of forward and backward passes are the user's own, and would be called in every iteration of an attack. Those
    of torch stay, as spectral norm makes a weight by one; pruning and the old ``weight_norm`` are refused.

    Raises:
        ModelError: it is wrapped, has no weights yet, or weights that cannot be copied or attacked.
    """
    if (why := next(_faults(module), None)) is not None:
        raise ModelError(f"{spec} {why}.")
    try:
        own = copy.deepcopy(module)
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"{spec} cannot be copied ({in_words(error)}); keep what cannot be out of the module, such as open files, "
            "generators, locks and tensors with a history."
        ) from None
    for layer in own.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            hooks = getattr(layer, name, {})
            for key in [key for key, hook in hooks.items() if not type(hook).__module__.startswith("torch.")]:
                del hooks[key]
    return own


def _faults(module: nn.Module) -> Iterator[str]:
    """What is wrong with a module, after its name."""
    if (place := _WRAPPED.get(type(module).__name__)) is not None:
        yield f"is wrapped in {type(module).__name__}, which cannot be attacked; pass what is inside, model.{place}"
    named = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in named:
        if is_lazy(tensor):
            yield f"has the lazy tensor {name!r}, which has no shape yet; pass a batch through the model first"
        elif tensor.is_meta:
            yield f"has {name!r} on the device 'meta', without values; build the model on the cpu"
        elif tensor.dtype in (torch.float16, torch.bfloat16):
            yield (
                f"has {name!r} in {str(tensor.dtype).removeprefix('torch.')}, in which no client's step is simulated; "
                "pass model.float(): mixed precision keeps such weights, too"
            )
        elif tensor.is_complex():
            yield f"has the complex tensor {name!r}; attacks take real weights: hold real and imaginary part apart"
    for place, layer in module.named_modules():
        for name, value in vars(layer).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                yield (
                    f"computes {f'{place}.{name}'.lstrip('.')!r} from other weights by a hook, as pruning and the old "
                    "weight_norm do; call prune.remove first, or use torch.nn.utils.parametrizations"
                )
    if not any(parameter.is_floating_point() and parameter.requires_grad for parameter in module.parameters()):
        yield "has no trainable parameter, so a client has nothing to share"
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            yield f"keeps {name!r}, which is no tensor, among its weights, as quantised layers do; pass it unquantised"
