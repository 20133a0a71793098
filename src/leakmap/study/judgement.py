"""What became of a claim, as a file of a few kilobytes: enough for the page, and for not running the claim again."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from leakmap.errors import StoreError
from leakmap.files import read_typed, write_json
from leakmap.result.part import Estimate, Number, Part
from leakmap.study.claims import Claim, Id, Name

FOLDER = "claims"
"""Where these files lie in a folder of results."""
Outcome = Literal["holds", "does not hold", "not informative", "not run"]
Says = Literal["passes", "fails", "open"]
Count = Annotated[int, Field(ge=0, le=10**9)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Compared(Part):
    """What a comparison came to.

    Args:
        name: Of the contrast.
        effect: Of the value that decides, with its 95 % interval; null where no client has every cell.
        p: Of a two-sided test against the margin.
        clients: Over which the interval is; of groups of different clients the fewest.
        detectable: How far from the margin the truth would have to lie, for this comparison to show it with 80 %
            power; of the rule ``within`` the smallest margin that it could show. Null where nothing would do.
        beside: Value -> the same contrast of it.
        spoke: Attack -> clients and cells for which it spoke.
        says: ``passes``; ``fails``: shown to be less than what would matter; ``open``: the interval allows both.
    """

    name: Name
    effect: Estimate | None
    p: Annotated[float, Field(ge=0, le=1)]
    clients: Count
    detectable: Number
    beside: Annotated[dict[Name, Estimate], Field(max_length=8)]
    spoke: Annotated[dict[Name, Count], Field(max_length=32)]
    says: Says


class Column(Part):
    """A claim as judged by some attacks.

    Args:
        outcome: ``holds``, ``does not hold``, ``not informative`` or ``not run``.
        why: The outcome in a sentence.
        compared: Every comparison.
    """

    outcome: Outcome
    why: Annotated[str, Field(max_length=2000, pattern=r"^[^\n\r|<>`\\]*$")]
    compared: Annotated[tuple[Compared, ...], Field(max_length=200)]

    @property
    def deciding(self) -> Compared | None:
        """The first comparison that fails, else the first that is open, else the first."""
        return min(self.compared, key=lambda one: ("fails", "open", "passes").index(one.says), default=None)


class Judgement(Part):
    """What became of a claim.

    Args:
        id: Of the claim.
        study: SHA-256 of its study at this scale, without the pictures, of its rules, and of those of judging.
        digest: SHA-256 of all that was run for it, pictures included, and of the same rules.
        search: For attacks that search.
        any: For any attack that was tried.
        left_out: Attack -> why it could not be tried, or how many of its runs failed.
        runs: Number of its runs, those that it shares with other claims too.
        seconds: What these took, one after the other; fitting comes on top.
        versions: Of what computed them.
    """

    id: Id
    study: Digest
    digest: Digest
    search: Column
    any: Column
    left_out: Annotated[dict[Name, Annotated[str, Field(max_length=2000)]], Field(max_length=16)]
    runs: Count
    seconds: Annotated[float, Field(ge=0)]
    versions: Annotated[dict[Name, Name], Field(max_length=16)]


def path_of(folder: Path, claim: Claim) -> Path:
    """The file of a claim in a folder of results."""
    return folder / FOLDER / f"{claim.id}.json"


def write_judgement(folder: Path, claim: Claim, judgement: Judgement) -> None:
    """Writes the file of a claim."""
    path = path_of(folder, claim)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, judgement.model_dump())


def read_judgement(folder: Path, claim: Claim) -> Judgement | None:
    """What became of a claim; None where there is no file.

    Raises:
        StoreError: the file is not what leakmap wrote, or is about something else.
    """
    path = path_of(folder, claim)
    if not path.exists():
        return None
    found = read_typed(path, Judgement, "what became of a claim")
    if found.id != claim.id:
        raise StoreError(f"{path} is about the claim {found.id}, not {claim.id}; put it back under its own name.")
    return found


def fits(judgement: Judgement, claim: Claim) -> bool:
    """Whether a judgement has the comparisons that a claim has."""
    names = [one.name for one in claim.contrasts]
    return all([one.name for one in column.compared] in ([], names) for column in (judgement.search, judgement.any))
