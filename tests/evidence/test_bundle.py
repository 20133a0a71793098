"""The evidence bundle: what it says, what it never says, and that a changed one is noticed."""

import base64
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

from leakmap import Plan, Spec, run_plan
from leakmap.auditing.prepare import prepare
from leakmap.cli.main import command
from leakmap.errors import BadSetting, LeakmapError, StoreError
from leakmap.evidence import bundle as making
from leakmap.evidence import page
from leakmap.evidence.bundle import make_bundle
from leakmap.evidence.evidence import evidence_schema
from leakmap.evidence.planned import write_planned
from leakmap.evidence.profile import FILLED_LIMIT, WORDS, Profile, read_profile, template
from leakmap.evidence.run import SETUP
from leakmap.evidence.shipped import INSTRUMENT
from leakmap.evidence.verify import verify_bundle
from leakmap.result.provenance import Provenance
from leakmap.result.schema import result_schema

ROOT = Path(__file__).parents[2]
PLAN = Plan("mlp,hidden=16", image_size=16, victims=3, attack=Spec("linear"), seed=5)
FIELDS = {
    "institution": ("controller", "processor", "purpose", "data_subjects", "dpo_advice", "dpia"),
    "topology": ("who_sees_updates", "secure_aggregation", "retention"),
    "client": ("local_rule", "defence", "rounds", "clients", "measures_in_place"),
    "attacker": ("attacker", "granted", "withheld"),
    "results": ("level", "worst", "typical", "ceiling", "flags"),
    "questions": ("singling_out", "linkability", "inference", "visible"),
    "limits": ("not_evaluated",),
    "decision": ("residual_risk", "measures", "owner", "expiry", "new_audit", "proposed"),
    "differential_privacy": ("mechanism", "dp_unit", "dp_composition"),
    "attacks": ("attack", "suite", "settings", "seed", "not_run", "control", "failures"),
    "plan": ("planned", "thresholds"),
    "instrument": ("rates",),
    "fingerprints": ("architecture", "weights", "observations", "data_manifest", "parameters_per_example", "result"),
    "mapping": ("mapping",),
    "origin": ("command", "versions", "started", "leakmap_commit", "machine", "lock", "signed_by", "signed_on"),
}
"""Every field that a bundle must have."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "run"
    run_plan(PLAN, folder)
    prepare(PLAN).main.save(folder / SETUP)  # as runs in worker processes leave it
    return folder


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return {pictures: make_bundle(run, folder / f"{pictures}", pictures=pictures) for pictures in (True, False)}


@pytest.fixture(autouse=True)
def unprinted(monkeypatch):
    """Printing takes seconds: only what ``made`` holds, which is made before, is printed."""
    monkeypatch.setattr(page, "PRINTER", "no_such_printer")


def statements(evidence: dict) -> dict[tuple[str, str], dict]:
    return {(topic["key"], one["key"]): one for topic in evidence["topics"] for one in topic["statements"]}


def read(bundle) -> dict:
    return json.loads((bundle.folder / "evidence.json").read_text())


def test_every_field_is_there_with_its_origin_and_nothing_is_invented(made):
    evidence = read(made[True])
    schema = json.loads((ROOT / "docs" / "evidence.schema.json").read_text())
    assert schema == evidence_schema(), "make docs"
    assert "Evidence" not in result_schema()["$defs"]
    jsonschema.Draft202012Validator(schema).validate(evidence)
    found = statements(evidence)
    assert {(topic, key) for topic, keys in FIELDS.items() for key in keys} <= set(found)
    assert {one["origin"] for one in found.values()} == {"profile", "measured", "shipped"}
    asked = [one for one in found.values() if one["origin"] == "profile"]
    assert len(asked) == len(Profile.__dataclass_fields__)
    assert all(one["value"] is None for one in asked)
    html = (made[True].folder / "report.html").read_text()
    assert html.count('<span class="empty">not filled in</span>') == len(asked)
    assert re.fullmatch("[0-9a-f]{64}", found["fingerprints", "weights"]["value"])
    assert found["fingerprints", "parameters_per_example"]["value"] == 16 * 16 * 3 * 16 + 16 + 16 * 8 + 8
    assert len(evidence["records"]) == 3
    quantities = {one["key"]: one for one in evidence["quantities"]}
    assert {"exposed_clients", "line_up_attack", "line_up_swapped", "line_up_control", "psnr", "gain_ssim"} <= set(
        quantities
    )
    assert quantities["line_up_attack"]["reference_is"] == "chance"


class Sources(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data") and value]

    def handle_data(self, data):
        self.text.append(data)


def images(content: bytes, name: str) -> int:
    """How many images a file of a bundle carries: each is decoded, so that what cannot be is found too."""
    if name.endswith(".pdf"):
        pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed; it comes with the dev extra")
        return sum(len(one.images) for one in pypdf.PdfReader(io.BytesIO(content)).pages)
    found = 0
    for text in re.findall(rb"[A-Za-z0-9+/=]{40,}", content):
        try:
            Image.open(io.BytesIO(base64.b64decode(text + b"=" * (-len(text) % 4)))).load()
            found += 1
        except Exception:
            continue
    return found


def test_without_pictures_no_file_has_a_pixel_of_one(made):
    for pictures, bundle in made.items():
        with zipfile.ZipFile(bundle.archive) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        assert files == {path.name: path.read_bytes() for path in bundle.folder.iterdir()}
        counts = {name: images(content, name) for name, content in files.items()}
        shown = {"report.html", *({"report.pdf"} & set(files))} if pictures else set()
        assert {name for name, count in counts.items() if count} == shown
        parser = Sources()
        parser.feed(files["report.html"].decode())
        sources = [source for source in parser.found if not source.startswith("#")]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        assert len(sources) == (3 * 6 if pictures else 0)
        for name in files:
            assert pictures or not re.search(rb"<img|<image|data:image|/Subtype\s*/Image", files[name]), name
    assert read(made[False])["pictures"] is False
    assert "no pictures: left out as asked" in (made[False].folder / "report.html").read_text()


def test_words_that_no_audit_shows_are_never_used(made):
    texts = [path.read_text() for path in made[False].folder.glob("*.json")] + [template()]
    parser = Sources()
    parser.feed((made[False].folder / "report.html").read_text().partition("</style>")[2])
    printed = made[False].folder / "report.pdf"
    if printed.exists():
        pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed; it comes with the dev extra")
        texts += [" ".join(one.extract_text() for one in pypdf.PdfReader(printed).pages)]
        assert "Evidence: what updates of mlp,hidden=16 leak" in texts[-1]
    for text in (*texts, " ".join(parser.text)):
        assert not re.search(rf"\b({'|'.join(WORDS)})\b", text, re.I)


def test_a_profile_is_the_institutions_own_words(run, tmp_path):
    file = tmp_path / "profile.toml"
    file.write_text(template())
    assert read_profile(file) == Profile()
    hostile = "<script>alert(1)</script> & {{ 7*7 }} ]]> ' \\\" $x"
    lines = {
        "controller": f'"{hostile}"',
        "retention": '"""two\nlines"""',
        "rounds": "50",
        "secure_aggregation": "true",
    }
    lines |= {"expiry": "2030-01-31", "purpose": '"It is safe."'}
    text = template()
    for name, value in lines.items():
        text = re.sub(rf'^{name} = ""', lambda m, n=name, v=value: f"{n} = {v}", text, flags=re.M)
    file.write_text(text)
    found = read_profile(file)
    assert (found.rounds, found.secure_aggregation, found.expiry, found.retention) == (
        "50",
        "yes",
        "2030-01-31",
        "two\nlines",
    )
    assert found.words() == {"safe": "purpose"}
    bundle = make_bundle(run, tmp_path / "out", pictures=False, profile=found)
    said = statements(read(bundle))
    assert said["institution", "controller"]["value"] == hostile.replace('\\"', '"')
    assert said["institution", "processor"]["value"] is None
    html = (bundle.folder / "report.html").read_text()
    assert "<script" not in html
    assert "{{ 7*7 }}" in html
    for wrong, words in (
        ("[institution]\ncontroler = 'x'", "did you mean controller"),
        ("[institutions]\n", "did you mean institution"),
        ("institution = 3", "write .institution"),
        ("[institution]\npurpose = 1.5", "type float"),
        ("[institution]\npurpose = ['x']", "type list"),
        ("[institution]\npurpose = '" + "x" * (FILLED_LIMIT + 1) + "'", "4001 characters"),
        ('[institution]\npurpose = "\\u001b[31m"', r"holds the character \\x1b"),
        ('[institution]\npurpose = "\\u202e"', r"\\u202e"),
        ("x" * 2**20 + "=1", "bytes"),
        ("[institution", "cannot be read as TOML"),
    ):
        file.write_text(wrong)
        with pytest.raises(BadSetting, match=words):
            read_profile(file)
    file.write_text("[institution]\npurpose = 'data:image/png;base64,iVBORw0KGgo'")
    with pytest.raises(StoreError, match="looks like a picture"):
        make_bundle(run, tmp_path / "smuggled", pictures=False, profile=read_profile(file))
    assert not (tmp_path / "smuggled").exists()


def test_a_changed_bundle_is_noticed(made, tmp_path):
    good = verify_bundle(made[True].folder)
    assert (good.problems, good.signature) == ((), "")
    assert good.files == len(list(made[True].folder.iterdir())) - 1
    assert verify_bundle(made[True].archive).problems == ()
    copy = tmp_path / "copy"

    def problems() -> str:
        found = " ".join(verify_bundle(copy).problems)
        shutil.rmtree(copy)
        shutil.copytree(made[True].folder, copy)
        return found

    shutil.copytree(made[True].folder, copy)
    for path in made[True].folder.iterdir():
        if path.name != "manifest.json":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            (copy / path.name).write_bytes(content)
            assert f"{path.name} was changed" in problems()
            (copy / path.name).unlink()
            assert f"{path.name} is missing" in problems()
    (copy / "more.txt").write_text("x")
    assert "more.txt is not in the manifest" in problems()
    (copy / "report.html").write_bytes((copy / "report.html").read_bytes() + b"x" * 10**6)
    assert "larger than" in problems()
    (copy / "report.html").unlink()
    (copy / "report.html").symlink_to(made[True].folder / "report.html")
    assert "report.html cannot be read" in problems()
    (copy / "report.html").unlink()
    os.mkfifo(copy / "report.html")
    assert "report.html cannot be read" in problems()
    manifest = json.loads((copy / "manifest.json").read_text())
    for name, words in (
        ("../evidence.json", "does not hold the manifest"),
        ("/etc/passwd", "does not hold"),
        (".x", "does not"),
    ):
        (copy / "manifest.json").write_text(json.dumps(manifest | {"files": {name: manifest["files"]["report.html"]}}))
        with pytest.raises(StoreError, match=words):
            verify_bundle(copy)
    (copy / "manifest.json").write_text(json.dumps(manifest | {"files": {}}))
    assert "lists no evidence.json" in problems()
    (copy / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(StoreError):
        verify_bundle(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"holds no manifest\.json"):
        verify_bundle(copy)
    with pytest.raises(StoreError, match="There is no bundle"):
        verify_bundle(tmp_path / "nowhere")

    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(made[True].archive) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        with pytest.warns(UserWarning, match="Duplicate"):
            new.writestr("report.html", b"other")
        new.writestr("../../escaped", b"x")
    found = " ".join(verify_bundle(changed).problems)
    assert "report.html is there twice" in found
    assert "../../escaped is not in the manifest" in found
    changed.write_bytes(made[True].archive.read_bytes()[:-200])
    with pytest.raises(StoreError, match="is no bundle"):
        verify_bundle(changed)
    (tmp_path / "bomb.zip").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("manifest.json", json.dumps(manifest))
        bomb.writestr("report.html", b"0" * 10**8)
    assert "report.html was changed: it is larger than" in " ".join(verify_bundle(tmp_path / "bomb.zip").problems)
    # Python unpacks these whole, however little of them is read.
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        for packed in (["report.html"], ["report.html", "manifest.json"]):
            with zipfile.ZipFile(tmp_path / "bomb.zip", "w") as bomb:
                for name in ("manifest.json", "report.html"):
                    content = json.dumps(manifest) if name == "manifest.json" else b"0" * 10**4
                    bomb.writestr(name, content, method if name in packed else None)
            if "manifest.json" in packed:
                with pytest.raises(StoreError, match="packed by another method"):
                    verify_bundle(tmp_path / "bomb.zip")
            else:
                assert "packed by another method" in " ".join(verify_bundle(tmp_path / "bomb.zip").problems)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no program ssh-keygen here")
def test_a_signature_is_the_users_own_and_is_checked(run, tmp_path):
    for name in ("own", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
        (tmp_path / f"{name}.signers").write_text(f"dpo@example.org {(tmp_path / f'{name}.pub').read_text()}")
    bundle = make_bundle(run, tmp_path / "out", pictures=False, key=tmp_path / "own")
    assert "Signed with ED25519 key SHA256:" in verify_bundle(bundle.folder).signature
    known = verify_bundle(bundle.archive, tmp_path / "own.signers")
    assert (known.signature, known.problems) == ("Signed by dpo@example.org.", ())
    assert "not among the allowed signers" in verify_bundle(bundle.folder, tmp_path / "other.signers").problems[0]
    manifest = bundle.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"made": "2', '"made": "3'))
    for signers in (None, tmp_path / "own.signers"):
        assert "not one of this manifest" in verify_bundle(bundle.folder, signers).problems[0]
    (bundle.folder / "manifest.json.sig").write_text("-----BEGIN")
    assert verify_bundle(bundle.folder).problems
    (bundle.folder / "manifest.json.sig").unlink()
    assert "no signature" in verify_bundle(bundle.folder, tmp_path / "own.signers").problems[0]
    (tmp_path / "no.key").write_text("no key")
    for key, words in (("no.key", "does not sign with"), ("absent", "There is no key")):
        with pytest.raises(BadSetting, match=words):
            make_bundle(run, tmp_path / "unsigned", pictures=False, key=tmp_path / key)
    assert not list(tmp_path.glob("unsigned*")) + list(tmp_path.glob(".*"))


def test_a_run_is_held_to_what_was_fixed_before(run, tmp_path):
    def told(plan, **changes):
        file = tmp_path / "plan.json"
        file.unlink(missing_ok=True)
        write_planned(file, plan, "partial")
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"made": "2020-01-01T00:00:00+00:00"} | changes))
        bundle = make_bundle(run, tmp_path / "out", pictures=False, planned=file)
        assert (bundle.folder / "planned.json").read_bytes() == file.read_bytes()
        found = statements(read(bundle))
        shutil.rmtree(bundle.folder)
        bundle.archive.unlink()
        return found["plan", "kept"]["value"], " ".join(found["plan", "departures"]["value"])

    assert told(PLAN) == ("yes", "")
    kept, why = told(Plan("mlp,hidden=16", image_size=16, victims=4, attack=Spec("linear"), seed=5))
    assert (kept, why) == ("no", "victims was planned as 4 and run as 3.")
    assert "not before" in told(PLAN, made="2999-01-01T00:00:00+00:00")[1]
    assert "not before" in told(PLAN, made="yesterday")[1]
    assert "leakmap 0.0.1 was planned" in told(PLAN, leakmap="0.0.1")[1]
    assert "thresholds" in told(PLAN, thresholds={"exact: PSNR above, dB": 99.0})[1]
    with pytest.raises(FileExistsError, match="stays fixed"):
        write_planned(tmp_path / "plan.json", PLAN, None)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(StoreError, match="does not hold a plan"):
        make_bundle(run, tmp_path / "out", planned=tmp_path / "plan.json")


def test_a_hostile_run_is_one_sentence(run, tmp_path):
    copy = tmp_path / "copy"

    def refused(words, **how):
        with pytest.raises(LeakmapError, match=words) as said:
            make_bundle(copy, tmp_path / "out", **how)
        assert len(str(said.value)) < 500
        assert not list(tmp_path.glob("out*")) + list(tmp_path.glob(".*"))
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)

    refused("There is no folder")
    (copy / "result.json").unlink()
    refused("holds no result.json")
    result = json.loads((run / "result.json").read_text())
    for change, words in (
        ({"schema": 1}, "has schema 1"),
        ({"clients": [result["clients"][0] | {"galleries": []}]}, "ranks holds 1 numbers, and there are 0 line-ups"),
        ({"plan": result["plan"] | {"seed": 6}}, "of different audits"),
    ):
        (copy / "result.json").write_text(json.dumps(result | change))
        refused(words, pictures=False)
    with (copy / "result.json").open("wb") as file:
        file.truncate(2**24 + 1)
    refused("is larger than")
    for name in ("result.json", "plan.json", "provenance.json", SETUP):
        (copy / name).unlink()
        (copy / name).symlink_to(run / name)
        refused("no regular file")
        (copy / name).unlink()
        os.mkfifo(copy / name)
        refused("no regular file")
    provenance = json.loads((run / "provenance.json").read_text())
    (copy / "provenance.json").write_text(json.dumps(provenance | {"contents": "other"}))
    refused("of different audits")
    (copy / "provenance.json").write_text(json.dumps(provenance | {"more": 1}))
    refused("does not hold the provenance")
    for trial in (copy / "trials").iterdir():
        trial.write_bytes(trial.read_bytes()[:-9])
    refused("stored runs of client 1")
    code, marker = tmp_path / "own.py", tmp_path / "ran"
    code.write_text(f"open({str(marker)!r}, 'w').close()\n")
    for name, held in (("result.json", result), ("plan.json", {"plan": json.loads((run / "plan.json").read_text())})):
        held = held | {"plan": held["plan"] | {"attack": {"name": f"{code}:build", "params": {}}}}
        (copy / name).write_text(json.dumps(held if name == "result.json" else held["plan"]))
    refused("stored runs of client 1")
    assert not marker.exists()
    statement = {"verdict": result["verdict"] | {"worst": "data:image/png;base64,iVBORw0KGgo"}}
    (copy / "result.json").write_text(json.dumps(result | statement))
    refused("looks like a picture", pictures=False)
    (copy / SETUP).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    refused("is not a setup")
    (copy / SETUP).unlink()
    (copy / "provenance.json").unlink()
    old = make_bundle(copy, tmp_path / "old")
    assert "keeps no pictures" in old.left_out["pictures"]
    assert statements(read(old))["fingerprints", "weights"]["value"] == "not recorded by this run"
    text = {"verdict": result["verdict"] | {"statement": "\x1b[31m<b>\x00"}}
    (copy / "result.json").write_text(json.dumps(result | text))
    html = (make_bundle(copy, tmp_path / "escaped", pictures=False).folder / "report.html").read_text()
    assert "\\x1b[31m&lt;b&gt;\\x00" in html


def test_what_is_there_is_not_written_over_and_nothing_half_made_stays(run, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "zipped.zip").write_text("x")
    (tmp_path / "file").write_text("x")
    for out in ("full", "zipped", "file"):
        with pytest.raises(StoreError, match="is there already"):
            make_bundle(run, tmp_path / out)
    with pytest.raises(OSError, match="'/proc/leakmap'"):
        make_bundle(run, "/proc/leakmap", pictures=False)
    (tmp_path / "empty").mkdir()
    assert make_bundle(run, tmp_path / "empty" / "deeper" / "own", pictures=False).folder.is_dir()
    (tmp_path / "void").mkdir()
    assert make_bundle(run, tmp_path / "void", pictures=False).folder.is_dir()

    def interrupted(*how):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(making, "print_page", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_bundle(run, tmp_path / "stopped", pictures=False)
    assert not list(tmp_path.glob("stopped*")) + list(tmp_path.glob(".*"))
    bundle = make_bundle(run, tmp_path / "unprinted", pictures=False)
    assert "is not installed; open report.html in a browser" in bundle.left_out["report.pdf"]
    assert verify_bundle(bundle.folder).left_out["report.pdf"] == bundle.left_out["report.pdf"]
    assert not (bundle.folder / "report.pdf").exists()


def test_provenance_tells_when_the_runs_were_made(run, tmp_path):
    copy, file = tmp_path / "copy", tmp_path / "copy" / "provenance.json"
    shutil.copytree(run, copy)
    before = Provenance.read(file)
    run_plan(PLAN, copy)
    assert Provenance.read(file) == before  # nothing was left to run
    assert before.started <= before.finished
    assert before.python == platform.python_version()
    oldest = min((copy / "trials").iterdir())
    os.utime(oldest, (0, 0))
    file.unlink()
    run_plan(PLAN, copy)
    assert Provenance.read(file).started == "1970-01-01T00:00:00+00:00"  # not when the file was made anew
    assert Provenance.read(file).weights == before.weights


def test_the_command_plans_makes_and_checks(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["leakmap", "bundle", *words])
        with pytest.raises(SystemExit) as stop:
            sys.exit(command())
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    assert call("--profile-template")[1] == template()
    options = ("--model", "mlp,hidden=16", "--image-size", "16", "--victims", "4", "--attack", "linear", "--seed", "5")
    code, _, err = call("--plan", "plan.json", "--", *options, "--gate", "partial")
    assert code == 0
    assert re.search(r"^Fixed: plan.json\. Its SHA-256, by which others can hold it: [0-9a-f]{64}$", err, re.M)
    Path("profile.toml").write_text('[institution]\ncontroller = "A safe hospital"\n')
    code, out, _ = call(
        str(run), "--out", "made", "--no-pictures", "--planned", "plan.json", "--profile", "profile.toml"
    )
    assert code == 0
    for words in ("not filled in 21 of 22: Processor", "not as planned victims was planned as 4 and run as 3.",
                  "without report.pdf", "controller uses the word safe", "Bundle: made and made.zip"):  # fmt: skip
        assert words in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    assert call("--verify", "made.zip")[0] == 0
    with Path("made/report.html").open("a") as file:
        file.write("x")
    code, out, _ = call("--verify", "made")
    assert code == 1
    assert "wrong report.html was changed" in out
    for words, said in (
        ((), "Give one RUN"),
        ((str(run),), "--out DIR"),
        ((str(run), "--out", "x", "--verify", "made"), "by itself"),
        ((str(run), "--out", "x", "--signers", "made"), "goes with --verify"),
        (("--plan", "plan.json", "--", *options), "stays fixed"),
        (("--plan", "other.json", "--", "--modell", "mlp"), "Did you mean --model? Try 'leakmap audit --help'."),
        (("--plan", "other.json", "--", "--model", "resnett"), "did you mean resnet"),
    ):
        code, _, err = call(*words)
        assert code == 3
        assert said in err


def test_the_shipped_rates_are_those_of_the_page():
    text = (ROOT / "docs" / "results" / "verdict.md").read_text()
    rates = {name: (hits, n) for name, _, hits, n in INSTRUMENT}
    rows = {
        "false_alarms": "all null audits",
        "detection": "a network known to leak",
        "detection_of_one": "one client of 12 exposed",
    }
    for name, row in rows.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
        assert "| {} of {} |".format(*rates[name]) in line
    levels = re.findall(r"^\| (.+?) \|((?: \d+ \|){6})$", text, re.M)
    null = [list(map(int, re.findall(r"\d+", counts))) for row, counts in levels if row not in rows.values()]
    assert rates["false_alarms_visible"] == (sum(sum(row[-2:]) for row in null), sum(map(sum, null)))
    assert set(rates) == {*rows, "false_alarms_visible"}
