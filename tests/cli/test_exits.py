"""Exit codes 0, 1 and 2 are those of results; everything else ends in one sentence and a code of its own."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
from rich.padding import Padding
from safetensors import SafetensorError

from leakmap import memory
from leakmap.cli import main as entry
from leakmap.cli.main import command
from leakmap.cli.terminal import Terminal
from leakmap.errors import StoreError, WorkerDied
from leakmap.files import write_text, written

AUDIT = ["audit", "--image-size", "16", "--victims", "1", "--workers", "0", "--attack", "linear", "--gate", "partial"]


@pytest.fixture
def ended(monkeypatch, capsys):
    """What ``main`` ends with where a command raises something."""

    def ended(error: BaseException) -> tuple[int, str]:
        def app(**how):
            raise error

        monkeypatch.setattr(entry, "app", app)
        with pytest.raises(SystemExit) as stop:
            sys.exit(command())
        return stop.value.code, capsys.readouterr().err

    return ended


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a/file"), 4, ("/runs/a (", "--out")),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/runs/a/file"), 4, ("/runs/a (", "same command")),
        (OSError(errno.EROFS, "Read-only file system", "/runs/a/file"), 3, ("/runs/a.", "--out")),
        (PermissionError(errno.EACCES, "Permission denied", "/runs/a/file"), 3, ("/runs/a.", "--out")),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "here"), 3, ("here: No such file",)),
        (OSError(errno.EIO, "Input/output error", "file"), 4, ("Internal error", "Please report")),
        (MemoryError(), 4, ("Memory ran out", "--batch-size")),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 4, ("Memory ran out",)),
        (RuntimeError("could not create a primitive"), 4, ("Memory ran out",)),
        (WorkerDied(), 4, ("fewer --workers",)),
        (StoreError("Told."), 3, ("Error: Told.",)),
        (StoreError(f"Setting {'a' * 50_000} is none."), 3, ("Error: Setting aaa", "aaa … aaa", "aaa is none.")),
        (SystemExit(0), 3, ("sys.exit(0)", "Take that out")),
        (KeyboardInterrupt(), 130, ("same command continues",)),
        (KeyError("x"), 4, ("KeyError: 'x'", "cli/main.py line", "LEAKMAP_DEBUG=1", "leakmap 0")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_accident_is_one_sentence_and_never_the_code_of_a_result(ended, error, code, words):
    found, said = ended(error)
    assert found == code
    assert all(word in said for word in words)
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


def test_the_traceback_is_shown_where_it_is_asked_for(ended, monkeypatch):
    monkeypatch.setenv("LEAKMAP_DEBUG", "1")
    code, said = ended(KeyError("x"))
    assert code == 4
    assert "Traceback" in said


@pytest.mark.parametrize("stopped", ["as it is", "by click"])
def test_a_closed_output_is_no_mistake(ended, stopped):
    error = SystemExit(1)
    error.__context__ = BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert ended(error if stopped == "by click" else error.__context__) == (141, "")


CODE = {
    "import": "import sys\nsys.exit(0)\n",
    "build": "import sys\ndef build(): sys.exit(0)\n",
    "forward": (
        "import sys\nfrom torch import nn\n"
        "class Quits(nn.Linear):\n"
        "    def forward(self, x): sys.exit(0)\n"
        "def build(): return Quits(768, 8)\n"
    ),
}


@pytest.mark.parametrize("where", CODE)
def test_a_model_that_exits_passes_no_gate(where, monkeypatch, capsys, tmp_path):
    (tmp_path / "quits.py").write_text(CODE[where])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["leakmap", *AUDIT, "--model", "quits.py:build"])
    with pytest.raises(SystemExit) as stop:
        sys.exit(command())
    assert stop.value.code == 3
    assert "sys.exit(0)" in capsys.readouterr().err


GUARDED = "import os, signal, sys, time; from leakmap.cli.guard import guarded; sys.exit(guarded(lambda: {}))"


@pytest.mark.skipif(sys.platform != "linux", reason="the guard is a process that Linux forks")
@pytest.mark.parametrize(
    ("does", "code", "words"),
    [
        ("os._exit(0)", 3, "os._exit(0)"),
        ("os._exit(9)", 3, "os._exit(9)"),
        ("os.abort()", 4, "SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 4, "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", 4, "ulimit"),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("os.kill(os.getppid(), signal.SIGTERM) or time.sleep(60)", -signal.SIGTERM, ""),
        ("2", 2, ""),
    ],
)
def test_only_a_command_that_got_to_its_end_gives_the_code_of_a_result(does, code, words):
    ran = subprocess.run([sys.executable, "-c", GUARDED.format(does)], capture_output=True, text=True, timeout=30)
    assert ran.returncode == code
    assert ran.stderr.count("\n") == bool(words)
    assert words in ran.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the guard is a process that Linux forks")
def test_a_killed_guard_takes_the_command_with_it_and_an_interruption_comes_once(tmp_path):
    """Once though it is sent to both processes, and passed on."""
    does = "print(flush=True) or time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", GUARDED.format(does)], stdout=subprocess.PIPE, text=True) as running:
        running.stdout.readline()
        running.kill()
        running.communicate(timeout=30)  # comes back when nobody holds the output open
    (tmp_path / "held.py").write_text(
        "import sys, time\nfrom leakmap.cli.guard import guarded\n"
        "def wait():\n"
        "    try: print(flush=True); time.sleep(60)\n"
        "    except KeyboardInterrupt: time.sleep(0.3)\n"
        "    return 7\n"
        "sys.exit(guarded(wait))\n"
    )
    words = [sys.executable, str(tmp_path / "held.py")]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
    for group in (True, False):
        with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True, preexec_fn=heeds) as running:
            running.stdout.readline()
            (os.killpg if group else os.kill)(running.pid, signal.SIGINT)
            assert running.wait(30) == 7


def test_what_a_model_file_warns_of_and_leaves_behind_is_a_plain_line_each(tmp_path):
    (tmp_path / "warns.py").write_text(
        "import threading, warnings\n"
        "class Gone:\n    def __del__(self): raise ValueError('\x1b[31m')\n"
        "def build():\n"
        "    warnings.warn('\x1b[31m')\n    Gone()\n"
        "    thread = threading.Thread(target=lambda: 1 / 0)\n    thread.start()\n    thread.join()\n"
        "    raise ValueError('no')\n"
    )
    words = ["inspect", f"{tmp_path / 'warns.py'}:build", "--classes", "8", "--image-size", "16"]
    ran = subprocess.run([sys.executable, "-m", "leakmap", *words], capture_output=True, text=True, timeout=120)
    warned, gone, thread, ended = ran.stderr.splitlines()
    assert ran.returncode == 3
    assert warned == r"UserWarning: \x1b[31m"
    assert gone == r"Aside: ValueError: \x1b[31m (warns.py, line 3)."
    assert thread == "Aside: ZeroDivisionError: division by zero (warns.py, line 7)."
    assert "ValueError: no" in ended


def test_a_model_that_exits_in_a_run_is_a_failure_on_record(monkeypatch, capsys, tmp_path):
    """A worker process computes the same jobs."""
    (tmp_path / "late.py").write_text(
        "import sys, traceback\nfrom torch import nn\n"
        "class Late(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        if any(frame.name == 'seen_by_server' for frame in traceback.extract_stack()): sys.exit(0)\n"
        "        return super().forward(x)\n"
        "def build(): return Late(nn.Flatten(), nn.Linear(768, 8))\n"
    )
    monkeypatch.chdir(tmp_path)
    words = [*AUDIT, "--model", "late.py:build", "--json"]
    monkeypatch.setattr(sys, "argv", ["leakmap", *words])
    with pytest.raises(SystemExit) as stop:
        sys.exit(command())
    assert stop.value.code == 2
    assert "sys.exit(0)" in capsys.readouterr().out


def test_a_full_disk_is_told_by_file_whoever_wrote(tmp_path):
    def full(temporary):
        raise SafetensorError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No" })')

    with pytest.raises(OSError, match="No space left") as error:
        written(tmp_path / "a", full)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
    with pytest.raises(FileNotFoundError) as error:
        write_text(tmp_path / "none" / "a", "")
    assert error.value.filename == str(tmp_path / "none" / "a")


def test_a_reader_that_leaves_early_is_met_with_silence():
    with subprocess.Popen(
        [sys.executable, "-m", "leakmap", "list", "--kind", "metrics"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ,
    ) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(120) == 141


def test_what_a_model_file_prints_is_no_result_and_nothing_acts_on_the_terminal(monkeypatch, capfd, tmp_path):
    (tmp_path / "prints.py").write_text(
        "import os, sys\nfrom torch import nn\nprint('x')\n"
        "def build():\n    os.write(1, b'x'); print('x'); return nn.Sequential(nn.Flatten(), nn.Linear(768, 8))\n"
        "def fails(): raise ValueError('\\x1b[31m[bold]')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["leakmap", *AUDIT, "--model", "prints.py:build", "--json"])
    with pytest.raises(SystemExit):
        sys.exit(command())
    assert json.loads(capfd.readouterr().out)["verdict"]
    monkeypatch.setattr(sys, "argv", ["leakmap", *AUDIT, "--model", "prints.py:fails"])
    with pytest.raises(SystemExit) as stop:
        sys.exit(command())
    said = capfd.readouterr().err
    assert stop.value.code == 3
    assert "\x1b" not in said
    assert "\\x1b[31m[bold]" in said
    console = Terminal(file=io.StringIO(), width=80)
    console.print(Padding("[bold]\x1b]0;title\x07[/bold]", (0, 0, 0, 2)))
    assert "\x1b" not in console.file.getvalue()
    assert "\\x1b]0;title\\x07" in console.file.getvalue()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--image-size", "1000000000"), "from 16 to 8192"),
        (("--image-size", "8000"), "GB are free"),
        (("--classes", "0"), "classes must be at least 1"),
        (("--classes", "1" + "0" * 20), "at most 10000000"),
        (("--device", "meta"), "'meta' cannot be used"),
        (("--share", "delta", "--epochs", "1000000000"), "epochs must be at least 1 and at most 10000"),
        (("--train-epochs", "1000000000"), "at most 10000"),
    ],
    ids=lambda value: value[-2] + value[-1][:5] if isinstance(value, tuple) else None,
)
def test_a_bound_is_said_before_anything_is_computed(option, words, monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_memory", lambda: 2**34)
    monkeypatch.setattr(sys, "argv", ["leakmap", *AUDIT, "--model", "mlp", *option])
    with pytest.raises(SystemExit) as stop:
        sys.exit(command())
    assert stop.value.code == 3
    assert words in capsys.readouterr().err
