"""What an institution says about itself: a file that it fills in. What it leaves empty stays empty."""

from dataclasses import dataclass, fields
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

from leakmap.capturing.facts import LONGEST, parse_toml
from leakmap.errors import BadSetting
from leakmap.registry.declared import Declared, Entry, entries
from leakmap.registry.spec import near_misses

FILLED_LIMIT = 4000
WORDS = ("safe", "anonymous", "private")
"""Words that leakmap never uses of a result: no audit shows them."""


def _asked(table: str, label: str, note: str) -> Declared:
    return Declared(label, table=table, note=note, limit=FILLED_LIMIT)


@dataclass(frozen=True)
class Profile:
    """The institution's own statements; every one is a text, empty where nothing is said.

    The label and an explanation of each stand in its annotation, and in the file that :func:`template` makes.

    Args:
        controller: Controller: who decides why and how data are processed.
        processor: Processor: who processes data on their behalf.
        purpose: Purpose: what the federated training is for.
        data_subjects: Categories of data subjects: whose pictures they are, children among them?
        dpo_advice: Advice of the data-protection officer: what was advised, when.
        dpia: Reference of the impact assessment: its number or place.
        who_sees_updates: Who sees which update: server, aggregators, other clients; single ones or sums.
        secure_aggregation: Secure aggregation: protocol and how many clients a sum has at least; or none.
        retention: Retention of updates: how long, where, who deletes them.
        rounds: Rounds: in which one client takes part.
        clients: Clients in the federation: how many, how chosen in a round.
        measures_in_place: Measures in operation: besides the defence of the audited client.
        dp_unit: Unit of protection: an example, a person, or a client.
        dp_composition: Composition: rounds, sampling, accountant, total epsilon and delta.
        residual_risk: Residual risk: what remains, how likely and how severe, in your words.
        measures: Measures decided on: what will be changed, until when.
        owner: Owner: who answers for the residual risk.
        expiry: Expiry: until when this evidence holds.
        new_audit: What triggers a new audit: another model, rule, platform, weights, or attack.
        signed_by: Signed off by: name and role.
        signed_on: Date: of the sign-off.
        commit: Commit of the audited project: of your own code.
    """

    controller: Annotated[str, _asked("institution", "Controller", "who decides why and how data are processed")] = ""
    processor: Annotated[str, _asked("institution", "Processor", "who processes data on their behalf")] = ""
    purpose: Annotated[str, _asked("institution", "Purpose", "what the federated training is for")] = ""
    data_subjects: Annotated[
        str, _asked("institution", "Categories of data subjects", "whose pictures they are, children among them?")
    ] = ""
    dpo_advice: Annotated[
        str, _asked("institution", "Advice of the data-protection officer", "what was advised, when")
    ] = ""
    dpia: Annotated[str, _asked("institution", "Reference of the impact assessment", "its number or place")] = ""
    who_sees_updates: Annotated[
        str, _asked("topology", "Who sees which update", "server, aggregators, other clients; single ones or sums")
    ] = ""
    secure_aggregation: Annotated[
        str, _asked("topology", "Secure aggregation", "protocol and how many clients a sum has at least; or none")
    ] = ""
    retention: Annotated[str, _asked("topology", "Retention of updates", "how long, where, who deletes them")] = ""
    rounds: Annotated[str, _asked("training", "Rounds", "in which one client takes part")] = ""
    clients: Annotated[str, _asked("training", "Clients in the federation", "how many, how chosen in a round")] = ""
    measures_in_place: Annotated[
        str, _asked("training", "Measures in operation", "besides the defence of the audited client")
    ] = ""
    dp_unit: Annotated[
        str, _asked("differential_privacy", "Unit of protection", "an example, a person, or a client")
    ] = ""
    dp_composition: Annotated[
        str, _asked("differential_privacy", "Composition", "rounds, sampling, accountant, total epsilon and delta")
    ] = ""
    residual_risk: Annotated[
        str, _asked("decision", "Residual risk", "what remains, how likely and how severe, in your words")
    ] = ""
    measures: Annotated[str, _asked("decision", "Measures decided on", "what will be changed, until when")] = ""
    owner: Annotated[str, _asked("decision", "Owner", "who answers for the residual risk")] = ""
    expiry: Annotated[str, _asked("decision", "Expiry", "until when this evidence holds")] = ""
    new_audit: Annotated[
        str, _asked("decision", "What triggers a new audit", "another model, rule, platform, weights, or attack")
    ] = ""
    signed_by: Annotated[str, _asked("sign_off", "Signed off by", "name and role")] = ""
    signed_on: Annotated[str, _asked("sign_off", "Date", "of the sign-off")] = ""
    commit: Annotated[str, _asked("sign_off", "Commit of the audited project", "of your own code")] = ""

    def words(self) -> dict[str, str]:
        """Word of :data:`WORDS` -> the first field that uses it: no audit shows any of them."""
        told = {one.name: getattr(self, one.name).lower() for one in fields(self)}
        return {
            word: name
            for word in WORDS
            for name, text in reversed(told.items())
            if word in "".join(c if c.isalnum() else " " for c in text).split()
        }


