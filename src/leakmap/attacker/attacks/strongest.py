"""The suites by name, with their members; one of them runs where no attack is named."""

from collections.abc import Mapping
from typing import Any

from leakmap.attacker.attacks import attacks
from leakmap.attacker.matching.settings import Positive
from leakmap.attacker.suite import CLOSED_FORMS, FITTED, PORTFOLIO, Strongest
from leakmap.errors import BadSetting
from leakmap.observation.observation import Observation
from leakmap.registry.spec import Spec

SUITE, VERSION = "strongest", "v2"
FORMER, FORMER_VERSION = "strongest_v1", "v1"
SEARCHES = ("inverting_gradients", "recovered_statistics", "proxy_statistics", "dropout_inversion", "dimitrov")
MEMBERS = {SUITE: (*CLOSED_FORMS, *FITTED, *SEARCHES, *PORTFOLIO), FORMER: (*CLOSED_FORMS[:3], *SEARCHES)}
"""Of each suite, in the order in which they run, the cheapest first. Each says for itself why it does not apply."""


@attacks.add(SUITE)
def strongest(
    *, steps: int | None = None, restarts: int | None = None, budget: Positive | None = None, **settings: Any
) -> Strongest:
    """Every attack that the granted knowledge allows; which one answers is rehearsed on public clients.

    Suite v2: the closed forms linear, spear, april and patch_positions; patch_subspace and learned_inverse where public
    pictures are granted; last_batch where clients of several local steps return their buffers; inverting_gradients;
    recovered_statistics where buffers moved; proxy_statistics where public pictures are granted; dropout_inversion
    where dropout is active; dimitrov where mini-batches are shuffled from epoch to epoch. Where members can rehearse,
    low_variation, even_steps, whitened and learned_start too.

    Where public pictures and the local rule are granted, every member first attacks a few simulated clients whose
    public pictures nothing is fitted to, and is measured by the NCC that it reaches there. Of a real client,
    the closed forms are tried; one that explains the update to 1e-6 answers. Else the member that rehearsed best
    answers, and the others are not run; a search of more than minutes a client is left out. Without rehearsals all run,
    and the lowest update residual wins: how far each result is from what the client sent.

    Args:
        steps: Iterations of every search; by default each member's own.
        restarts: Independent starts of every search.
        budget: Seconds of a core for the search on each client, in place of steps: as many iterations as it takes here,
            in as many restarts as rehearsed best; without rehearsals the searches share them.
        settings: ``MEMBER.setting=value``, as a tuning chooses them.

    Applies: always.

    Source: this project, after AutoAttack (Croce and Hein 2020, arXiv:2003.01690).
    """
    if budget is not None and (steps is not None or restarts is not None):
        raise BadSetting("The budget decides steps and restarts; give one of the two.")
    return _suite(SUITE, steps, restarts, settings, budget)


@attacks.add(FORMER)
def strongest_v1(*, steps: int | None = None, restarts: int | None = None, **settings: Any) -> Strongest:
    """The suite before attacks were fitted: every member runs, and what explains best what the client sent wins.

    Suite v1: the closed forms linear, spear and april; inverting_gradients; recovered_statistics where buffers moved;
    proxy_statistics where public pictures are granted; dropout_inversion where dropout is active; dimitrov where
    mini-batches are shuffled from epoch to epoch. All results are compared by one update residual, how far each
    is from what the client sent: the cosine distance of the whole update in the client's mode, with dropout masks
    fitted to each result, plus the squared relative distance of the returned running statistics where they moved. None
    is chosen by the truth. Once a result explains the update to 1e-6, the rest is left out.

    Args:
        steps: Iterations of every search; by default each member's own.
        restarts: Independent starts of every search.
        settings: ``MEMBER.setting=value``, as a tuning chooses them.

    Applies: always.

    Source: this project, after AutoAttack (Croce and Hein 2020, arXiv:2003.01690).
    """
    return _suite(FORMER, steps, restarts, settings)


def _suite(
    name: str,
    steps: int | None,
    restarts: int | None,
    settings: Mapping[str, Any],
    budget: float | None = None,
) -> Strongest:
    given = {key: value for key, value in (("steps", steps), ("restarts", restarts)) if value is not None}
    members = member_specs(Spec(name, {**given, **settings}))
    version, rehearses = (VERSION, True) if name == SUITE else (FORMER_VERSION, False)
    built = tuple((member.name, attacks.build(member)) for member in members)
    return Strongest(built, version, "; ".join(map(str, members)) if rehearses else "", budget)


def member_specs(suite: Spec) -> list[Spec]:
    """The specification of every member, with the settings that that of the suite gives it.

    Raises:
        BadSetting: a setting is neither ``steps``, ``restarts``, ``budget`` nor ``MEMBER.setting``.
    """
    members = MEMBERS[suite.name]
    own: dict[str, dict[str, Any]] = {name: {} for name in members}
    common: dict[str, Any] = {}
    for key, value in suite.params.items():
        member, dot, setting = key.partition(".")
        if key in ("steps", "restarts"):
            common[key] = value
        elif key == "budget":
            continue
        elif dot and member in members:
            own[member][setting] = value
        else:
            raise BadSetting(
                f"The suite takes steps, restarts, budget and MEMBER.setting, MEMBER being {', '.join(members)}; "
                f"got {key!r}."
            )
    if "learned_start" in own and "clients" in own["learned_inverse"]:
        # It begins at the same inverse, which is then fitted once for both.
        own["learned_start"].setdefault("clients", own["learned_inverse"]["clients"])
    return [
        Spec(name, {key: value for key, value in common.items() if key in attacks.settings(name)} | params)
        for name, params in own.items()
    ]


def applying(suite: Spec, observation: Observation) -> list[Spec]:
    """The specifications of the members that would run against such a client."""
    return [member for member in member_specs(suite) if not attacks.build(member).why_not(observation)]
