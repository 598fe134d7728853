import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from percore.api import jsoncodec
from percore.api.tensors import NUMPY_DTYPES, decode, dumps, infer_array, rows, to_json
from percore.dtypes import DTYPES
from percore.errors import BadInput
from percore.model_metadata import TensorSpec

from tests.fakes import spec

quick = settings(deadline=None, max_examples=60, derandomize=True)
NUMBERS = [dtype.name for dtype in DTYPES if dtype.name not in {"bytes", "bfloat16"}]


def written(array: Any, name: str = "y") -> str:
    return dumps(to_json(array, name)).decode()


def refusal(value: Any, described: TensorSpec) -> str:
    with pytest.raises(BadInput) as caught:
        decode(value, described, f"input {described.name!r}")
    return str(caught.value)


@quick
@given(data=st.data(), dtype=st.sampled_from(NUMBERS), shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
def test_every_array_of_numbers_comes_back_unchanged_from_json(data: st.DataObject, dtype: str, shape: tuple[int, ...]) -> None:
    array = data.draw(hnp.arrays(np.dtype(dtype), shape))
    back = decode(jsoncodec.loads(dumps(to_json(array, "y"))), TensorSpec("x", dtype, shape), "input 'x'")
    assert back.dtype == array.dtype
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, array)


@quick
@given(hnp.arrays(np.uint16, hnp.array_shapes(max_dims=2, max_side=5)))
def test_every_bfloat16_comes_back_unchanged_from_json(bits: Any) -> None:
    array = bits.view(ml_dtypes.bfloat16)
    back = decode(jsoncodec.loads(dumps(to_json(array, "y"))), TensorSpec("x", "bfloat16", array.shape), "input 'x'")
    np.testing.assert_array_equal(back.astype(np.float32), array.astype(np.float32))


@quick
@given(st.lists(st.binary(), max_size=5), st.sampled_from(["y", "y_bytes"]))
def test_every_array_of_bytes_comes_back_unchanged_from_json(values: list[bytes], name: str) -> None:
    array = np.empty(len(values), object)
    array[:] = values
    back = decode(jsoncodec.loads(dumps(to_json(array, name))), spec("x", "bytes", None), "input 'x'")
    assert back.tolist() == values


def test_a_string_instead_of_a_number_is_refused_with_index_and_value() -> None:
    assert (
        refusal([[1, 2], [3, "4"]], spec("x", "float32", None, 2))
        == "input 'x' at [1, 1]: expected float32, got the string '4'"
    )


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (True, "float32", "input 'x' at 1: expected float32, got the boolean true"),
        (False, "int32", "input 'x' at 1: expected int32, got the boolean false"),
        (1, "bool", "input 'x' at 1: expected bool, got the number 1"),
        (None, "float32", "input 'x' at 1: expected float32, got null"),
        ({"a": 1}, "float32", "input 'x' at 1: expected float32, got the object {'a': 1}"),
        (1.5, "int32", "input 'x' at 1: expected int32, got the number 1.5"),
        (1, "bytes", "input 'x' at 1: expected bytes, got the number 1"),
        ({"b64": 5}, "bytes", "input 'x' at 1: expected a string or {\"b64\": \"...\"}, got the object {'b64': 5}"),
        ({"b64": "a"}, "bytes", "input 'x' at 1: expected base64 in 'b64', got 'a': "),
        ({"b64": "é"}, "bytes", "input 'x' at 1: expected base64 in 'b64', got 'é': "),
        (128, "int8", "input 'x' at 1: expected int8, from -128 to 127, got 128, which is out of range"),
        (-1, "uint64", "input 'x' at 1: expected uint64, from 0 to 18446744073709551615, got -1, which is out of range"),
        (2.0**64, "uint64", "got 18446744073709551616, which is out of range"),
        (
            1e39,
            "float32",
            "input 'x' at 1: expected float32, from -3.4028234663852886e+38 to 3.4028234663852886e+38, got 1e+39",
        ),
        (65520, "float16", "input 'x' at 1: expected float16, from -65504.0 to 65504.0, got 65520, which is out of range"),
        (10**400, "float64", "input 'x' at 1: expected float64, from -1.79"),
        (4e38, "bfloat16", "input 'x' at 1: expected bfloat16, from -3.3"),
    ],
)
def test_a_value_of_the_wrong_kind_or_range_is_named_with_its_index_and_the_rule(value: Any, dtype: str, message: str) -> None:
    good = {"bool": True, "bytes": "a"}.get(dtype, 0)
    assert message in refusal([good, value], spec("x", dtype, None))


