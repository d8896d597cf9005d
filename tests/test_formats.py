"""Media types, and the default formats of rows."""

import csv
import io
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tandem import formats
from tandem.errors import ModelError, NotAcceptable, UnsupportedMediaType, UserError
from tandem.formats import CSV, JSON, JSON_LINES, NPY, decode_rows, encode_rows, negotiate

OFFERED = (JSON, JSON_LINES, CSV, NPY)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npy_header(text: str, version: bytes = b"\x01\x00") -> bytes:
    header = text.encode("latin-1")
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version[0] == 1 else 4, "little") + header


def refusal(body: bytes, content_type: str) -> str:
    with pytest.raises(UserError) as caught:
        decode_rows(body, content_type)
    assert caught.value.status == 400
    return str(caught.value)


@pytest.mark.parametrize(
    ("header", "media_type", "parameters"),
    [
        ("application/json", JSON, {}),
        ("Application/JSON; Charset=UTF-8", JSON, {"charset": "UTF-8"}),
        (" text/csv ;header=present", CSV, {"header": "present"}),
        ('text/csv; x="a;b"', CSV, {"x": "a;b"}),
        ("text/csv; charset", CSV, {}),
        ("", "", {}),
        (None, "", {}),
        (";", "", {}),
    ],
)
def test_a_media_type_is_parsed_in_any_case_and_with_any_parameters(header, media_type, parameters):
    assert formats.parse_media_type(header) == (media_type, parameters)


@pytest.mark.parametrize("header", ["application/x-jsonlines", "application/jsons", "Application/X-NDJSON"])
def test_synonyms_of_json_lines_become_its_usual_name(header):
    assert formats.canonical_media_type(header) == JSON_LINES
    assert formats.canonical_media_type(f"{header}; charset=utf-8") == f"{JSON_LINES}; charset=utf-8"


def test_a_canonical_media_type_stays_as_it_is():
    assert formats.canonical_media_type("application/x-npy") == NPY
    assert formats.canonical_media_type(None) == ""


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, JSON),
        ("", JSON),
        (" , ", JSON),
        ("*/*", JSON),
        ("*", JSON),
        ("text/csv", CSV),
        ("TEXT/CSV", CSV),
        ("application/json;verbose=true", JSON),
        ("text/csv; charset=utf-8", CSV),
        ("application/json,*/*", JSON),
        ("text/csv,*/*", CSV),
        ("text/*", CSV),
        ("application/*", JSON),
        ("application/x-npy;q=0.9, text/csv;q=0.8", NPY),
        ("application/x-npy;q=0.1, text/csv;q=0.8", CSV),
        ("application/x-npy, text/csv", CSV),
        ("image/png, */*;q=0.1", JSON),
        ("application/json;q=0, */*", JSON_LINES),
        ("application/*;q=0, */*;q=0.5", CSV),
        ("text/html, image/gif, *; q=.2, */*; q=.2", JSON),
        ("application/x-ndjson", JSON_LINES),
        ("application/json;q=0.2, application/*;q=0.9", JSON_LINES),
        ("nonsense, text/csv", CSV),
    ],
)
def test_the_answer_has_the_type_that_the_caller_prefers(accept, chosen):
    assert negotiate(accept, OFFERED, JSON) == chosen


def test_the_default_is_chosen_without_a_preference():
    assert negotiate(None, OFFERED, CSV) == CSV
    assert negotiate("*/*", OFFERED, "text/csv; charset=utf-8") == CSV
    assert negotiate("application/json,*/*", OFFERED, CSV) == JSON
    assert negotiate("application/json,text/csv", OFFERED, CSV) == CSV
    assert negotiate("application/*", OFFERED, CSV) == JSON


def test_a_default_that_is_not_offered_is_replaced_by_the_first_offered_type():
    assert negotiate(None, ("image/png", CSV), JSON) == "image/png"


def test_the_type_is_spelled_as_the_algorithm_offers_it():
    assert negotiate("application/jsonlines", ("application/x-ndjson",), JSON) == "application/x-ndjson"


@pytest.mark.parametrize(
    "accept", ["image/png", "application/json;q=0", "*/*;q=0", "nonsense", "image/*, audio/*", "text/csv;q=2"]
)
def test_a_type_that_cannot_be_produced_is_rejected_with_those_that_can(accept):
    with pytest.raises(NotAcceptable) as caught:
        negotiate(accept, OFFERED, JSON)
    assert ", ".join(OFFERED) in str(caught.value)


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=60))
@example("a/b;q=0.5;charset*0*=utf-8''%zz")
@example("\x00/\x00")
def test_any_header_is_negotiated_or_rejected(header):
    formats.parse_media_type(header)
    try:
        assert negotiate(header, OFFERED, JSON) in OFFERED
    except NotAcceptable:
        pass


