"""What is kept from one client to the next."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import leakmap
from leakmap.errors import UsageError
from leakmap.models.network import Network, build_network, same_networks
from leakmap.once import once


def test_a_network_is_looked_into_once_however_many_copies_of_it_clients_bring() -> None:
    asked: list[str] = []

    @once(same_networks)
    def look(network: Network, word: str) -> int:
        asked.append(word)
        if word == "wrong":
            raise UsageError("A wrong word.")
        return len(asked)

    first = build_network(leakmap.Task((3, 8, 8), 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "mlp")
    copies = [replace(first, weights={n: t.clone() for n, t in first.weights.items()}) for _ in range(3)]
    assert [look(network, "a") for network in (first, *copies)] == [1, 1, 1, 1]
    assert look(first, "b") == 2
    copies[0].weights[next(iter(first.weights))].flatten()[0] += 1
    assert look(copies[0], "b") == 3, "other weights are another network"
    for _ in range(2):
        with pytest.raises(UsageError):
            look(first, "wrong")
    assert asked == ["a", "b", "b", "wrong", "wrong"]
    module: Callable[[], torch.nn.Module] = first.module
    assert module() is not module(), "a kept outline is copied, as callers change what they get"
