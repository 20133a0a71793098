"""Runs the federation in this process, without sockets and without Ray: python examples/flower/run.py."""

import argparse
import copy
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import uuid4

import numpy as np
from client_app import client
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity
from server_app import server
from task import FEW, Held, partition


class InProcess(Grid):
    """Hands every message to the client app as a copy, as a wire would; written for flwr 1.41."""

    run = None

    def __init__(self, app: ClientApp, clients: int) -> None:
        self.app, self.replies = app, {}
        places = [{"partition-id": number, "num-partitions": clients} for number in range(clients)]
        self.nodes = {1000 + i: Context(1, 1000 + i, place, RecordDict(), {}) for i, place in enumerate(places)}

    def set_run(self, run: object) -> None:
        """There is one run only."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Of all clients."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Runs the clients one after the other."""
        sent = [copy.deepcopy(message) for message in messages]
        names = [uuid4().hex for _ in sent]
        for name, message in zip(names, sent, strict=True):
            message.metadata.__dict__["_message_id"] = name
            self.replies[name] = self.app(message, self.nodes[message.metadata.dst_node_id])
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies, each once."""
        return [self.replies.pop(name) for name in message_ids if name in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Both at once."""
        return self.pull_messages(self.push_messages(messages))


def federate(clients: ClientApp, app: ServerApp, number: int) -> None:
    """Runs a server app with its clients in this process."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0
    app(InProcess(clients, number), Context(1, 0, {}, RecordDict(), {}))


def write_pictures(file: Path, client: int | None, held: Held) -> None:
    """What the audit compares with, which nobody but the auditor needs."""
    own = partition(client, held)
    file.parent.mkdir(parents=True, exist_ok=True)
    images = own.images.permute(0, 2, 3, 1).numpy()
    np.savez(file, images=images, labels=own.labels.numpy(), class_names=np.array(own.classes))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frozen-batchnorm", action="store_true", help="clients train in inference mode")
    parser.add_argument("--dp", action="store_true", help="clients clip their update and add noise")
    parser.add_argument("--data", default=FEW.data, help="pictures, as leakmap audit --data takes them")
    parser.add_argument("--clients", type=int, default=FEW.clients)
    parser.add_argument("--pictures", type=int, default=FEW.pictures, help="of each client")
    parser.add_argument("--batch-size", type=int, help="of one local step; all pictures unless told otherwise")
    parser.add_argument("--drop-last", action="store_true", help="a partial last batch is left out")
    parser.add_argument("--out", type=Path, default=Path("runs/flower"))
    chosen = parser.parse_args(arguments)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    held = Held(
        chosen.data, chosen.clients, chosen.pictures, chosen.batch_size or chosen.pictures, drop_last=chosen.drop_last
    )
    names = ("frozen_batchnorm", "dp", "drop_last")
    variant = "-".join(name.replace("_", "-") for name in names if getattr(chosen, name))
    folder = chosen.out / (variant or "plain")
    for number in range(held.clients):
        write_pictures(chosen.out / "truth" / f"client-{number}.npz", number, held)
    write_pictures(chosen.out / "others.npz", None, held)
    federate(client(folder, chosen.frozen_batchnorm, chosen.dp, held), server(held), held.clients)
    for file in sorted(folder.glob("round-*/client-*.safetensors")):
        print(file)


if __name__ == "__main__":
    main()
