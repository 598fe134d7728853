"""Which modules the arbiter imports, and in which environment."""

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from percore import settings
from percore.errors import LoadError, SettingsError
from percore.worker import before_fork

HANDLER = {"PERCORE_HANDLER": "mine:Handler"}
KEY = "PERCORE_IMPORT_BEFORE_FORK"
MODELS = (*before_fork.FOR_MODELS, "tf_keras")


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, MODELS),
        ({KEY: "layers"}, (*MODELS, "layers")),
        ({KEY: "no"}, ()),
        (HANDLER, before_fork.FOR_HANDLERS),
        ({**HANDLER, KEY: "tensorflow, mine.layers"}, (*before_fork.FOR_HANDLERS, "tensorflow", "mine.layers")),
        ({**HANDLER, KEY: "no"}, ()),
        ({"PERCORE_APP": "mine:app"}, ()),
        ({"PERCORE_APP": "mine:app", KEY: "tensorflow"}, ("tensorflow",)),
    ],
)
def test_tensorflow_is_imported_for_a_repository_and_for_a_handler_only_if_it_is_named(
    environ: dict[str, str], names: tuple[str, ...]
) -> None:
    assert before_fork.modules(settings.load(environ)) == names


def test_a_name_that_is_no_module_is_an_error() -> None:
    with pytest.raises(SettingsError, match="PERCORE_IMPORT_BEFORE_FORK='no,'"):
        settings.load({KEY: "no,"})


def test_the_modules_for_a_handler_import_neither_numpy_nor_tensorflow() -> None:
    names = ", ".join(before_fork.FOR_HANDLERS)
    code = f"import sys, {names}; print([name for name in ('numpy', 'keras') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "percore.nowhere", None)
    with pytest.raises(LoadError, match=r"percore\.nowhere cannot be imported: ModuleNotFoundError: "):
        before_fork.import_modules(("percore.nowhere",), 60)


def test_libraries_have_one_thread_only_during_their_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "reads_the_environment.py").write_text("import os\nseen = dict(os.environ)\n")
    try:
        before_fork.import_modules(("reads_the_environment",), 60)
    finally:
        gc.unfreeze()
    seen = sys.modules.pop("reads_the_environment").seen
    assert {seen[name] for name in before_fork.THREAD_SETTINGS} == {"1"}
    assert os.environ["OPENBLAS_NUM_THREADS"] == "7"
    assert "OMP_NUM_THREADS" not in os.environ


def test_after_an_import_that_fails_signals_have_their_effect_and_the_watchdog_has_ended() -> None:
    before = [signal.getsignal(each) for each in before_fork.END_SIGNALS]
    with pytest.raises(LoadError, match="there is no module 'nowhere'"):
        before_fork.import_modules(("nowhere",), 60)
    assert [signal.getsignal(each) for each in before_fork.END_SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "import-watchdog" not in [thread.name for thread in threading.enumerate()]


def test_a_thread_that_goes_on_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(before_fork, "SETTLE_SECONDS", 0.1)
    monkeypatch.syspath_prepend(tmp_path)
    ended = threading.Event()
    monkeypatch.setattr(threading, "ended", ended, raising=False)
    code = "import threading\nthreading.Thread(target=threading.ended.wait, name='of-the-module').start()\n"
    (tmp_path / "starts_a_thread_of_its_own.py").write_text(code)
    try:
        assert "of-the-module" in before_fork.import_modules(("starts_a_thread_of_its_own",), 60)
    finally:
        ended.set()
        sys.modules.pop("starts_a_thread_of_its_own")


def test_a_process_that_goes_on_is_named_and_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = "import subprocess\nstarted = subprocess.Popen(['sleep', '333'])\n"
    (tmp_path / "starts_a_process.py").write_text(code)
    assert "process sleep" in before_fork.import_modules(("starts_a_process",), 60)
    started = sys.modules.pop("starts_a_process").started
    assert not Path(f"/proc/{started.pid}").exists()
    started.wait()


def test_threads_that_cannot_be_listed_are_a_reason_against_the_fork(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(before_fork, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(before_fork, "TASKS", tmp_path / "none")
    (reason,) = before_fork.import_modules(("json",), 60)
    assert reason.endswith("none cannot be read: No such file or directory")