def test_infinity_is_accepted_and_a_number_out_of_range_beside_it_is_refused() -> None:
    array = decode([float("inf"), float("nan"), 1], spec("x", "float16", 3), "x")
    assert np.isinf(array[0])
    assert np.isnan(array[1])
    assert "got 1e+39" in refusal([float("inf"), 1e39], spec("x", "float32", None))


def test_the_largest_float32_is_accepted_as_it_is_written() -> None:
    largest = np.array([np.finfo(np.float32).max])
    assert decode(json.loads(written(largest.astype(np.float32))), spec("x", "float32", 1), "x")[0] == largest[0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0] * 64, [0] * 63], "input 'x': expected rows of one length; row 1 has 63 values, row 0 has 64 values"),
        ([[1, 2], 3], "input 'x': expected rows of one length; row 1 is the number 3, row 0 has 2 values"),
        ([1, [2]], "input 'x': expected rows of one length; row 1 has 1 values, row 0 is the number 1"),
        ([[[1], [2]], [[3], [4, 5]]], "row [1, 1] has 2 values, row [0, 0] has 1 values"),
    ],
)
def test_rows_that_differ_are_refused_and_the_first_different_one_is_named(value: Any, message: str) -> None:
    assert message in refusal(value, spec("x", "float32", None, None))


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        ([[0] * 63], (None, 64), "input 'x': expected shape [-1, 64], got [1, 63]"),
        ([0], (), "input 'x': expected shape [], got [1]"),
        (0, (None,), "input 'x': expected shape [-1], got []"),
        ([], (3, 64), "input 'x': expected shape [3, 64], got [0]"),
        ([], (), "input 'x': expected shape [], got [0]"),
    ],
)
def test_a_wrong_shape_is_refused_with_both_shapes(value: Any, shape: tuple[int | None, ...], message: str) -> None:
    assert refusal(value, spec("x", "float32", *shape)) == message


@pytest.mark.parametrize(
    ("value", "shape", "expected"),
    [([], (None, 64), (0, 64)), ([[], []], (None, None, 3), (2, 0, 3)), ([], (None,), (0,)), ([[]], None, (1, 0))],
)
def test_an_empty_list_takes_the_dimensions_it_cannot_tell_from_the_spec(
    value: Any, shape: tuple[int | None, ...] | None, expected: tuple[int, ...]
) -> None:
    assert decode(value, TensorSpec("x", "int32", shape), "x").shape == expected


def test_lists_nested_deeper_than_numpy_has_dimensions_are_refused() -> None:
    value: Any = 1
    for _ in range(65):
        value = [value]
    assert (
        refusal(value, TensorSpec("x", "int32", None)) == "input 'x': expected at most 64 dimensions, got lists nested deeper"
    )


def test_messages_cut_long_values_short() -> None:
    assert len(refusal(["x" * 1_000_000], spec("x", "float32", None))) < 120
    assert len(refusal([{"b64": "!" * 1_000_000}], spec("x", "bytes", None))) < 160


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1, 2], "int64"),
        ([2**63], "uint64"),
        ([1, 2.5], "float64"),
        ([True], "bool"),
        (["a", {"b64": "Yg=="}], "bytes"),
        ([], "float64"),
        (3, "int64"),
    ],
)
def test_without_a_spec_the_type_is_the_one_the_values_have(value: Any, dtype: str) -> None:
    assert infer_array(value, "x").dtype == NUMPY_DTYPES[dtype]


