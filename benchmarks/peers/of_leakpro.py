"""LeakPro, from a checkout, in an environment of its own: its class-based attack and its modular one.

Both in their own settings of "inverting gradients", save what is compared: the weight of the total variation, labels
granted, and gradients shared rather than a step of SGD where there is the choice (the modular one; the class-based one
always simulates a step). The class-based one always simulates inference mode, so it does not apply to clients in
training mode. Its loop runs unchanged, its score against the truth every 250 iterations included; the first iteration,
where one such falls, is not timed. Of both, one method that is called once in each iteration tells a watch.
"""

from collections.abc import Mapping
from typing import Any

import torch
from leakpro.attacks.gia_attacks.invertinggradients import (  # pyright: ignore[reportMissingImports]
    InvertingConfig,
    InvertingGradients,
)
from leakpro.attacks.gia_attacks.modular.presets import (  # pyright: ignore[reportMissingImports]
    gia_running_attack,
    inverting_gradients_attack,
)
from leakpro.fl_utils.fl_client_simulator import ClientObservations  # pyright: ignore[reportMissingImports]
from leakpro.fl_utils.gia_optimizers import MetaSGD  # pyright: ignore[reportMissingImports]
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.contestants import (
    LEAKPRO,
    LEAKPRO_IG,
    LEAKPRO_MODULAR,
    LEAKPRO_RUNNING,
    SEED,
    Answer,
    Attack,
    Evaluate,
    Preset,
    Settings,
)
from benchmarks.peers.watches import Enough, Watch
from benchmarks.peers.works import Case
from leakmap.errors import NotApplicable


class Watched(InvertingGradients):
    """LeakPro's own, with a watch."""

    watch: Watch | None = None

    def gradient_closure(self, optimizer: Any) -> Any:
        """Called once in each iteration."""
        if self.watch is not None:
            self.watch(self.reconstruction)
        return super().gradient_closure(optimizer)


def class_based(case: Case, steps: int, tv: float) -> Watched:
    """The class-based attack, prepared: it holds the client's update."""
    if case.mode == "train":
        raise NotApplicable("LeakPro's class-based attack simulates every client in inference mode.")
    task = case.observation.network.task
    loader = DataLoader(TensorDataset(task.normalize(case.pictures).cpu(), case.y.cpu()), batch_size=32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (task.mean, task.std))
    peer = Watched(
        case.observation.network.module().eval(), loader, mean, std, configs=InvertingConfig(tv, at_iterations=steps)
    )
    peer.prepare_attack()
    rule = case.observation.rule
    if rule is not None and rule.share == "delta":
        # It has no size of a local batch, and shuffles: here it takes the steps that the client took.
        peer.configs.optimizer = MetaSGD(rule.lr)
        peer.client_gradient = list(case.observation.update.tensors.values())
        peer.client_loader, peer.reconstruction_loader = (
            DataLoader(loader.dataset, batch_size=rule.batch_size)
            for loader in (peer.client_loader, peer.reconstruction_loader)
        )
    return peer


def class_based_contestant(case: Case) -> Evaluate:
    """Its closure at the guess, total variation of weight 0 included. It shuffles the batch every time."""
    peer = class_based(case, 1, 0.0)
    with torch.no_grad():
        peer.reconstruction.copy_(case.guess)
    closure = peer.gradient_closure(torch.optim.Adam([peer.reconstruction]))

    def evaluate() -> Answer:
        with sdpa_kernel(SDPBackend.MATH):
            term = closure()
        return term.detach().squeeze(), peer.reconstruction.grad

    return evaluate


def class_based_attack(case: Case, settings: Settings, watch: Watch) -> None:
    """Its loop."""
    _run_class_based(case, *settings.published(), watch)


def class_based_preset(case: Case, steps: int, watch: Watch) -> None:
    """Its loop in settings of its own."""
    _run_class_based(case, steps, InvertingConfig().tv_reg, watch)


