"""The command line that repeats an audit."""

import shlex

from leakmap.attacker.attacks import DEFAULT
from leakmap.client_step import LocalRule
from leakmap.models.network import IN_MEMORY
from leakmap.plan.plan import Captured, Plan
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code


def command(plan: Plan) -> str:
    """The command line, or for things in memory the call, that repeats an audit."""
    rule, threat, default = plan.rule, plan.threat, LocalRule()
    if plan.captured is not None:
        return _command_of_captured(plan, plan.captured)
    if IN_MEMORY in (plan.model, plan.data):
        return (
            f"leakmap.audit(model, images, labels, client={rule}, threat={threat}, attack={str(plan.attack)!r}, "
            f"victims={plan.victims}, batch_size={plan.batch_size}, control={plan.control!r}, seed={plan.seed})"
        )
    parts = ["--model", plan.model, "--data", plan.data, "--mode", rule.mode]
    steps = None if rule.batch_size is None else -(-plan.batch_size // rule.batch_size)
    options = {
        "weights": (plan.weights, None),
        "train-epochs": (plan.train_epochs, 0),
        "image-size": (plan.image_size, None),
        "classes": (plan.classes, None),
        "normalization": (plan.normalization, "data"),
        "loss": (plan.loss, "cross_entropy"),
        "victims": (plan.victims, 12),
        "batch-size": (plan.batch_size, 1),
        "share": (rule.share, default.share),
        "local-steps": (steps, None),
        "epochs": (rule.epochs, default.epochs),
        "lr": (rule.lr, default.lr),
        "momentum": (rule.momentum, default.momentum),
        "weight-decay": (rule.weight_decay, default.weight_decay),
        "optimizer": (rule.optimizer, default.optimizer),
        "dropout": (rule.dropout, None),
        "accumulate": (rule.accumulate, 1),
        "defence": (rule.defence, default.defence),
        "labels": (threat.labels, "unknown"),
        "public": (threat.public, 0),
        "known-pixels": (threat.known_pixels, 0.0),
        "attack": (str(plan.attack) if plan.tuned is None else plan.attack.name, DEFAULT),
        "tuned": (plan.tuned and plan.tuned.file, None),
        "control": (plan.control, "none"),
        "seed": (plan.seed, 0),
    }
    for name, (value, usual) in options.items():
        parts += [f"--{name}", str(value)] if value != usual else []
    for name in plan.metrics:
        parts += ["--metric", name]
    parts += ["--calibrate"] if plan.calibrate else []
    parts += [] if threat.buffers else ["--no-buffers"]
    parts += ["--shuffle"] if rule.shuffle else []
    return shlex.join(["leakmap", "audit", *parts])


def _command_of_captured(plan: Plan, captured: Captured) -> str:
    parts = ["leakmap", "audit"]
    for file, truth in zip(captured.observations, captured.truths, strict=True):
        parts += ["--observation", file, "--truth", truth]
    parts += ["--others", captured.others, "--attack", str(plan.attack), "--labels", plan.threat.labels]
    parts += ["--model", plan.model] if is_user_code(Spec.parse(plan.model).name) else []
    parts += ["--loss", plan.loss] if is_user_code(Spec.parse(plan.loss).name) else []
    parts += ["--public", str(plan.threat.public)] if plan.threat.public else []
    for name in plan.metrics:
        parts += ["--metric", name]
    return shlex.join([*parts, "--seed", str(plan.seed)])