@pytest.mark.parametrize(
    "body", [b'{"instances": [1, {"a": 2}]}', b'[1, {"a": 2}]', b'\xef\xbb\xbf[1, {"a":2}]']
)
def test_json_rows_are_the_items_of_instances_or_of_a_bare_list(body):
    assert decode_rows(body, "application/json; charset=utf-8") == [1, {"a": 2}]


def test_json_rows_stay_lists_if_ragged():
    assert decode_rows(b"[[1, 2], [3]]", JSON) == [[1, 2], [3]]
    assert isinstance(decode_rows(b"[[1, 2], [3, 4]]", JSON), list)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"inputs": [1]}', "an object with the keys ['inputs']"),
        (b'{"instances": 3}', "an object with the keys ['instances']"),
        (b"3", "3"),
        (b'"text"', '"text"'),
        (b"null", "null"),
    ],
)
def test_other_json_is_rejected_with_the_expected_form(body, found):
    message = refusal(body, JSON)
    assert f"the JSON body is {found}; " in message
    assert 'expected {"instances": [...]} or a bare list' in message


@pytest.mark.parametrize("body", [b"{", b"[1,]", b"[1] x", b"[" + b"9" * 5000 + b"]"])
def test_invalid_json_is_rejected(body):
    assert "is not JSON" in refusal(body, JSON)


@pytest.mark.parametrize("content_type", [JSON, JSON_LINES])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deeply_nested_json_is_rejected(content_type, opening):
    assert "nested too deeply" in refusal(opening * 200_000, content_type)


def test_json_lines_has_one_row_per_line_and_ignores_blank_lines():
    body = '{"a": "x\u2028y"}\r\n\n[1, 2]\n  \n"t"'.encode()
    for name in (JSON_LINES, "application/x-ndjson", "application/jsons; charset=utf-8"):
        assert decode_rows(body, name) == [{"a": "x\u2028y"}, [1, 2], "t"]


def test_the_error_names_the_line_that_is_not_json():
    assert "line 3 of the body is not JSON" in refusal(b'{"a": 1}\n\n{"a"}\n', JSON_LINES)


@pytest.mark.parametrize(
    "body",
    [b"1,2.5\n-3,1e-5\n", b"1,2.5\r\n-3,1e-5", b'\n"1", 2.5\n\n-3,1e-5\n\n', b"\xef\xbb\xbf1,2.5\n-3,1e-5"],
)
def test_csv_of_numbers_is_an_array(body):
    rows = decode_rows(body, "text/csv; charset=utf-8")
    assert rows.dtype == np.float64
    assert rows.tolist() == [[1, 2.5], [-3, 1e-5]]


def test_one_column_and_one_row_of_csv_stay_two_dimensional():
    assert decode_rows(b"1\n2\n", CSV).shape == (2, 1)
    assert decode_rows(b"1,2,3", CSV).shape == (1, 3)


def test_csv_with_a_text_cell_becomes_lists_of_texts():
    assert decode_rows(b'name,"x, y"\n1,\n', CSV) == [["name", "x, y"], ["1", ""]]


def test_csv_skips_the_header_that_the_media_type_declares():
    assert decode_rows(b"a,b\n1,2\n", "text/csv; header=present").tolist() == [[1, 2]]


def test_the_error_names_the_csv_line_of_another_length():
    message = refusal(b"1,2\n\n3,4\n5\n", CSV)
    assert message == "line 4 of the CSV has 1 columns; expected 2, as in the first row."


def test_csv_with_a_broken_quote_is_rejected():
    assert "line 2 of the body is not CSV" in refusal(b'1,2\n"a"b,2', CSV)


@pytest.mark.parametrize("charset", ["ISO-8859-1", "windows-1252", "utf-16", "UTF8"])
def test_text_is_read_in_its_charset(charset):
    assert decode_rows("Käse,x".encode(charset), f"text/csv; charset={charset}") == [["Käse", "x"]]


@pytest.mark.parametrize("charset", ["ebcdic-cp-us", "hex", "idna", "../x", "\0"])
def test_an_unknown_charset_is_an_unsupported_media_type(charset):
    with pytest.raises(UnsupportedMediaType, match="charset"):
        decode_rows(b"1", f'text/csv; charset="{charset}"')


