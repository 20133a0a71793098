"""What fitting maps takes, before there are any: their arithmetic, and the memory of what they are fitted to."""

import math

from leakmap.attacker.learned.decoders import CHANNELS, EPOCHS, HIDDEN, RIDGES, WIDEST

NUMBER = 4
"""Bytes of a number that is held of a simulated client."""
DOUBLE = 2
"""What an operation in double precision takes, in single ones."""


def operations(clients: int, held: int, columns: int, outputs: int, size: tuple[int, int, int], count: int) -> int:
    """Floating-point operations of fitting all maps of one view, in those of large matrix products.

    Args:
        clients: Simulated clients that are fitted to.
        held: Held-out ones.
        columns: Of the view, facts included.
        outputs: Numbers that are predicted of a client.
        size: ``(C, h, w)`` of each picture.
        count: Pictures of a client.
    """
    small = min(clients, columns)
    solving = DOUBLE * (small**3 // 3 + 2 * small**2 * outputs) + 2 * columns * outputs * (small + held)
    ridge = 2 * clients * columns * small + len(RIDGES) * solving
    if columns > WIDEST:
        return ridge
    channels, height, width = size
    perceptron = columns * HIDDEN + HIDDEN**2 + HIDDEN * outputs
    coarse = math.ceil(height / 8) * math.ceil(width / 8)
    dense = columns * HIDDEN // 2 + HIDDEN // 2 * CHANNELS[0] * coarse + height * width * channels * outputs
    layers = zip((CHANNELS[0], *CHANNELS), (*CHANNELS, count * channels), (1, 4, 16, 64), strict=True)
    drawn = sum(9 * before * after * coarse * larger for before, after, larger in layers)
    # A multiplication and an addition, forwards and, twice as long, backwards.
    return ridge + 6 * clients * EPOCHS * (perceptron + dense + drawn)


def memory(clients: int, columns: int, outputs: int) -> int:
    """Bytes of the columns of all clients, as they were read and standardised, and of their targets."""
    return NUMBER * clients * (2 * columns + outputs)
