"""Checks a bundle that anybody may have changed: a folder or its zip file. Nothing of it is unpacked or run."""

import hashlib
import os
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from pydantic import TypeAdapter, ValidationError

from leakmap.errors import BadSetting, StoreError, plain
from leakmap.evidence.bundle import EVIDENCE, MANIFEST, NAMESPACE, REPORT, SIGNATURE, Manifest, keygen
from leakmap.evidence.evidence import WHAT, Evidence
from leakmap.files import JSON_LIMIT, refusal

MOST_FILES, SIGNATURE_LIMIT, CHUNK = 64, 2**16, 2**20
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What a bundle is packed by; Python unpacks other methods without regard to how much is read."""


@dataclass(frozen=True)
class Verified:
    """What checking a bundle came to.

    Args:
        path: Of the bundle.
        files: That are as the manifest says.
        problems: What is wrong, in sentences.
        signature: What the signature shows, in a sentence; empty where there is none.
        left_out: What the bundle says that it lacks, and why.
    """

    path: Path
    files: int
    problems: tuple[str, ...]
    signature: str
    left_out: Mapping[str, str]


class Held(Protocol):
    """The files of a bundle, by name."""

    def names(self) -> list[str]:
        """All of them, at most one more than a bundle may have."""
        ...

    def open(self, name: str) -> Any:
        """A context manager that gives the content of one as a stream.

        Raises:
            OSError: it is no regular file, or cannot be read.
        """
        ...


@dataclass(frozen=True)
class _Folder:
    path: Path

    def names(self) -> list[str]:
        with os.scandir(self.path) as found:
            return [one.name for one, _ in zip(found, range(MOST_FILES + 1), strict=False)]

    @contextmanager
    def open(self, name: str) -> Any:
        # A link is not followed, and a pipe is not waited for.
        number = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise OSError("it is no regular file")
            with os.fdopen(number, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(number)


@dataclass(frozen=True)
class _Archive:
    archive: zipfile.ZipFile

    def names(self) -> list[str]:
        return [one.filename for one in self.archive.infolist()[: MOST_FILES + 1]]

    @contextmanager
    def open(self, name: str) -> Any:
        try:
            if self.archive.getinfo(name).compress_type not in _PACKED:
                raise OSError("it is packed by another method than bundles are; pack it with deflate or not at all")
            with self.archive.open(name) as file:
                yield file
        except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
            raise OSError(str(error) or type(error).__name__) from None


def verify_bundle(path: Path | str, signers: Path | str | None = None) -> Verified:
    """Checks every file against the manifest, and the signature.

    Args:
        path: The folder of a bundle, or its zip file.
        signers: File of allowed signers, as ``ssh-keygen`` takes it; without it a signature shows that somebody with
            the named key signed, not who that is.

    Raises:
        StoreError: it is no bundle: there is no manifest that can be read.
        BadSetting: the signature needs a program or a file that is absent.
    """
    path = Path(path)
    if signers is not None and not Path(signers).is_file():
        raise BadSetting(f"There is no file of allowed signers {signers}; each line of it is: PRINCIPAL KEYTYPE KEY.")
    if path.is_dir():
        return _checked(path, _Folder(path), signers)
    if not path.is_file():
        raise StoreError(f"There is no bundle {path}; give the folder that leakmap bundle made, or its zip file.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _checked(path, _Archive(archive), signers)
    except zipfile.BadZipFile as error:
        raise StoreError(
            f"{path} is no bundle ({error}); give the folder that leakmap bundle made, or its zip."
        ) from None


def _checked(path: Path, held: Held, signers: Path | str | None) -> Verified:
    names = held.names()
    if len(names) > MOST_FILES:
        raise StoreError(f"{path} holds more than {MOST_FILES} files; a bundle has fewer.")
    content = _whole(path, held, MANIFEST, JSON_LIMIT) if MANIFEST in names else None
    if content is None:
        raise StoreError(f"{path} holds no {MANIFEST}; give the folder that leakmap bundle made, or its zip file.")
    try:
        manifest = TypeAdapter(Manifest).validate_json(content)
    except ValidationError as error:
        raise StoreError(refusal(error, f"{path}: {MANIFEST}", "the manifest of a bundle")) from None
    problems = [f"{plain(name)} is there twice." for name in sorted({one for one in names if names.count(one) > 1})]
    own = {MANIFEST, SIGNATURE}
    problems += [f"{plain(name)} is not in the manifest." for name in sorted({*names} - {*manifest.files} - own)]
    problems += [f"The manifest lists {name}, which cannot list itself." for name in sorted(own & {*manifest.files})]
    problems += [f"The manifest lists no {name}." for name in (EVIDENCE, REPORT) if name not in manifest.files]
    good = 0
    for name, listed in manifest.files.items():
        if name in own:
            continue
        if name not in names:
            problems.append(f"{name} is missing.")
        elif why := _differs(held, name, listed.bytes, listed.sha256):
            problems.append(f"{name} {why}.")
        else:
            good += 1
    if EVIDENCE in manifest.files and EVIDENCE in names:
        problems += _unsound(path, held)
    signature, why = _signed(held, names, content, signers)
    return Verified(path, good, (*problems, *why), signature, manifest.left_out)


def _differs(held: Held, name: str, size: int, sha256: str) -> str:
    """In what a file is not what the manifest says; empty: in nothing. No more of it is read than it may have."""
    digest, read = hashlib.sha256(), 0
    try:
        with held.open(name) as file:
            while chunk := file.read(CHUNK):
                read += len(chunk)
                if read > size:
                    return f"was changed: it is larger than {size} bytes"
                digest.update(chunk)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if read != size or digest.hexdigest() != sha256:
        return "was changed: its SHA-256 is not the one in the manifest"
    return ""


def _unsound(path: Path, held: Held) -> list[str]:
    try:
        content = _whole(path, held, EVIDENCE, JSON_LIMIT)
        TypeAdapter(Evidence).validate_json(content or b"")
    except ValidationError as error:
        return [refusal(error, EVIDENCE, WHAT)]
    except StoreError as error:
        return [str(error)]
    return []


def _whole(path: Path, held: Held, name: str, limit: int) -> bytes:
    """The content of a small file.

    Raises:
        StoreError: it is larger, no regular file, or cannot be read.
    """
    try:
        with held.open(name) as file:
            stream: IO[bytes] = file
            content = stream.read(limit + 1)
    except OSError as error:
        raise StoreError(f"{path}: {name} cannot be read: {error.strerror or error}.") from None
    if len(content) > limit:
        raise StoreError(f"{path}: {name} is larger than {limit} bytes.")
    return content


def _signed(held: Held, names: list[str], manifest: bytes, signers: Path | str | None) -> tuple[str, list[str]]:
    """What the signature shows, and what is wrong with it."""
    if SIGNATURE not in names:
        return "", ["There is no signature to compare with the allowed signers."] if signers is not None else []
    try:
        content = _whole(Path(), held, SIGNATURE, SIGNATURE_LIMIT)
    except StoreError:
        return "", [f"{SIGNATURE} cannot be read."]
    with tempfile.TemporaryDirectory() as own:
        signature = Path(own) / "signature"
        signature.write_bytes(content)
        told = ["-n", NAMESPACE, "-s", str(signature)]
        if signers is None:
            ran = keygen(["-Y", "check-novalidate", *told], manifest)
            if ran.returncode:
                return "", ["The signature is not one of this manifest."]
            key = ran.stdout.decode(errors="replace").strip().rpartition("with ")[2]
            return f"Signed with {plain(key)}; whose key that is, --signers FILE tells.", []
        found = keygen(["-Y", "find-principals", "-s", str(signature), "-f", str(signers)])
        who = found.stdout.decode(errors="replace").splitlines()
        if found.returncode or not who:
            return "", ["The manifest is signed with a key that is not among the allowed signers."]
        ran = keygen(["-Y", "verify", "-f", str(signers), "-I", who[0], *told], manifest)
        if ran.returncode:
            return "", ["The signature is not one of this manifest by an allowed signer."]
        return f"Signed by {plain(who[0])}.", []