def test_the_error_names_the_byte_that_is_not_in_the_charset():
    assert "not text in utf-8: invalid start byte at byte 2" in refusal(b'["\xff"]', JSON)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "|u1", "<i8", "?", "<f2", ">c8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_becomes_a_writable_array_in_native_byte_order(dtype, order):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype, order=order)
    rows = decode_rows(npy(array), NPY)
    assert rows.dtype == array.dtype.newbyteorder("=")
    assert rows.flags.writeable
    np.testing.assert_array_equal(rows, array)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.float32(3), "has the shape ()"),
        (np.zeros((0, 3)), "has the shape (0, 3)"),
        (np.zeros((3, 0)), "has the shape (3, 0)"),
        (np.array([{"a": 1}], dtype=object), "values of type object"),
        (np.array(["a"]), "values of type <U1"),
        (np.zeros(2, dtype=[("a", "f4")]), "values of type [('a', '<f4')]"),
        (np.zeros(2, dtype="M8[s]"), "values of type datetime64[s]"),
    ],
)
def test_npy_that_is_not_rows_of_numbers_is_rejected(array, reason):
    assert reason in refusal(npy(array), NPY)


def test_truncated_npy_and_trailing_bytes_are_rejected():
    body = npy(np.ones((2, 3), np.float32))
    assert "23 bytes after the header" in refusal(body[:-1], NPY)
    assert "25 bytes after the header" in refusal(body + b"x", NPY)


@pytest.mark.parametrize(
    "body",
    [
        b"PK\x03\x04",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x09\x00\x04\x00{}  ",
        npy_header("{'descr': '<f4', 'fortran_order': False}\n"),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': 3}\n"),
        npy_header("{'descr': 'nonsense', 'fortran_order': False, 'shape': (3,)}\n"),
        npy_header("__import__('os').abort()\n"),
        npy_header("(" * 9000 + "\n"),
        npy_header("-" * 9000 + "1\n"),
        npy_header(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 20_000 + ")}\n", b"\x02\x00"
        ),
    ],
)
def test_invalid_npy_is_rejected(body):
    assert "is not an NPY file" in refusal(body, NPY)


@pytest.mark.parametrize(
    "shape", ["(10**12,)", "(1000000000000, 4)", "(-1, 4)", f"({'9' * 4000}, {'9' * 4000})"]
)
def test_a_shape_larger_than_the_body_allocates_no_memory(shape):
    body = npy_header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n") + bytes(64)
    tracemalloc.start()
    try:
        assert len(refusal(body, NPY)) < 400
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@settings(deadline=None, max_examples=300)
@pytest.mark.filterwarnings("ignore")  # NumPy warns of headers written by Python 2
@given(st.data())
def test_an_npy_body_with_changed_bytes_is_read_or_rejected(data):
    body = bytearray(npy(np.arange(6, dtype=np.float32).reshape(2, 3)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert len(decode_rows(bytes(body), NPY)) > 0
    except UserError:
        pass


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"", name) for name in OFFERED] + [(b"[]", JSON), (b" \n\n", JSON_LINES), (b"\n\n", CSV)],
)
def test_a_body_without_rows_is_rejected(body, content_type):
    assert "holds no rows" in refusal(body, content_type)


@pytest.mark.parametrize("content_type", ["", "image/png", "application/x-www-form-urlencoded", "json"])
def test_an_unknown_media_type_is_rejected_with_those_that_can_be_read(content_type):
    with pytest.raises(UnsupportedMediaType) as caught:
        decode_rows(b"x", content_type)
    assert ", ".join(OFFERED) in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.sampled_from([JSON, JSON_LINES, CSV]))
def test_any_bytes_are_read_or_rejected(body, content_type):
    try:
        assert len(decode_rows(body, content_type)) > 0
    except UserError:
        pass


ARRAY = np.array([[0.1, 2], [np.nan, -np.inf]], dtype=np.float64)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TABLE = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(FLOATS, min_size=n, max_size=n), min_size=1, max_size=5)
)


def test_json_holds_the_rows_as_predictions_with_null_for_nan_and_infinity():
    assert encode_rows(ARRAY, JSON) == b'{"predictions": [[0.1, 2.0], [null, null]]}'
    assert encode_rows([float("inf"), 1], JSON) == b'{"predictions": [null, 1]}'


