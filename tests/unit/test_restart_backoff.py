from percore.worker.restart_backoff import RestartBackoff, restart_delay


def test_the_first_start_of_each_worker_is_at_once_and_later_ones_wait_longer_and_longer() -> None:
    backoff = RestartBackoff(workers=2)
    assert [backoff.begin() for _ in range(5)] == [0.0, 0.0, 0.2, 0.4, 0.8]
    assert [restart_delay(failures) for failures in (0, 1, 7, 1000)] == [0.0, 0.2, 10.0, 10.0]


def test_a_worker_that_is_ready_ends_the_waiting() -> None:
    backoff = RestartBackoff(workers=1)
    for _ in range(300):
        backoff.begin()
    before = backoff.ever_ready
    backoff.succeed()
    assert (before, backoff.ever_ready) == (False, True)
    assert backoff.begin() == 0.0
