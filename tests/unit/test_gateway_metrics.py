"""The gateway's metrics: how the codes of calls become labels."""

import pytest
from percore.gateway.gateway_metrics import CLASSES, CODES, DISCONNECTED, GatewayMetrics, label_of, queue_label_of


@pytest.mark.parametrize(
    ("code", "label"),
    [
        ("200", "200"),
        ("201", "2xx"),
        ("204", "2xx"),
        ("304", "3xx"),
        ("403", "4xx"),
        ("422", "4xx"),
        ("429", "429"),
        ("500", "500"),
        ("501", "5xx"),
        (DISCONNECTED, DISCONNECTED),
    ],
)
def test_a_usual_code_is_a_label_of_its_own_and_any_other_is_labelled_by_its_class(code: str, label: str) -> None:
    assert label_of(code) == label


@pytest.mark.parametrize("code", ["600", "999", "100", "", "2", "20", "2000", "²00", "other"])
def test_a_code_that_is_not_a_final_status_counts_as_an_error_of_the_server(code: str) -> None:
    assert label_of(code) == "5xx"


def test_labels_are_bounded_and_each_has_its_series_before_the_first_call() -> None:
    labels = {label_of(str(code)) for code in range(1000)} | {DISCONNECTED}
    assert labels == CODES | CLASSES | {DISCONNECTED}
    samples = [sample for family in GatewayMetrics().registry.collect() for sample in family.samples]
    assert labels == {each.labels["code"] for each in samples if each.name == "percore_gateway_call_seconds_count"}


@pytest.mark.parametrize(("code", "label"), [("200", "200"), ("201", "other"), ("503", "503"), (DISCONNECTED, DISCONNECTED)])
def test_queue_times_have_few_labels(code: str, label: str) -> None:
    assert queue_label_of(code) == label
