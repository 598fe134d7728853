"""The imports of the arbiter before it forks, and the settings that each worker sets again after the fork.

A worker whose modules are imported already is ready in a fraction of a second instead of seconds. Only modules are imported
here, because TensorFlow does not survive a fork after it has run an operation or loaded a model. A fork copies one thread, and
a lock that another thread holds stays locked in the child. So after the import this process must have one thread.

Imported by the arbiter and its workers. Numpy, and modules that need it, are imported inside of functions.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import importlib.util
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from percore.errors import START_FAILED, LoadError
from percore.settings import Settings

log = logging.getLogger("percore.worker")

END_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))
LOAD_EXPIRED = "cannot start: the %s not loaded within PERCORE_LOAD_TIMEOUT, %g s"
KEY = "PERCORE_IMPORT_BEFORE_FORK"
FOR_MODELS = ("percore.api.app", "percore.model_store", "percore.handlers.tensorflow")
"""The modules that a worker imports if it serves a model repository."""
IF_INSTALLED = ("tf_keras",)
"""Modules that ``tf.saved_model.load`` imports if they are installed. The import takes a second."""
FOR_HANDLERS = ("percore.api.readonly",)
"""The modules that a worker imports for a handler. Numpy and TensorFlow are not among them, because the handler may set
variables that they read when they are imported, such as KERAS_BACKEND."""
THREAD_SETTINGS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    *("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
)
"""Environment variables that set the number of threads of libraries. If the user has set one, it is not changed."""
SETTING_OF = {"openblas": "OPENBLAS_NUM_THREADS", "mkl": "MKL_NUM_THREADS", "openmp": "OMP_NUM_THREADS"}
"""The variable of each library, by threadpoolctl's name for the library."""
TICK_SECONDS = 0.05
BACKSTOP_SECONDS = 2.0
SETTLE_SECONDS = 1.0
"""How long threads may take to end. The kernel still lists a thread for a moment after it was joined."""
TASKS = Path("/proc/self/task")
CHILDREN = Path("/proc/thread-self/children")


def modules(settings: Settings) -> tuple[str, ...]:
    """Return the modules to import: those that every worker needs, and those of the setting."""
    chosen = settings.models.import_before_fork
    if chosen == ():
        return ()
    if settings.app.target:
        needed: tuple[str, ...] = ()  # an app brings its own Flask, if it has one
    elif settings.models.handler:
        needed = FOR_HANDLERS
    else:
        needed = (*FOR_MODELS, *(name for name in IF_INSTALLED if importlib.util.find_spec(name)))
    return (*needed, *(chosen or ()))


def import_modules(names: tuple[str, ...], limit: float) -> list[str]:
    """Import modules within ``limit`` seconds, and return the threads and processes that the modules have started.

    A process with other threads must not fork. Processes that the modules have started are ended, because each worker must
    start its own. Raises LoadError if a module cannot be imported. Ends this process if the time is over, or at once on a
    signal that ends it. Call it in the main thread.
    """
    began = time.monotonic()
    with _single_threaded_libraries(), _within_limit(limit):
        for name in names:
            _import(name)
    others = [*_other_threads(), *_end_children()]
    if not others:
        # The objects of the modules are never collected. So the garbage collection of a worker does not write to shared pages.
        gc.collect()
        gc.freeze()
        log.info("imported before the fork, in %.1f s: %s", time.monotonic() - began, ", ".join(names))
    return others


def set_up_forked_worker(threads: int) -> None:
    """Make a forked worker differ from its siblings: new random numbers, and ``threads`` threads for a call.

    Libraries that are imported already do not read the environment again. So their number of threads is set here. Python and
    Gunicorn give the module ``random`` a new seed. TensorFlow has drawn no random number yet.
    """
    if "numpy" in sys.modules:
        import numpy as np  # noqa: PLC0415 - only if it was imported

        np.random.seed()  # the generator that all code of a process shares
    from threadpoolctl import ThreadpoolController  # noqa: PLC0415 - only a worker that was imported before its fork needs it

    for library in ThreadpoolController().lib_controllers:
        text = os.environ.get(SETTING_OF.get(library.internal_api, ""), "")
        library.set_num_threads(int(text) if text.isdecimal() and int(text) > 0 else threads)


def _import(name: str) -> None:
    if not name.startswith("percore."):
        from percore.handlers import custom  # noqa: PLC0415 - it imports numpy

        custom.import_module(KEY, name)
        return
    try:
        importlib.import_module(name)
    except Exception as error:
        raise LoadError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _single_threaded_libraries() -> Iterator[None]:
    """Make OpenBLAS and other libraries start no threads at their import."""
    before = {name: os.environ.get(name) for name in THREAD_SETTINGS}
    os.environ.update(dict.fromkeys(THREAD_SETTINGS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _within_limit(limit: float) -> Iterator[None]:
    """Watch the time and the signals in a second thread, because the main thread may run C code for a long time."""
    done = threading.Event()
    # Python writes the number of a signal to this descriptor at once. If signals were blocked instead, every process that a
    # module starts would inherit the block.
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    waiting = select.poll()
    waiting.register(reader, select.POLLIN)

    def watch() -> None:
        ends = time.monotonic() + limit
        while not done.is_set():
            if waiting.poll(TICK_SECONDS * 1000) and not END_SIGNALS.isdisjoint(os.read(reader, 4096)):
                os._exit(0)  # no worker was forked yet
            if time.monotonic() > ends:
                log.critical(LOAD_EXPIRED, "modules were", limit)
                os._exit(START_FAILED)

    thread = threading.Thread(target=watch, name="import-watchdog", daemon=True)
    handlers = {each: signal.signal(each, lambda _number, _frame: None) for each in END_SIGNALS}
    earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    # A C library that does not release the interpreter's lock keeps that thread from running. This timer needs no lock.
    faulthandler.dump_traceback_later(limit + BACKSTOP_SECONDS, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.set_wakeup_fd(earlier)
        for each, handler in handlers.items():
            signal.signal(each, handler)
        done.set()
        thread.join()
        os.close(reader)
        os.close(writer)


def _other_threads() -> list[str]:
    """Return the names of all threads but the main one, once those that are ending have ended."""
    ends = time.monotonic() + SETTLE_SECONDS
    while (others := _listed_threads()) and time.monotonic() < ends:
        time.sleep(TICK_SECONDS)
    return others


def _end_children() -> list[str]:
    """End the processes that a module has started, and return their names: they would outlive the workers, and the service."""
    ended = []
    for pid in CHILDREN.read_text().split() if CHILDREN.exists() else ():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            ended.append(f"process {Path(f'/proc/{pid}/comm').read_text().strip()}")
            os.kill(int(pid), signal.SIGKILL)
            os.waitpid(int(pid), 0)
    return ended


def _listed_threads() -> list[str]:
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = []
    try:
        for task in TASKS.iterdir():
            if int(task.name) != os.getpid():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                    found.append(names.get(int(task.name)) or (task / "comm").read_text().strip())
    except OSError as error:
        return [f"unknown, because {TASKS} cannot be read: {error.strerror}"]
    return sorted(found)
