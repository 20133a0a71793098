"""Every fact that may be wrong, one function each: it yields what the client may have done instead."""

from leakmap.auditing.case import Look
from leakmap.doctor.hypotheses.client import (
    batch_size,
    decay,
    defended,
    epochs,
    mini_batches,
    mode,
    momentum,
    optimizer,
    passes,
    smoothing,
    statistics,
)
from leakmap.doctor.hypotheses.inputs import fitted_normalization, normalization, pictures
from leakmap.doctor.hypotheses.labels import other_labels
from leakmap.doctor.hypotheses.payload import factor, kind, learning_rate, order, scale, summed

GROUPS: tuple[tuple[tuple[str, Look], ...], ...] = (
    (
        ("defence", defended),
        ("kind", kind),
        ("scale", scale),
        ("summed loss", summed),
        ("lr", learning_rate),
        ("factor", factor),
    ),
    (("parameter order", order), ("mode", mode)),
    (("running statistics", statistics), ("label smoothing", smoothing)),
    (("normalization", normalization), ("pictures", pictures)),
    (("labels", other_labels),),
    (("epochs", epochs), ("batch size", batch_size), ("mini-batches", mini_batches), ("passes", passes)),
    (("weight decay", decay), ("momentum", momentum), ("optimizer", optimizer)),
)
"""Every fact with its hypotheses, cheap and common ones first; those of one group can stand for each other, so all of
it is tried before one is named. A new hypothesis is one function and a name here."""
LAST: tuple[tuple[str, Look], ...] = (("normalization", fitted_normalization),)
"""What takes many simulations, and is tried once, where nothing else explains the update."""