def statements_of(table: str) -> list[Entry]:
    """The fields that stand in a table of the file."""
    return [entry for entry in entries(Profile) if entry.declared.table == table]


def tables() -> list[str]:
    """The tables of the file, in order."""
    return list(dict.fromkeys(entry.declared.table for entry in entries(Profile)))


def template() -> str:
    """An empty profile to fill in, with a word on every line."""
    lines = [
        "# What the institution says in an evidence bundle: leakmap bundle RUN --out DIR --profile profile.toml",
        "# A line that stays empty is shown as not filled in. leakmap fills in nothing here.",
    ]
    for table in tables():
        lines += ["", f"[{table}]"]
        lines += [f'{one.name} = ""  # {one.note}' for one in statements_of(table)]
    return "\n".join(lines) + "\n"


def read_profile(path: Path) -> Profile:
    """Reads a profile; anybody may have written it.

    Args:
        path: The file, in TOML as :func:`template` makes it.

    Raises:
        BadSetting: it is absent, too large or no TOML, or a line of it is unknown, too long or no text.
    """
    if not path.is_file():
        raise BadSetting(f"There is no profile {path}; leakmap bundle --profile-template writes one to fill in.")
    if (size := path.stat().st_size) > LONGEST:
        raise BadSetting(f"{path} has {size} bytes; a profile has at most {LONGEST}.")
    try:
        content = parse_toml(path.read_bytes())
    except ValueError as error:
        raise BadSetting(f"{path} cannot be read as TOML: {str(error).rstrip('.')}.") from None
    found: dict[str, str] = {}
    for table, lines in content.items():
        if table not in tables():
            raise BadSetting(f"{path}: there is no table {table[:80]!r} in a profile; {near_misses(table, tables())}")
        if not isinstance(lines, dict):
            raise BadSetting(f"{path}: {table} is a table of texts; write [{table}].")
        known = {one.name for one in statements_of(table)}
        for name, value in lines.items():
            if name not in known:
                raise BadSetting(f"{path}: there is no line {name[:80]!r} in [{table}]; {near_misses(name, known)}")
            found[name] = _text(value, f"{path}: {table}.{name}")
    return Profile(**found)


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise BadSetting(f"{where} is of type {type(value).__name__}; expected text, a whole number or a date.")
    if len(value) > FILLED_LIMIT:
        raise BadSetting(f"{where} has {len(value)} characters; a line has at most {FILLED_LIMIT}.")
    text = value.replace("\r\n", "\n").strip()
    if strange := next((c for c in text if not c.isprintable() and c != "\n"), ""):
        raise BadSetting(f"{where} holds the character {strange.encode('unicode_escape').decode()}; take it out.")
    return text
