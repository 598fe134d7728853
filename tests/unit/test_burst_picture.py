import re
from typing import Any
from xml.etree import ElementTree

from tools import burst_picture as picture
from tools.svg import MARGIN, WAITING

SVG = "{http://www.w3.org/2000/svg}"


def measured(**other: Any) -> dict[str, Any]:
    """Two calls on one pod, and a second pod that is ready after three seconds."""
    return {
        "calls": 2,
        "ideal": 10.0,
        "total": 13.6,
        "wanted": [[0.0, 1], [2.0, 2]],
        "ready": [0.2, 3.0],
        "runs": [[3.5, 13.5, "burst-inference-77f-bbbbb"], [0.1, 10.1, "burst-inference-77f-aaaaa"]],
        "waits": [0.0, 3.4],
    } | other


def drawn(**other: Any) -> ElementTree.Element:
    return ElementTree.fromstring(picture.drawn(measured(**other)))


def texts(svg: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in svg.iter(f"{SVG}text")]


def path(svg: ElementTree.Element, stroke: str) -> str:
    [found] = [each.get("d", "") for each in svg.iter(f"{SVG}path") if each.get("stroke") == stroke]
    return found


def test_calls_leave_when_their_runs_end_and_pods_are_counted_when_they_are_first_ready() -> None:
    burst = picture.read(measured())
    assert burst.in_flight == [(0.0, 2), (10.1, 1), (13.5, 0)]
    assert burst.ready_pods == [(0.2, 1), (3.0, 2)]


def test_each_call_has_a_bar_for_its_wait_and_its_run_beside_its_pod_and_the_first_is_on_top() -> None:
    svg = drawn()
    bars = [each for each in svg.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]
    assert [bar.get("fill") for bar in bars] == [WAITING, picture.RUNS] * 2
    widths = [float(bar.get("width", "0")) for bar in bars]
    assert round(widths[3] / widths[2], 1) == round(10.0 / 3.5, 1)
    assert bars[-1].findtext(f"{SVG}title") == "waited 3.5 s, ran 10.0 s on burst-inference-77f-bbbbb"
    assert [each for each in texts(svg) if each in ("aaaaa", "bbbbb")] == ["aaaaa", "bbbbb"]


def test_the_lines_step_when_the_count_changes_and_not_before() -> None:
    """One pod is half the height of two; the last count holds to the end."""
    width = picture.WIDTH - 2 * MARGIN - picture.GUTTER
    across, half = width / (13.6 * 1.02), picture.HEAD + picture.STEPS_HEIGHT / 2
    for stroke, since, at in ((picture.WANTED, 0.0, 2.0), (picture.READY, 0.2, 3.0)):
        places = [round(seconds * across, 1) for seconds in (since, at, 13.6)]
        assert path(drawn(), stroke) == f"M{places[0]:g} {half:g}H{places[1]:g}V{picture.HEAD}H{places[2]:g}"


def test_the_words_above_describe_the_measurement() -> None:
    found = texts(drawn())
    assert "2 calls at once on 1 ready pod" in found
    said = "2 pods wanted after 2.0 s, 2 ready after 3.0 s; each call ran 10.0 s; last answer after 13.6 s"
    assert said in found
    slower = drawn(runs=[[0.1, 10.1, "a"], [3.5, 13.8, "b"], [3.5, 13.6, "c"]])
    assert any("each call ran 10.0 to 10.3 s" in each for each in texts(slower))
    [worse] = [each for each in texts(drawn(calls=3)) if "last answer" in each]
    assert worse.endswith("; 1 never ran")


def test_nothing_is_drawn_beyond_the_picture_and_nothing_is_fetched_or_run() -> None:
    svg = drawn()
    width, height = float(svg.get("width", "0")), float(svg.get("height", "0"))
    [group] = svg.iter(f"{SVG}g")
    left = float(re.findall(r"[\d.]+", group.get("transform", ""))[0])
    for bar in group.iter(f"{SVG}rect"):
        assert left + float(bar.get("x", "0")) + float(bar.get("width", "0")) <= width - MARGIN
        assert float(bar.get("y", "0")) + picture.BAR < height
    assert {each.tag.removeprefix(SVG) for each in svg.iter()} == {"svg", "rect", "g", "line", "path", "text", "title"}
    assert "href" not in picture.drawn(measured())


def test_a_burst_without_an_answer_is_drawn_too() -> None:
    svg = drawn(runs=[], ready=[], wanted=[[0.0, 1]])
    assert "2 calls at once on 1 ready pod" in texts(svg)