def test_without_a_spec_a_long_string_does_not_make_the_others_take_its_memory() -> None:
    array = infer_array(["x" * 1_000_000, *["a"] * 100_000], "x")
    assert array.dtype == object
    assert array[1] == b"a"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, "a"], "x: expected numbers alone, booleans alone or strings alone, got values of the kinds number, string"),
        ([True, 1], "got values of the kinds boolean, number"),
        ([None], "got values of the kinds null"),
        ([[1], [1, 2]], "x: expected rows of one length; row 1 has 2 values, row 0 has 1 values"),
        ([2**64], "x at 0: expected uint64, from 0 to 18446744073709551615, got 18446744073709551616"),
        ({"a": 1}, 'x: expected a string or {"b64": "..."}, got the object {\'a\': 1}'),
    ],
)
def test_without_a_spec_values_of_mixed_kinds_are_refused(value: Any, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        infer_array(value, "x")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([np.nan, 1.5, np.nan], np.float32), "[NaN,1.5,NaN]"),
        (np.array([[np.inf], [-np.inf]]), "[[Infinity],[-Infinity]]"),
        (np.array([np.nan, np.inf, -np.inf, 0]), "[NaN,Infinity,-Infinity,0.0]"),
        (np.float64(np.nan), "NaN"),
        (np.array(-np.inf, np.float16), "-Infinity"),
        (np.array([np.nan, 1], ml_dtypes.bfloat16), "[NaN,1.0]"),
    ],
)
def test_values_that_are_not_finite_are_written_as_bare_tokens(array: Any, text: str) -> None:
    assert written(np.asarray(array)) == text


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.arange(4).reshape(2, 2).T, "[[0,2],[1,3]]"),
        (np.arange(6, dtype=np.float32)[::2], "[0.0,2.0,4.0]"),
        (np.array([1, 2], ">f4"), "[1.0,2.0]"),
        (np.frombuffer(b"\0" + np.array([1, 2], np.float32).tobytes(), np.uint8)[1:].view(np.float32), "[1.0,2.0]"),
        (np.array(3, np.int8), "3"),
        (np.array([True, False]), "[true,false]"),
        (np.zeros((0, 64)), "[]"),
        (np.zeros((2, 0)), "[[],[]]"),
        (np.array(["a", "bé"]), '["a","bé"]'),
        (np.array([b"a", b"\xff"]), '["a",{"b64":"/w=="}]'),
        (np.array(b"null", object), '"null"'),
    ],
)
def test_arrays_are_written_whatever_their_layout_and_type(array: Any, text: str) -> None:
    assert written(array) == text


def test_an_output_named_bytes_is_binary_even_if_it_is_text() -> None:
    assert written(np.array([b"a"], object), "image_bytes") == '[{"b64":"YQ=="}]'


def test_rows_have_the_tokens_and_strings_that_look_like_them_are_unchanged() -> None:
    numbers = rows(np.array([np.nan, 1.0], np.float32), "n")
    texts = rows(np.array([b"null", b"NaN"], object), "t")
    table = rows(np.array([[1.0, np.inf], [np.nan, 2.0]]), "m")
    assert dumps(list(zip(numbers, texts, table, strict=True))) == b'[[NaN,"null",[1.0,Infinity]],[1.0,"NaN",[NaN,2.0]]]'


@pytest.mark.parametrize("array", [np.array([1j]), np.array([{}], object), np.array(["2020-01-01"], "datetime64[D]")])
def test_an_output_type_that_no_protocol_has_is_the_models_failure(array: Any) -> None:
    with pytest.raises(TypeError, match="the model's output"):
        to_json(array, "y")
