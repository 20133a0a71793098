"""What a result says, in the words that every reader gets: report, study report, terminal."""

from leakmap.client.copies import MOST
from leakmap.result.evidence import LineUpResult
from leakmap.result.result import Result
from leakmap.scoring.verdict import Rule

FEW = 0.25
"""An audit that found nothing and leaves more clients than this possible had too few of them."""

LINE_UP_NAMES = {
    "attack": "this update",
    "any_pose": "this update, any pose",
    "swapped": "swapped update",
    "deranged": "other clients (deranged)",
    "control": "planted control",
    "objects": "objects, this update",
    "swapped_objects": "objects, swapped update",
}

RULES: dict[Rule, str] = {
    "no_clients": "no client has all of its runs",
    "no_evidence": "a flag says that nothing here is evidence, not even a recovered picture",
    "exposure": "one exposed picture decides the level",
    "control": "a control says that the line-ups measure something else, or that the attack is too weak",
    "first_ranks": "true pictures are first in their line-ups far more often than by chance",
    "ceiling": "true pictures are picked out more often than the noise of the clients' defence allows anybody",
    "flag": "a flag says that neither a weak signal nor its absence is evidence",
    "ranks": "the ranks of the true pictures lie above chance",
    "floors": "PSNR or SSIM lies above every floor, while the ranks are at chance",
    "nothing": "nothing was found, and the planted control was",
}
"""Which rule fired, in words; docs/verdict.md has them in full."""


def rule(result: Result) -> str:
    """Which rule decided the level."""
    return RULES[result.verdict.rule]


def too_few(result: Result) -> bool:
    """Whether nothing was found on so few clients that more than a quarter of all clients may be exposed."""
    found = result.exposure
    return result.verdict.level == "none_found" and found is not None and found.client_share.high > FEW


def headline(result: Result) -> str:
    """The first sentence: the statement, or where nothing was found the bound."""
    if result.verdict.level != "none_found" or result.exposure is None:
        return result.verdict.statement
    few = ": too few clients to exclude more" if too_few(result) else ""
    return f"At most {result.exposure.client_share.high:.1%} of such clients are exposed (95 % confidence){few}."


def counts(result: Result) -> str:
    """``1 of 12 clients, 1 of 96 pictures exposed``; empty if no client finished."""
    found = result.exposure
    if found is None:
        return ""
    clients, pictures = many(found.of_clients, "client"), many(found.of_pictures, "picture")
    return f"{found.clients} of {clients}, {found.pictures} of {pictures} exposed"


def counts_with_intervals(result: Result) -> str:
    """The same in a sentence, each share with its 95 % interval; empty if no client finished."""
    found = result.exposure
    if found is None:
        return ""
    clients, pictures = (f"{share.low:.1%} to {share.high:.1%}" for share in (found.client_share, found.picture_share))
    return (
        f"Exposed: {found.clients} of {many(found.of_clients, 'client')} (95 % interval {clients}), "
        f"{found.pictures} of {many(found.of_pictures, 'picture')} ({pictures})."
    )


def copies(result: Result) -> str:
    """What became of near copies."""
    if result.copies is None:
        return f"near copies were not looked for, as there are more than {MOST:,} pictures"
    families, left_out = result.copies.families, result.copies.left_out
    if not left_out:
        return "no near copies were found"
    left = "1 copy was" if left_out == 1 else f"{left_out} copies were"
    return f"{many(families, 'picture')} had near copies; {left} left out"


def line_ups(result: Result) -> dict[str, LineUpResult]:
    """Every line-up that there is, by the keys of :data:`LINE_UP_NAMES`."""
    of, objects = result.line_up, result.objects
    found = {
        "attack": of.attack,
        "any_pose": of.any_pose,
        "swapped": of.swapped,
        "deranged": of.deranged,
        "control": of.control,
        "objects": objects and objects.attack,
        "swapped_objects": objects and objects.swapped,
    }
    return {key: one for key, one in found.items() if one}


def bands(result: Result) -> dict[str, LineUpResult]:
    """The line-ups by one aspect each; empty if no client finished."""
    of = result.bands
    return {"colour": of.colour, "layout": of.layout, "detail": of.detail} if of else {}


def many(n: int, what: str) -> str:
    """``1 client``, ``2 clients``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
