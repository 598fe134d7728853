"""Handlers that the tests of the service load."""

import ctypes
import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from percore import errors
from percore.handlers import Tensors
from percore.worker import watchdog


class SlowToLoad:
    """Takes longer to load than all other timeouts of the test."""

    def load(self) -> None:
        time.sleep(3.5)

    def predict(self, inputs: Tensors) -> Tensors:
        time.sleep(inputs["sleep"].item() if "sleep" in inputs else 0)
        return inputs


class FailsWhenAllowed:
    """Cannot be loaded, and waits for a file before it says so."""

    def load(self) -> None:
        while not (Path(os.environ["PERCORE_STATE_DIR"]) / "allowed").exists():
            time.sleep(0.02)
        raise FileNotFoundError("no such weights")

    def predict(self, inputs: Tensors) -> Tensors:
        return inputs


class FailsToLoad:
    """Cannot be loaded."""

    def load(self) -> None:
        raise FileNotFoundError("no such weights")

    def predict(self, inputs: Tensors) -> Tensors:
        return inputs


class Span:
    """Computes for 5 ms; returns begin and end, in seconds of the machine's monotonic clock."""

    def load(self) -> None:
        pass

    def predict(self, _inputs: Tensors) -> Tensors:
        began = ended = time.monotonic()
        while ended < began + 0.005:
            ended = time.monotonic()
        return {"began": np.array(began), "ended": np.array(ended)}


class FailsWhenForbidden:
    """Fails to load if the file ``forbidden`` is in the state directory."""

    def load(self) -> None:
        if (Path(os.environ["PERCORE_STATE_DIR"]) / "forbidden").exists():
            raise RuntimeError("forbidden")

    def predict(self, inputs: Tensors) -> Tensors:
        return inputs


class StartsProcesses:
    """Forks one process and starts another one. Both outlive the call."""

    def load(self) -> None:
        pass

    def predict(self, inputs: Tensors) -> Tensors:
        forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        forked.start()
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]):
            time.sleep(60)
        return inputs


class LeavesAProcess:
    """Starts a process that outlives the call, and answers after a second."""

    def load(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def predict(self, inputs: Tensors) -> Tensors:
        self.started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        time.sleep(1)
        return inputs


class ComputesInC:
    """Computes in C for most of a minute; meanwhile no signal handler of Python runs."""

    def load(self) -> None:
        pass

    def predict(self, inputs: Tensors) -> Tensors:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)
        return inputs


class KeepsTheLock:
    """Keeps Python's global lock for ever. The kernel ends its worker early, so that a test need not wait."""

    def load(self) -> None:
        watchdog.KILL_SECONDS = 4.0

    def predict(self, inputs: Tensors) -> Tensors:
        library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
        # The second lock waits for ever, because the first one holds the mutex. A signal would interrupt `sleep`, but not this.
        for _ in range(2):
            library.pthread_mutex_lock(mutex)
        return inputs


class LeavesOrphans:
    """Starts a process that starts another one and ends first."""

    def load(self) -> None:
        pass

    def predict(self, inputs: Tensors) -> Tensors:
        program = "import os, time\nif os.fork() == 0: time.sleep(0.3)\nos._exit(0)"
        subprocess.run([sys.executable, "-S", "-c", program], check=True)
        return inputs


class LeavesThreads:
    """Starts a thread that goes on after the call, and prints."""

    def load(self) -> None:
        pass

    def predict(self, inputs: Tensors) -> Tensors:
        threading.Thread(target=time.sleep, args=(60,)).start()
        print("half a line", end="")
        return inputs


class RaisesErrors:
    """Raises the error that its input names: one of percore's, or a subclass that a user wrote."""

    class Mine(errors.BadInput):
        status = 503
        code = "not-ready"
        retry_after = 1

    def load(self) -> None:
        pass

    def predict(self, inputs: Tensors) -> Tensors:
        name = inputs["error"].item().decode()
        raise getattr(self if name == "Mine" else errors, name)("as asked")


class Journal:
    """Writes begin and end of each call to a file, and whether another run of the call computes at the same time.

    Inputs: ``n``, the call's number; ``sleep``, seconds; ``native``, seconds in C that never releases Python's global lock, so
    no other thread of the worker runs; ``fill``, bytes to answer with.
    """

    def load(self) -> None:
        self.path = Path(os.environ["JOURNAL"])

    def predict(self, inputs: Tensors) -> Tensors:
        number = int(inputs["n"].item())
        begun: set[int] = set()
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            what, of, pid = line.split()[:3]
            if int(of) == number:
                (begun.add if what == "begin" else begun.discard)(int(pid))
        # The worker may live on after it has ended the call, if its answer was lost with the gateway.
        for other in begun - {os.getpid()}:
            if Path(f"/proc/{other}").exists():
                self.write(f"overlap {number} {other}")
        self.write(f"begin {number} {os.getpid()}")
        time.sleep(inputs["sleep"].item() if "sleep" in inputs else 0)
        if "native" in inputs:
            ctypes.PyDLL(None).sleep(int(inputs["native"].item()))
        self.write(f"end {number} {os.getpid()}")
        fill = int(inputs["fill"].item()) if "fill" in inputs else 0
        return {"n": np.array(number), "fill": np.full(fill, number % 256, np.uint8)}

    def write(self, line: str) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{line}\n".encode())
        os.close(fd)
