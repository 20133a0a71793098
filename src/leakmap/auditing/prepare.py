"""What an audit is run on: its pictures in groups, its networks, and the names of both."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from leakmap.attacker.attacks import attacks
from leakmap.auditing.recipe import Names, names_of
from leakmap.client.data import Pictures, load_pictures
from leakmap.client.groups import Groups, divide
from leakmap.client.targets import labelled, outputs_of, target_of
from leakmap.client.training import accuracy, calibrated, train
from leakmap.errors import BadSetting, DataError
from leakmap.files import DAMAGED, read_tensors
from leakmap.models.network import IN_MEMORY, Network, build_network
from leakmap.models.network import outputs_of as shown_by
from leakmap.models.weights import WEIGHTS_LIMIT, write_weights
from leakmap.plan.plan import Plan, Progress, Scalar, check, check_device
from leakmap.problem.targets import WITHOUT_CLASS, Loss, usual_loss
from leakmap.problem.task import Task
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code
from leakmap.runs.setup import Setup

NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


@dataclass(frozen=True)
class Prepared:
    """The setups of an audit.

    Args:
        main: The audited network and all pictures.
        control: The planted control's network and the same pictures.
        accuracy: Of the audited network on the reference pictures.
        flags: Why a result may be no evidence, by name.
    """

    main: Setup
    control: Setup
    accuracy: float
    flags: Mapping[str, str] = field(default_factory=dict)

    @property
    def digests(self) -> tuple[str, str]:
        """Of both setups."""
        return self.main.digest, self.control.digest


def prepare(
    plan: Plan,
    pictures: Pictures | None = None,
    module: nn.Module | None = None,
    loss: Loss | None = None,
    device: str = "cpu",
    rehearsals: int = 0,
    trained: Path | None = None,
    progress: Progress = lambda what, fraction: None,
) -> Prepared:
    """Loads the pictures, divides them, builds and trains the networks.

    Args:
        plan: The audit.
        pictures: In place of ``plan.data``.
        module: In place of ``plan.model``.
        loss: In place of ``plan.loss``.
        device: Where to train.
        rehearsals: Simulated clients to tune on; they change neither the clients nor the network.
        trained: Folder that keeps briefly trained weights, by name; None trains every time.
        progress: Called with what is being done and the finished fraction.

    Raises:
        UsageError: something does not fit; nothing was computed yet.
    """
    check_device(device)
    check(plan)
    groups, task = gather(plan, pictures, rehearsals, progress, module, loss)
    plan = granting(plan, groups)
    progress("building the model", 0.0)
    chosen = module if module is not None else plan.model
    network = build_network(task, chosen, seed=plan.seed, weights=plan.weights, loss=loss, mode=plan.rule.mode).to(
        "cpu"
    )
    in_memory = IN_MEMORY in (plan.model, plan.data) or loss is not None
    names = Names() if in_memory else names_of(plan, task, groups)
    reference = groups.reference
    if plan.calibrate:
        network = calibrated(network, groups.images[reference], groups.targets(reference))
    if plan.train_epochs:
        kept = trained / f"{names.network}.safetensors" if trained is not None and names.network else None
        network = _kept(network, kept) or _trained(plan, network, groups, device, progress)
        if kept is not None and not kept.is_file():
            write_weights(kept, network.weights)
    no_class = network.code.loss is not None or task.objects > 0 or task.target != "class"
    right = math.nan if no_class else accuracy(network, groups.images[reference], groups.labels[reference])
    return Prepared(Setup(network, groups, names.main), planted(plan, groups, task, names), right)


def granting(plan: Plan, groups: Groups) -> Plan:
    """The plan with the number of public pictures that are granted; nothing that is run or told says ``auto``.

    Args:
        plan: The audit.
        groups: Its pictures.

    Raises:
        BadSetting: the attack needs public pictures, and none are left for it.
    """
    if plan.threat.public != "auto":
        return plan
    count = len(groups.public)
    if not count and "public" in attacks.build(plan.attack).needs:
        why = "of pictures with objects none are granted unasked" if groups.objects.numel() else "none are left"
        raise BadSetting(
            f"This attack needs public pictures, and {why}: say how many with --public, or give more pictures."
        )
    return replace(plan, threat=replace(plan.threat, public=count))


def planted(plan: Plan, groups: Groups, task: Task, names: Names) -> Setup:
    """The setup of the planted control: a network that is known to leak to the plan's attack, and the same pictures.

    It has the same kind of target with a loss that fits it, see :meth:`leakmap.problem.task.Task.leaky`.
    """
    leaky = attacks.build(plan.attack).leaky_model
    return Setup(build_network(task.leaky(), leaky, seed=plan.seed), groups, names.control)


def gather(
    plan: Plan,
    pictures: Pictures | None = None,
    rehearsals: int = 0,
    progress: Progress = lambda what, fraction: None,
    module: nn.Module | None = None,
    loss: Loss | None = None,
) -> tuple[Groups, Task]:
    """The pictures of an audit in groups, and the task that they make.

    Args:
        plan: The audit.
        pictures: In place of ``plan.data``.
        rehearsals: Simulated clients to tune on.
        progress: Called with what is being done and the finished fraction.
        module: In place of ``plan.model``.
        loss: In place of ``plan.loss``.

    Raises:
        UsageError: there are too few pictures, or they do not fit the plan.
    """
    progress("loading pictures", 0.0)
    found = pictures or load_pictures(plan.data, plan.image_size)
    target, given = plan.target, _outputs(plan, found, module)
    if target == "auto":
        target = target_of(found, given, "own" if loss is not None else Spec.parse(plan.loss).name)
    found = labelled(found, target, "images" if plan.data == IN_MEMORY else plan.data)
    needed = outputs_of(found, target, given)
    groups = divide(
        found,
        victims=plan.victims,
        batch_size=plan.batch_size,
        public=plan.threat.public,
        training=plan.train_epochs > 0,
        rehearsals=rehearsals,
        seed=plan.seed,
    )
    groups = _without_rehearsed(plan, groups)
    channels, height, width = groups.images.shape[1:]
    mean, std = _normalization(plan.normalization, groups)
    classes = plan.classes or needed
    if classes < needed:
        what = "classes" if target == "class" else f"outputs for the target {target}"
        raise BadSetting(f"classes is {classes}, but the pictures have {needed} {what}.")
    if plan.threat.labels == "counts" and target in WITHOUT_CLASS:
        raise BadSetting(f"The target {target} has no classes to count; use --labels known or unknown.")
    most = groups.objects.shape[1] if groups.objects.numel() else 0
    if most and plan.loss != "cross_entropy":
        raise BadSetting(f"A detector computes its own loss; got {plan.loss}. Leave the loss out.")
    name = usual_loss(target, classes) if plan.loss == "cross_entropy" and not most else plan.loss
    shape = (channels, height, width)
    return groups, Task(shape, classes, mean, std, Spec.parse(name), most, target, plan.output)


def _outputs(plan: Plan, pictures: Pictures, module: nn.Module | None) -> tuple[int, ...] | None:
    """Shape of what the user's own network gives for 2 pictures; None of others, which are built to the data."""
    spec = Spec.parse(plan.model)
    if pictures.objects is not None or (module is None and not is_user_code(spec.name)):
        return None
    channels, height, width = pictures.images.shape[1:]
    given = shown_by(spec if module is None else module, (channels, height, width), plan.output, plan.rule.mode)
    return None if given is None else tuple(given.shape)


