"""What several files of unit tests share."""

import pytest


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Set TensorFlow to one thread, before it computes anything: afterwards it cannot be set."""
    from percore.handlers import tensorflow  # noqa: PLC0415 - it takes seconds, and most tests do without

    tensorflow.configure(1)
