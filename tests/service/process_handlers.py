"""Handlers that start processes in every usual way. Each returns the results of its processes."""

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
from percore.handlers import Tensors

NUMBERS = list(range(8))
SQUARES = [number * number for number in NUMBERS]


def square(number: int) -> int:
    return number * number


class Processes:
    """Starts processes three times, in the way that its input names."""

    def load(self) -> None:
        pass

    def predict(self, inputs: Tensors) -> Tensors:
        way = getattr(self, inputs["way"].item().decode())
        return {"results": np.array([way() for _ in range(3)])}

    def pool(self) -> list[int]:
        """`multiprocessing.Pool`, forked, in a `with` block: it ends, and does not hang."""
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(square, NUMBERS)

    def spawned_pool(self) -> list[int]:
        """`multiprocessing.Pool`, spawned: the processes start, and none of them starts the service again."""
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            return pool.map(square, NUMBERS)

    def executor(self) -> list[int]:
        """`concurrent.futures.ProcessPoolExecutor`, forked: it ends, and does not hang."""
        with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
            return list(pool.map(square, NUMBERS))

    def joblib(self) -> list[int]:
        """`joblib.Parallel` with its default, loky: it ends, and is used again by the next call."""
        import joblib  # type: ignore[import-untyped]  # noqa: PLC0415 - only this way needs it

        return list(joblib.Parallel(n_jobs=2)(joblib.delayed(square)(number) for number in NUMBERS))

    def subprocess(self) -> list[int]:
        """`subprocess.run`: the output and the exit status arrive."""
        program = f"print(*[number * number for number in {NUMBERS}])"
        output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout
        return [int(each) for each in output.split()]

    def terminate(self) -> list[int]:
        """`multiprocessing.Process.terminate`: the process ends at once, by SIGTERM."""
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        process.start()
        time.sleep(0.1)
        process.terminate()
        process.join(5)
        assert process.exitcode == -signal.SIGTERM, process.exitcode
        return SQUARES

    def fork_and_exit(self) -> list[int]:
        """`os.fork`, and `sys.exit` in the child: it ends with that status, and nothing else runs in it."""
        for status in (0, 3):
            child = os.fork()
            if child == 0:
                sys.exit(status)
            assert os.waitpid(child, 0)[1] == status << 8
        return SQUARES

    def fork_and_raise(self) -> list[int]:
        """`os.fork`, and an exception in the child: it ends with a status other than 0, and answers no caller."""
        child = os.fork()
        if child == 0:
            raise RuntimeError("in the child")
        assert os.waitpid(child, 0)[1] != 0
        return SQUARES

    def fork_and_return(self) -> list[int]:
        """`os.fork`, and a child that returns from `predict`: it ends, and answers no caller."""
        child = os.fork()
        if child == 0:
            return [0] * len(NUMBERS)
        assert os.WIFEXITED(os.waitpid(child, 0)[1])
        return SQUARES


WAYS = tuple(name for name, each in vars(Processes).items() if ": " in (each.__doc__ or ""))
"""The methods that the table of docs/handlers.md lists."""


class ReturnsThreadSettings:
    """Returns the variables that numerical libraries read at their import, as they were when this module was imported."""

    threads = tuple(int(os.environ.get(name, "0")) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"))

    def load(self) -> None:
        pass

    def predict(self, _inputs: Tensors) -> Tensors:
        return {"threads": np.array(self.threads)}


class WritesToItsInput:
    """Changes its input in place."""

    def load(self) -> None:
        pass

    def predict(self, inputs: Tensors) -> Tensors:
        inputs["x"] *= 2
        return inputs


class LoadsInC:
    """Loads for a long time inside of C, where no signal handler of Python runs."""

    def load(self) -> None:
        np.linalg.svd(np.random.default_rng(1).normal(size=(3000, 3000)))

    def predict(self, inputs: Tensors) -> Tensors:
        return inputs
