"""The verdict and what it rests on, over all clients."""

from leakmap.result.part import Estimate, Number, Part, Rate
from leakmap.scoring.exposure import Openness
from leakmap.scoring.verdict import Level, Rule


class VerdictResult(Part):
    """The verdict.

    Args:
        level: How much leaked; ``inconclusive`` where this audit cannot say.
        rule: Which rule decided, see [The verdict](verdict.md).
        reasons: Why, in sentences.
        statement: The verdict in one sentence, with attack, attacker, and how many clients it concerns.
        worst: The worst picture in a sentence; empty if no client finished.
        typical: The typical picture in a sentence; empty likewise.
    """

    level: Level
    rule: Rule
    reasons: tuple[str, ...]
    statement: str
    worst: str
    typical: str


class ExposedPicture(Part):
    """A picture that an attack recovered: first in its line-up, recognisable, above its floors and other clients'.

    Args:
        client: The number of its client, from 0.
        picture: Its place in the client's batch, from 0.
        level: ``exact`` above 30 dB PSNR, else ``visual``, above 0.5 SSIM.
        psnr: In dB.
        ssim: Up to 1.
    """

    client: int
    picture: int
    level: Openness
    psnr: Number
    ssim: Number


class ExposureResult(Part):
    """How many clients and pictures are exposed.

    Args:
        clients: Clients with at least one exposed picture.
        of_clients: Clients that finished.
        client_share: Their share; its upper end is what an audit that found none leaves possible.
        pictures: Exposed pictures.
        of_pictures: Pictures of clients that finished.
        picture_share: Their share; its interval counts clients as cases.
        found: Every exposed picture, the worst first.
    """

    clients: int
    of_clients: int
    client_share: Rate
    pictures: int
    of_pictures: int
    picture_share: Rate
    found: tuple[ExposedPicture, ...]


class CopiesResult(Part):
    """What leaving out near copies did: pictures that are one picture, saved, resized, mirrored or cropped again.

    Args:
        families: Pictures that had copies.
        left_out: Copies that were left out, so that no group holds a copy of another's picture.
    """

    families: int
    left_out: int


class LineUpResult(Part):
    """A line-up over all clients.

    Args:
        hits: Pictures that were ranked first.
        n: Pictures.
        rank_one: Share of first ranks.
        chance: Share expected without leakage.
        median_rank: Over all pictures; 1 is first.
        p: One-sided rank-sum test against chance.
        p_rank_one: One-sided test of the number of first ranks against chance.
        above_chance: Whether the ranks tell the true pictures from the others.
    """

    hits: int
    n: int
    rank_one: Rate
    chance: float
    median_rank: float
    p: float
    p_rank_one: float
    above_chance: bool


class LineUps(Part):
    """The line-ups of pictures.

    Args:
        gallery: Fewest and most candidates of a line-up; null if no client finished.
        attack: Of what the attack made of each client's update; null if no client finished.
        any_pose: The same, by the highest similarity over mirroring, quarter turns, small shifts and inversion.
        swapped: The same attack on updates from other pictures, which must be at chance; null likewise.
        deranged: Every reconstruction among the candidates of the next client, which must be at chance too; null with
            one client only.
        control: The planted control, which must be found; null if none of its runs finished.
    """

    gallery: tuple[int, int] | None
    attack: LineUpResult | None
    any_pose: LineUpResult | None
    swapped: LineUpResult | None
    deranged: LineUpResult | None
    control: LineUpResult | None


class BandsResult(Part):
    """What leaks: line-ups by one aspect of the pictures alone, see [The verdict](verdict.md#what-leaks).

    Args:
        colour: The means of the channels; of grey pictures the brightness.
        layout: Coarse shapes without their mean: the 8 slowest cosine waves along each axis of the grey picture.
        detail: What the grey picture holds beyond that.
        statement: The aspects above chance, in a sentence.
    """

    colour: LineUpResult
    layout: LineUpResult
    detail: LineUpResult
    statement: str


class CeilingResult(Part):
    """What no attacker can exceed on average, by the noise of the clients' defence; see [Ceilings](ceiling.md).

    Args:
        share: The ceiling on the share of first ranks, mean over the line-ups; null where nothing bounds what another
            attack may find.
        statement: Measured share and ceiling in a sentence, or why there is no ceiling.
        neighbours: What is taken for zero in the release that candidates are compared with; empty without a ceiling.
        noise: Standard deviation of the noise in each entry over the largest norm of what it hides; null likewise.
        releases: How many noisy releases of this round hold it; null likewise.
        informed: The line-up of each client's first picture by an attacker who is shown the candidates; null likewise.
        informed_swapped: The same with updates from other pictures, which must be at chance; null likewise.
        informed_share: The ceiling of these line-ups; null likewise.
        broken: In sentences, what lies above its ceiling with its whole interval; empty: nothing.
    """

    share: Number
    statement: str
    neighbours: str = ""
    noise: Number = None
    releases: int | None = None
    informed: LineUpResult | None = None
    informed_swapped: LineUpResult | None = None
    informed_share: Number = None
    broken: tuple[str, ...] = ()


class ObjectLineUps(Part):
    """The line-ups of crops of large objects.

    Args:
        attack: Of what the attack made of each client's update.
        swapped: The same attack on updates from other pictures; null if there is none.
    """

    attack: LineUpResult | None
    swapped: LineUpResult | None


class GainResult(Part):
    """A metric beside its floors.

    Args:
        value: Mean over clients.
        floors: Floor -> its mean.
        best_floor: The floor with the highest mean.
        gain: Mean difference to that floor, client by client.
        above_every_floor: Whether the difference to every floor is positive, sign-flip p < 0.005.
    """

    value: Estimate
    floors: dict[str, Number]
    best_floor: str
    gain: Estimate
    above_every_floor: bool