def _run_class_based(case: Case, steps: int, tv: float, watch: Watch) -> None:
    torch.manual_seed(SEED)
    peer = class_based(case, steps, tv)
    peer.watch = watch
    # Its loop sets this only once a result is like the truth, and fails at the end if none ever was.
    peer.final_best = peer.reconstruction_loader
    try:
        with sdpa_kernel(SDPBackend.MATH):
            for _ in peer.run_attack():
                pass
    except Enough:
        return


def modular(case: Case, steps: int, tv: float) -> tuple[Any, Any]:
    """The modular attack, and what it calls the client's observations."""
    observation = case.observation
    task, device = observation.network.task, observation.network.device
    settings = inverting_gradients_attack()
    settings.tv_weight, settings.max_iterations = tv, steps
    settings.training_simulator_compute_mode, settings.training_simulator_model_mode = "gradients", case.mode
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (task.mean, task.std))
    held = ClientObservations(
        gradients=dict(observation.update.tensors),
        num_images=len(case.y),
        input_shape=(len(case.y), *task.shape),
        labels=case.y,
        data_mean=mean,
        data_std=std,
        num_classes=task.classes,
    )
    return settings.build(), held


def modular_contestant(case: Case) -> Evaluate:
    """Its loss at the guess, and ``backward()`` as its step does."""
    peer, held = modular(case, 1, 0.0)
    model, optimization = case.observation.network.module(), peer.optimization
    labels = peer._infer_labels(model, held, len(case.y))
    shape, labels = peer._compute_initialization_shape(held.input_shape, held, labels)
    state = optimization._setup_optimization(case.guess.clone().reshape(shape), labels, held)
    target = [held.gradients[name].detach() for name, _ in model.named_parameters()]

    def evaluate() -> Answer:
        state.optimizer.zero_grad()
        with sdpa_kernel(SDPBackend.MATH):
            term, _ = optimization._compute_loss(state, model, target, optimization.loss_fn)
            term.backward()
        return term.detach().squeeze(), state.reconstruction.grad.reshape(case.guess.shape)

    return evaluate


def modular_attack(case: Case, settings: Settings, watch: Watch) -> None:
    """Its loop."""
    _run_modular(case, *modular(case, *settings.published()), watch)


def running_preset(case: Case, steps: int, watch: Watch) -> None:
    """The modular attack "GIA Running" in settings of its own: it reads the client's returned statistics.

    Raises:
        NotApplicable: the client returned none that moved.
    """
    observation = case.observation
    network, buffers = observation.network, observation.buffers
    if case.mode != "train" or not buffers:
        raise NotApplicable("GIA Running reads statistics that a client in training mode returns.")
    layers = [name.removesuffix("running_mean") for name in buffers if name.endswith("running_mean")]
    _, held = modular(case, steps, 0.0)
    held.pre_bn_stats, held.post_bn_stats = (
        [(of[f"{layer}running_mean"], of[f"{layer}running_var"]) for layer in layers]
        for of in (network.weights, buffers)
    )
    settings = gia_running_attack()
    settings.max_iterations = steps
    # The client shared a gradient, where this one simulates a step of SGD unless told otherwise.
    settings.training_simulator_compute_mode, settings.use_client_compute_mode = "gradients", False
    _run_modular(case, settings.build(), held, watch)


def _run_modular(case: Case, peer: Any, held: Any, watch: Watch) -> None:
    torch.manual_seed(SEED)
    original = peer.optimization._compute_loss

    def watched(state: Any, *arguments: Any) -> Any:
        watch(state.reconstruction.detach().reshape(case.guess.shape))
        return original(state, *arguments)

    peer.optimization._compute_loss = watched
    device = case.observation.network.device
    try:
        with sdpa_kernel(SDPBackend.MATH):
            peer.run_attack(case.observation.network.module(), held, device)
    except Enough:
        return


CONTESTANTS: Mapping[str, Any] = {LEAKPRO: class_based_contestant, LEAKPRO_MODULAR: modular_contestant}
PRESETS: Mapping[str, Preset] = {LEAKPRO_IG: class_based_preset, LEAKPRO_RUNNING: running_preset}
ATTACKS: Mapping[str, Attack] = {LEAKPRO: class_based_attack, LEAKPRO_MODULAR: modular_attack}
