"""The client app: an ordinary one, with leakmap's tap as its first mod."""

from math import log, sqrt
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from task import FACTS, FEW, Held, build, everything, partition, train

from leakmap import Facts
from leakmap.capturing.flower import tap

CLIP, EPSILON, DELTA = 1.0, 100.0, 1e-5
NOISE = sqrt(2 * log(1.25 / DELTA)) / EPSILON


def facts(frozen_batchnorm: bool, dp: bool, held: Held = FEW) -> Facts:
    """The facts of a variant: those of facts.toml, with what it changes."""
    changed = {"mode": "eval"} if frozen_batchnorm else {}
    if held.batch_size < held.pictures:
        changed |= {"batch_size": held.batch_size, "drop_last": held.drop_last}
    if dp:
        changed["defence"] = f"clip_noise,clip={CLIP},noise={NOISE}"
    classes = len(everything(held.data).classes)
    return FACTS.model_copy(update={"rule": FACTS.rule.model_copy(update=changed), "classes": classes})


def client(folder: Path | str, frozen_batchnorm: bool = False, dp: bool = False, held: Held = FEW) -> ClientApp:
    """A client app whose updates are recorded under ``folder``, as they leave the client."""
    told = facts(frozen_batchnorm, dp, held)
    mods = [tap(folder, told)]
    if dp:
        mods.append(LocalDpMod(clipping_norm=CLIP, sensitivity=CLIP, epsilon=EPSILON, delta=DELTA))
    app = ClientApp(mods=mods)

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        net, own = build(told.classes), partition(number, held)
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        train(net, own, message.content["config"]["lr"], frozen_batchnorm, held)
        metrics = MetricRecord({"num-examples": len(own), "partition-id": number})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)

    return app


app = client(Path.home() / "leakmap-flower")
