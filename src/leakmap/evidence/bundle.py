"""Makes a bundle: a folder and the same as a zip file, written beside their place and renamed when whole."""

import hashlib
import re
import secrets
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from leakmap.errors import BadSetting, StoreError
from leakmap.evidence.build import build
from leakmap.evidence.evidence import Evidence
from leakmap.evidence.page import print_page, write_report
from leakmap.evidence.planned import read_planned
from leakmap.evidence.profile import Profile
from leakmap.evidence.run import pictures_of, read_run
from leakmap.files import DAMAGED, read_limited, write_bytes, write_text

EVIDENCE, REPORT, PRINTED, PLANNED = "evidence.json", "report.html", "report.pdf", "planned.json"
MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
NAMESPACE = "leakmap-bundle"
"""What a signature is for, so that one made for something else does not pass."""
WITHOUT = "left out as asked (--no-pictures)"
_IMAGES = re.compile(rb"data:image|iVBORw0KGgo|UklGR|R0lGOD|/9j/4|\x89PNG\r\n|GIF8[79]a|\xff\xd8\xff|RIFF....WEBP")
"""How pictures begin, as bytes and in base64."""


@dataclass(frozen=True)
class Listed:
    """A file of a bundle.

    Args:
        sha256: Of its content.
        bytes: Its size.
    """

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, le=2**33)]

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Args:
        made: When, UTC.
        leakmap: Version.
        files: Name -> what it must be.
        left_out: Name of a file that a bundle may have -> why this one has none.
        schema: Number of this schema.
    """

    made: Annotated[str, Field(max_length=64)]
    leakmap: Annotated[str, Field(max_length=64)]
    files: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")], Listed], Field(max_length=64)
    ]
    left_out: Annotated[dict[str, Annotated[str, Field(max_length=1000)]], Field(max_length=64)]
    schema: Literal[1] = 1

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was made.

    Args:
        folder: Where it lies.
        archive: The same as a zip file.
        evidence: What it says.
        left_out: What is not in it, and why.
    """

    folder: Path
    archive: Path
    evidence: Evidence
    left_out: dict[str, str]


def make_bundle(
    run: Path | str,
    out: Path | str,
    *,
    pictures: bool = True,
    profile: Profile | None = None,
    planned: Path | str | None = None,
    key: Path | str | None = None,
) -> Bundle:
    """Makes the evidence bundle of an audit.

    Args:
        run: The folder of the audit; nothing in it is run.
        out: The folder to make, absent or empty; the archive gets ``.zip`` behind its name.
        pictures: Whether pictures of clients and reconstructions are in it.
        profile: What the institution says.
        planned: What ``leakmap bundle --plan`` wrote before the audit.
        key: The user's own key, with which ``ssh-keygen`` signs the manifest.

    Raises:
        StoreError: the run is none, or damaged; or something stands where the bundle should.
        BadSetting: the manifest cannot be signed with this key.
    """
    folder = Path(out)
    archive = folder.with_name(f"{folder.name}.zip")
    if archive.exists() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        there = archive if archive.exists() else folder
        raise StoreError(f"{there} is there already, and a bundle is not written over; give another --out.")
    found = read_run(Path(run))
    plan = None if planned is None else read_planned(Path(planned))
    plan_file = b"" if planned is None else read_limited(Path(planned), "a plan")
    rows, why_none = pictures_of(found) if pictures else ([], WITHOUT)
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = folder.with_name(f".{secrets.token_hex(8)}.part")
    packing = folder.with_name(f".{secrets.token_hex(8)}.part")
    try:
        making.mkdir()
        try:
            digest = hashlib.sha256(plan_file).hexdigest() if plan else ""
            evidence = build(found, profile or Profile(), plan, digest, pictures=bool(rows))
            write_report(making / REPORT, evidence, found, rows, why_none)
        except (StoreError, OSError):
            raise
        except DAMAGED as error:
            raise StoreError(
                f"{found.folder / 'result.json'} contradicts itself ({type(error).__name__}); run the audit again."
            ) from None
        left_out = {} if rows else {"pictures": why_none}
        if why := print_page(making / REPORT, making / PRINTED):
            left_out[PRINTED] = why
        write_bytes(making / EVIDENCE, TypeAdapter(Evidence).dump_json(evidence, indent=2) + b"\n")
        if plan is not None:
            write_bytes(making / PLANNED, plan_file)
        if not rows:
            _refuse_pictures(making)
        listed = {path.name: listed_of(path.read_bytes()) for path in sorted(making.iterdir())}
        manifest = Manifest(evidence.made, evidence.leakmap, listed, left_out)
        write_text(making / MANIFEST, TypeAdapter(Manifest).dump_json(manifest, indent=2).decode() + "\n")
        if key is not None:
            sign(making / MANIFEST, Path(key))
        _pack(making, packing)
        making.rename(folder)
        packing.rename(archive)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error  # names the bundle, not the place of making
    finally:
        shutil.rmtree(making, ignore_errors=True)
        packing.unlink(missing_ok=True)
    return Bundle(folder, archive, evidence, left_out)


def listed_of(content: bytes) -> Listed:
    """What a manifest says of a file."""
    return Listed(hashlib.sha256(content).hexdigest(), len(content))


def _refuse_pictures(folder: Path) -> None:
    """Refuses a bundle that is to be without pictures and has what looks like one: texts of a run are others'.

    Raises:
        StoreError: a file has.
    """
    for path in folder.iterdir():
        if path.name != PRINTED and (at := _IMAGES.search(path.read_bytes())):
            raise StoreError(
                f"{path.name} would hold what looks like a picture, from a text of the run or the profile "
                f"({at[0][:12]!r}); take that out of it."
            )


def _pack(folder: Path, path: Path) -> None:
    """A zip file of the files in a folder; equal files make equal archives."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(file.name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, file.read_bytes())


def sign(path: Path, key: Path) -> None:
    """Signs a file with the user's own key, by ``ssh-keygen``, which asks for its passphrase.

    Args:
        path: The file; the signature gets ``.sig`` behind its name.
        key: A key of OpenSSH, or its public half where an agent holds the other.

    Raises:
        BadSetting: there is no such key or program, or it does not sign.
    """
    if not key.expanduser().is_file():
        raise BadSetting(f"There is no key {key}; give a file that ssh-keygen -t ed25519 made.")
    ran = keygen(["-Y", "sign", "-f", str(key.expanduser()), "-n", NAMESPACE, str(path)])
    if ran.returncode or not path.with_name(f"{path.name}.sig").is_file():
        said = " ".join(ran.stderr.decode(errors="replace").split())[:300].rstrip(".")
        raise BadSetting(f"ssh-keygen does not sign with {key} ({said}); give a sound key of your own.")


def keygen(words: list[str], content: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Runs ``ssh-keygen``.

    Args:
        words: Its options.
        content: What it reads.

    Raises:
        BadSetting: there is no such program, or it did not end.
    """
    try:
        return subprocess.run(["ssh-keygen", *words], input=content, capture_output=True, timeout=300)
    except FileNotFoundError:
        raise BadSetting("There is no program ssh-keygen here; install OpenSSH 8.1 or newer.") from None
    except subprocess.TimeoutExpired:
        raise BadSetting("ssh-keygen did not end in 300 s; give a key that needs no touch, or an agent.") from None
