"""Every fact that may be wrong, one function each: it yields what the client may have done instead."""

from leakmap.auditing.case import Look
from leakmap.doctor.hypotheses.client import (
    batch_size,
    defended,
    epochs,
    mini_batches,
    mode,
    passes,
    statistics,
)
from leakmap.doctor.hypotheses.inputs import fitted_normalization, normalization, pictures
from leakmap.doctor.hypotheses.labels import other_labels
from leakmap.doctor.hypotheses.loss import class_weights, fitted_class_weights, smoothing
from leakmap.doctor.hypotheses.payload import factor, kind, learning_rate, order, scale, summed
from leakmap.doctor.hypotheses.steps import clipping, decay, momentum, nesterov, optimizer, proximal, schedule

GROUPS: tuple[tuple[tuple[str, Look], ...], ...] = (
    (
        ("defence", defended),
        ("kind", kind),
        ("scale", scale),
        ("summed loss", summed),
        ("lr", learning_rate),
        ("factor", factor),
        ("clipping", clipping),
    ),
    (("parameter order", order), ("mode", mode)),
    (("running statistics", statistics), ("label smoothing", smoothing), ("class weights", class_weights)),
    (("normalization", normalization), ("pictures", pictures)),
    (("labels", other_labels),),
    (("epochs", epochs), ("batch size", batch_size), ("mini-batches", mini_batches), ("passes", passes)),
    (
        ("weight decay", decay),
        ("momentum", momentum),
        ("nesterov", nesterov),
        ("proximal term", proximal),
        ("schedule", schedule),
        ("optimizer", optimizer),
    ),
)
"""Every fact with its hypotheses, cheap and common ones first; those of one group can stand for each other, so all of
it is tried before one is named. A new hypothesis is one function and a name here."""
LAST: tuple[tuple[str, Look], ...] = (("class weights", fitted_class_weights), ("normalization", fitted_normalization))
"""What takes many simulations, and is tried once, where nothing else explains the update."""
UNTRIED = (
    "control variates (SCAFFOLD); momentum or moments of Adam that the client kept from earlier rounds; the mean of "
    "several clients; steps that a GradScaler skipped; running statistics that the client keeps (FedBN)"
)
"""Rules of clients that no hypothesis covers, for the sentence where nothing explains an update."""
