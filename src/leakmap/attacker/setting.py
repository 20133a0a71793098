"""What the server knows before any client answers."""

from dataclasses import dataclass, replace

import torch

from leakmap.local_rule import LocalRule, Share
from leakmap.models.network import Network
from leakmap.observation.contents import Public
from leakmap.observation.observation import Observation


@dataclass(frozen=True)
class Setting:
    """What the server knows and holds before any client answers, for all clients alike.

    It has no room for what a client sends: no update, no returned buffers, no labels of a client.

    Args:
        network: Task, architecture and the weights that the server sends.
        share: Whether clients will send a gradient or a weight delta.
        count: Examples of each client; None where that is withheld.
        rule: The clients' local rule; None where it is withheld.
        granted: Names of the facts that every client's Observation will hold, such as ``label_counts`` or ``buffers``.
        public: Public pictures from the same source; None where there are none.
    """

    network: Network
    share: Share
    count: int | None = None
    rule: LocalRule | None = None
    granted: frozenset[str] = frozenset()
    public: Public | None = None

    def copied(self) -> "Setting":
        """The same with tensors of its own, so that nothing that a fit overwrites is seen elsewhere."""
        weights = {name: tensor.detach().clone() for name, tensor in self.network.weights.items()}
        public = self.public and Public(self.public.pictures.clone(), self.public.labels.clone())
        return replace(self, network=replace(self.network, weights=weights), public=public)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.device


def setting_of(observation: Observation) -> Setting:
    """The setting that an Observation was made in: of what it grants, only what does not come from its client."""
    return Setting(
        observation.network,
        observation.update.kind,
        observation.count,
        observation.rule,
        frozenset(fact for fact, given in observation.granted().items() if given),
        observation.public,
    )