def _kept(network: Network, path: Path | None) -> Network | None:
    """The network with the weights of a file; None where there is none that can be read."""
    if path is None or not path.is_file():
        return None
    try:
        found = replace(network, weights=read_tensors(path, WEIGHTS_LIMIT)[0])
        found.module()
    except DAMAGED:
        path.unlink(missing_ok=True)
        return None
    return found


def _trained(plan: Plan, network: Network, groups: Groups, device: str, progress: Progress) -> Network:
    pool = groups.training
    found = train(
        network.to(device),
        groups.images[pool],
        groups.targets(pool),
        plan.train_epochs,
        plan.seed,
        lambda fraction: progress("training briefly", fraction),
    )
    return found.to("cpu")


def facts(plan: Plan, setup: Setup) -> dict[str, Scalar]:
    """What settings are tuned to, by name: the network, the client and what the server is granted."""
    return {
        "model": plan.model,
        "weights": setup.network_digest,
        "data": plan.data,
        "batch_size": plan.batch_size,
        **{f"rule.{name}": value for name, value in asdict(plan.rule).items()},
        **{f"threat.{name}": value for name, value in asdict(plan.threat).items()},
    }


def _without_rehearsed(plan: Plan, groups: Groups) -> Groups:
    """The groups without distractors that were rehearsed on.

    Raises:
        DataError: a victim was rehearsed on, in settings that do not say so.
    """
    if plan.tuned is None or plan.tuned.column == "oracle-tuned":
        return groups
    seen = set(plan.tuned.pictures).intersection(groups.digests(groups.victims))
    if seen:
        raise DataError(
            f"{len(seen)} of {groups.victims.numel()} pictures of victims were rehearsed on in {plan.tuned.file}; "
            "tune again with the --seed, --victims and --batch-size of this audit."
        )
    rehearsed = set(plan.tuned.pictures)
    kept = [digest not in rehearsed for digest in groups.digests(groups.distractors)]
    return replace(groups, distractors=groups.distractors[torch.tensor(kept, dtype=torch.bool)])


def _normalization(text: str, groups: Groups) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels = groups.images.shape[1]
    if text == "data":
        reference = groups.pictures(groups.reference).transpose(0, 1).flatten(1)
        mean, std = reference.mean(1), reference.std(1).clamp(min=0.05)
        return tuple(round(v, 3) for v in mean.tolist()), tuple(round(v, 3) for v in std.tolist())
    if text in NORMALIZATIONS:
        mean, std = NORMALIZATIONS[text]
    else:
        try:
            left, right = text.split(":")
            mean, std = tuple(map(float, left.split("/"))), tuple(map(float, right.split("/")))
        except ValueError:
            known = ", ".join(["data", *NORMALIZATIONS])
            raise BadSetting(f"normalization is one of {known}, or MEAN/…:STD/…; got {text!r}.") from None
    if len(mean) != channels:
        raise BadSetting(f"normalization={text} has {len(mean)} channels, the pictures have {channels}.")
    return mean, std
