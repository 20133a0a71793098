"""What a pipeline is told about every level and every flag, as the rules of a SARIF file."""

from collections.abc import Mapping
from dataclasses import dataclass

from leakmap.scoring.verdict import Level


@dataclass(frozen=True)
class About:
    """A level or a flag for somebody who reads of it in a pipeline.

    Args:
        short: What it means, in a sentence.
        advice: What to do about it.
    """

    short: str
    advice: str


LEVELS: Mapping[Level, About] = {
    "exact": About(
        "A picture came back almost pixel by pixel: above 30 dB PSNR.",
        "Do not send such updates. leakmap inspect MODEL names the traits that let it happen and their cures; see "
        "docs/defences.md for what a client can do to its update.",
    ),
    "visual": About(
        "A picture came back so that it can be recognised: above 0.5 SSIM.",
        "Do not send such updates. leakmap inspect MODEL names the traits that let it happen and their cures; see "
        "docs/defences.md for what a client can do to its update.",
    ),
    "partial": About(
        "True pictures are picked out of a line-up at least ten times as often as by chance.",
        "Whoever has candidates can tell whose picture was used. Larger batches, more local steps, a defence or secure "
        "aggregation lower this; audit again after each change.",
    ),
    "statistical": About(
        "The true pictures rank above chance, or the reconstructions lie above every floor, over all clients together.",
        "No single picture was recovered by this attack, but updates tell something. Audit with more clients and a "
        "larger budget before it is accepted.",
    ),
    "none_found": About(
        "Nothing was found with this knowledge and budget, and the attack found a client that is known to leak.",
        "Read the bound: so many of such clients may still be exposed. More clients lower it; another attack may find "
        "more.",
    ),
    "inconclusive": About(
        "The audit failed as a measurement: a control was off, the update is degenerate, or runs failed.",
        "This is no good result. The reasons and flags of the report say what to change; run the audit again.",
    ),
}
FLAGS: Mapping[str, About] = {
    "does_not_replay": About(
        "A captured update is not the one that its facts give on its pictures.",
        "leakmap doctor FILE --replay DATA says which fact is wrong.",
    ),
    "known_pixels": About(
        "The server was given true pixels, so line-ups and the planted control are no evidence.",
        "Leave --known-pixels out of an audit that decides something.",
    ),
    "defence_broken": About(
        "Pictures are picked out more often than the noise of the clients' defence allows anybody.",
        "The defence does less than it says: look for noise that is scaled, seeded or clipped wrongly.",
    ),
    "degenerate_update": About(
        "The update does not depend on the pictures as an update of training does.",
        "Check the model, its weights and the loss; leakmap inspect MODEL shows layers without a gradient.",
    ),
    "saturated": About(
        "The update is mostly rounding, as the loss is almost 0.",
        "Audit the weights of an earlier round, at which the loss is larger.",
    ),
    "failed_runs": About("Runs failed.", "The report names them; the same command tries them again."),
    "unfinished": About("Runs are missing.", "The same command continues."),
    "public_copy": About(
        "A picture of a client has almost the same picture among the public ones.",
        "Give public pictures of other subjects: what the server knew beforehand is no leak.",
    ),
    "mixed_line_up": About(
        "Line-ups mix classes, so that knowing the class alone lifts the true picture.",
        "Give more pictures of the rare classes.",
    ),
    "matching_not_reduced": About(
        "The search hardly reduced its matching term.", "Raise --steps, or choose settings with leakmap tune."
    ),
    "still_falling": About("The matching term was still falling at the end.", "Raise --steps."),
    "matched_without_similarity": About(
        "The update is matched by pictures that are unlike the true ones.",
        "Other pictures give the same update; an attack with better priors may still tell them apart.",
    ),
    "mode_differs": About(
        "The attack simulates another mode than the client's.", "Take an attack that simulates the client's mode."
    ),
    "defence_withheld": About(
        "The attacker was not told of the clients' defence.",
        "Grant the rule (leave --no-rule out): what holds against this attacker need not hold against one who knows.",
    ),
    "fitting_withheld": About(
        "The suite lacks what its fitted attack and its rehearsals need.", "Grant public pictures with --public."
    ),
    "oracle_tuned": About(
        "The settings were chosen by looking at the truth: an upper bound.", "Tune without --oracle for a verdict."
    ),
    "rehearsed_elsewhere": About(
        "Tuned settings come from another client.", "Run leakmap tune with the options of this audit."
    ),
    "failed_members": About(
        "An attack of the suite failed where it should have come to a result.",
        "The table of the suite in the report says why.",
    ),
    "labels_wrong": About("Inferred classes are not all right.", "Audit with --labels known too, as an upper bound."),
    "label_order_unknown": About(
        "Mini-batches are simulated in an order of the attack's own.",
        "The order of a client is not granted; nothing need be changed.",
    ),
    "last_step": About(
        "Only the pictures of a client's last local step are judged.",
        "Leave partial last batches out (drop_last=True), or keep buffers on the client.",
    ),
}
"""Every flag that a result may carry; docs/verdict.md lists them with their rules."""


def about_flag(name: str) -> About:
    """What is told of a flag, also of one that is not known here."""
    return FLAGS.get(name, About(f"The flag {name}.", "See docs/verdict.md, Flags."))
