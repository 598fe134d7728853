import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from percore.errors import BadInput
from percore.handlers.echo import Echo, Sleep
from percore.handlers.faults import Faulty


def ask(**inputs: Any) -> dict[str, Any]:
    return dict(Faulty().predict({name: np.asarray(value) for name, value in inputs.items()}))


def test_echo_answers_its_inputs() -> None:
    inputs = {"x": np.ones(2)}
    assert Echo().predict(inputs) is inputs


def test_sleep_waits_for_the_longest_and_does_not_compute() -> None:
    began, computed = time.monotonic(), time.process_time()
    assert Sleep().predict({"seconds": np.array([0.0, 0.05, -1.0])})["seconds"].size == 3
    assert time.monotonic() - began >= 0.05
    assert time.process_time() - computed < 0.04
    Sleep().predict({"seconds": np.empty(0)})


def test_faulty_without_a_fault_answers_its_inputs_and_its_pid() -> None:
    answer = ask(x=[1, 2])
    assert (answer["x"].tolist(), answer["pid"].item()) == ([1, 2], os.getpid())


def test_burn_computes_and_sleep_does_not() -> None:
    computed = time.process_time()
    ask(sleep=[0.05])
    assert time.process_time() - computed < 0.04
    ask(burn=0.3)  # a busy machine gives this process a part of the time only
    assert time.process_time() - computed > 0.02


def test_the_fault_fail_becomes_500_and_the_fault_bad_becomes_400() -> None:
    with pytest.raises(RuntimeError, match="boom"):
        ask(fail=np.array(b"boom", object))
    with pytest.raises(BadInput, match="nonsense"):
        ask(bad="nonsense")


def test_memory_is_held_while_the_call_runs() -> None:
    assert ask(memory=3 * 4096 + 1)["memory"].item() == 3 * 4096 + 1
    with pytest.raises(MemoryError):
        ask(memory=2**60)


@pytest.mark.parametrize(("inputs", "code"), [("exit=np.array(7)", 7), ("signal=np.array(9)", -9)])
def test_exit_and_signal_end_the_process_at_once(inputs: str, code: int) -> None:
    program = f"import numpy as np\nfrom percore.handlers.faults import Faulty\nFaulty().predict(dict({inputs}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == code


@pytest.mark.parametrize("value", [[1, 2], "soon", -1, float("nan")])
def test_a_fault_that_is_not_one_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(BadInput, match="sleep: must be"):
        ask(sleep=value)