def test_json_takes_numpy_scalars_and_arrays_anywhere():
    row = {
        "label": np.str_("Käse"),
        "p": np.float32(0.5),
        np.int64(3): (np.True_, np.float64("nan"), None),
        "x": np.arange(2),
        "deep": [{"a": np.array([1.5, np.inf])}],
    }
    expected = {"label": "Käse", "p": 0.5, "3": [True, None, None], "x": [0, 1], "deep": [{"a": [1.5, None]}]}
    assert json.loads(encode_rows([row], JSON)) == {"predictions": [expected]}
    assert "Käse".encode() in encode_rows([row], JSON)


def test_a_lone_surrogate_becomes_valid_json():
    assert json.loads(encode_rows(["\ud800"], JSON)) == {"predictions": ["\ud800"]}


def test_a_tensor_of_a_framework_counts_as_an_array():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return np.array([[1, 2]])

    assert encode_rows(Tensor(), CSV) == b"1,2"
    assert encode_rows([Tensor()], JSON) == b'{"predictions": [[[1, 2]]]}'


def test_text_answers_end_without_a_newline_because_line_assembly_adds_it():
    answers = [encode_rows(rows, kind) + b"\n" for rows in ([[1]], [[2], [3]]) for kind in (CSV, JSON_LINES)]
    assert answers == [b"1\n", b"[1]\n", b"2\n3\n", b"[2]\n[3]\n"]
    assert not encode_rows([[1]], JSON).endswith(b"\n")


def test_csv_has_one_line_per_row_with_full_numbers_and_quoted_text():
    rows = [["a,b", 'say "x"', "two\nlines", "c\rd", 0.1, np.float32(0.5), 3, None, True], "Käse", ""]
    body = encode_rows(rows, CSV)
    assert body.startswith(b'"a,b","say ""x""","two\nlines","c\rd",0.1,0.5,3,,True\n')
    assert list(csv.reader(io.StringIO(body.decode(), newline="")))[1:] == [["Käse"], [""]]
    assert encode_rows(ARRAY, CSV) == b"0.1,2.0\nnan,-inf"
    assert encode_rows(np.array([1, 2]), CSV) == b"1\n2"


@pytest.mark.parametrize("rows", [[{"a": 1}], [[[1]]], np.zeros((1, 2, 2)), [[1, {}]], [b"x"]])
def test_csv_rejects_rows_that_are_not_flat(rows):
    with pytest.raises(NotAcceptable, match="ask for application/json"):
        encode_rows(rows, CSV)


@pytest.mark.parametrize("rows", [[{"a": 1}], [[1], [1, 2]], ["a"], np.array(["a"]), [None]])
def test_npy_rejects_rows_that_are_not_all_numbers(rows):
    with pytest.raises(NotAcceptable, match="ask for application/json"):
        encode_rows(rows, NPY)


@pytest.mark.parametrize("prediction", [3, {"a": 1}, "text", None, np.float32(3), np.array(3), iter([1])])
def test_a_prediction_that_is_not_rows_is_a_model_error(prediction):
    with pytest.raises(ModelError, match="expected an array or list of rows"):
        encode_rows(prediction, JSON)


@pytest.mark.parametrize("row", [object(), b"x", {(1, 2): 3}, {1, 2}, 1j, np.array([1j])])
def test_a_row_that_json_cannot_hold_is_a_model_error(row):
    for kind in (JSON, JSON_LINES):
        with pytest.raises(ModelError, match="JSON cannot hold"):
            encode_rows([row], kind)


def test_a_row_that_contains_itself_is_a_model_error():
    row: list = []
    row.append(row)
    with pytest.raises(ModelError):
        encode_rows([row], JSON)


def test_a_type_without_an_encoder_is_rejected():
    with pytest.raises(NotAcceptable, match="application/json, application/jsonlines, text/csv"):
        encode_rows([1], "image/png")
    assert encode_rows([1], "application/x-ndjson") == b"1"


@settings(deadline=None, max_examples=100)
@given(TABLE, st.sampled_from([CSV, NPY, JSON_LINES]))
def test_every_format_round_trips_numbers_exactly(rows, kind):
    for prediction in (rows, np.array(rows)):
        assert np.array_equal(np.asarray(decode_rows(encode_rows(prediction, kind), kind)), np.array(rows))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_round_trips(texts):
    assert json.loads(encode_rows(texts, JSON))["predictions"] == texts
    lines = encode_rows(texts, JSON_LINES).split(b"\n")
    assert [json.loads(line) for line in lines] == texts


@settings(deadline=None, max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_every_answer_in_json_is_strictly_valid(row):
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    json.loads(encode_rows([row], JSON), parse_constant=refuse)
