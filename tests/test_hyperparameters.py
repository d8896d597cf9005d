"""Hyperparameters in every form in which a job may send them, and the errors for wrong ones."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import UserError
from tandem.hyperparameters import convert, decode, describe, hyperparameter, render_help


@dataclass(frozen=True)
class Declared:
    epochs: int = hyperparameter(10, help="How often the data is seen.", minimum=1, maximum=1000)
    learning_rate: float = hyperparameter(
        0.001,
        help="Step size of the optimizer.",
        exclusive_minimum=0,
        maximum=1,
        tunable=True,
        scale="Logarithmic",
    )
    dropout: float = hyperparameter(0.0, help="Share dropped.", minimum=0, exclusive_maximum=1)
    optimizer: str = hyperparameter("adam", help="Which one.", choices=["adam", "sgd"])
    architecture: str = hyperparameter("small", help="Name of the network.")
    augment: bool = hyperparameter(default=True, help="Whether images are varied.")
    batch_size: int | None = hyperparameter(None, help="Images per step.", minimum=1)
    labels: Optional[str] = hyperparameter(None, help="Text or none.")  # noqa: UP045 - both spellings work
    layers: list[int] = hyperparameter([64, 32], help="Units a layer.", minimum=1)
    rates: list[float] = hyperparameter([0.5], help="Numbers.")
    tags: list[str] = hyperparameter([], help="Texts.")


def read(**raw: Any) -> Declared:
    return convert(raw, Declared)


def refusal(raw: dict[str, Any], declaration: type = Declared) -> str:
    with pytest.raises(UserError) as caught:
        convert(raw, declaration)
    return str(caught.value)


def dialects(value: Any) -> list[Any]:
    """Return a value as the console, SDK 2, SDK 3, a tuning job and a hand-written file send it."""
    plain = value if isinstance(value, str) else json.dumps(value)
    return [value, str(value), plain, json.dumps(plain), json.dumps(json.dumps(plain))]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("adam", "adam"),
        ('"adam"', "adam"),
        ('"\\"adam\\""', "adam"),
        ('"0.1"', 0.1),
        ("true", True),
        ("True", True),
        ("None", None),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("['a', 'b']", ["a", "b"]),
        ("('a',)", ("a",)),
        ('{"a": 1}', {"a": 1}),
        ("'quoted'", "quoted"),
        ("", ""),
        ('"', '"'),
        ("[1, 2", "[1, 2"),
        ("[" * 3000, "[" * 3000),
        ("9" * 5000, "9" * 5000),
        ("__import__('os')", "__import__('os')"),
        (3, 3),
    ],
)
def test_a_value_is_decoded_from_any_dialect(text, value):
    decoded = decode(text)
    assert decoded == value
    assert type(decoded) is type(value)


SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False)


@settings(deadline=None, max_examples=150)
@given(SCALARS | st.lists(SCALARS.filter(lambda x: x is not None and abs(x) != float("inf")), max_size=4))
def test_every_encoding_is_decoded(value):
    assert decode(json.dumps(value)) == value
    assert decode(json.dumps(json.dumps(value))) == value
    if not isinstance(value, float):
        assert decode(str(value)) == value


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=80))
def test_any_text_can_be_decoded(text):
    decode(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 3),
        ("learning_rate", 1e-05),
        ("dropout", 0.5),
        ("optimizer", "sgd"),
        ("architecture", "1"),
        ("architecture", "true"),
        ("augment", True),
        ("augment", False),
        ("batch_size", None),
        ("batch_size", 8),
        ("labels", "x"),
        ("layers", [1, 2]),
        ("layers", []),
        ("rates", [0.5, 2]),
        ("tags", ["a", "b c"]),
    ],
)
def test_a_typed_value_is_the_same_in_every_dialect(name, value):
    for raw in dialects(value):
        got = getattr(convert({name: raw}, Declared), name)
        assert got == value, raw
        assert type(got) is type(value), raw


def test_missing_parameters_have_their_defaults():
    assert read() == Declared()
    assert read().layers is not Declared().layers


@pytest.mark.parametrize("text", ["3.0", "1e2", " 3 ", '"3.0"'])
def test_a_whole_number_may_be_written_as_any_number(text):
    epochs = read(epochs=text).epochs
    assert type(epochs) is int
    assert epochs == float(text.strip('"'))


def test_a_large_whole_number_stays_exact():
    @dataclass
    class Seeded:
        seed: int = hyperparameter(0, help="")

    assert convert({"seed": "9007199254740993"}, Seeded).seed == 9007199254740993


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "1", "yes", "on", 1, True])
def test_these_mean_true(text):
    assert read(augment=text).augment is True


@pytest.mark.parametrize("text", ["false", "False", '"false"', "0", "no", "off", 0, False])
def test_these_mean_false(text):
    assert read(augment=text).augment is False


@pytest.mark.parametrize("text", ["", "None", "null", "none", '""', '"None"', None])
def test_an_empty_value_means_none_if_none_is_allowed(text):
    assert read(batch_size=text).batch_size is None
    assert read(labels=text).labels is None


def test_a_choice_called_none_is_that_choice():
    @dataclass
    class Augmented:
        augmentation: str | None = hyperparameter(None, help="", choices=["none", "flip"])

    assert convert({"augmentation": "none"}, Augmented).augmentation == "none"
    assert convert({"augmentation": "None"}, Augmented).augmentation is None


def test_text_that_looks_like_something_else_stays_text():
    for text in ["1", "1.50", "None", "[1]", "nan", " x "]:
        assert read(architecture=text).architecture == text
    assert read(architecture=1).architecture == "1"
    assert read(tags="1.50,2").tags == ["1.50", "2"]


def test_white_space_in_quotes_is_kept():
    assert read(architecture='"\\t"').architecture == "\t"


def test_a_list_may_be_written_with_commas_or_as_one_value():
    assert read(layers="64, 32").layers == [64, 32]
    assert read(layers="64").layers == [64]
    assert read(layers=64).layers == [64]
    assert read(layers="").layers == []


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("epochs", "3.5", "a whole number, at least 1 and at most 1000"),
        ("epochs", "0", "a whole number, at least 1 and at most 1000"),
        ("epochs", "1001", "at most 1000"),
        ("epochs", "inf", "a whole number"),
        ("epochs", "nan", "a whole number"),
        ("epochs", "true", "a whole number"),
        ("epochs", True, "a whole number"),
        ("epochs", "", "a whole number"),
        ("epochs", None, "a whole number"),
        ("epochs", [1], "a whole number"),
        ("epochs", "9" * 5000, "a whole number"),
        ("learning_rate", "nan", "a number, above 0 and at most 1"),
        ("learning_rate", "inf", "a number, above 0 and at most 1"),
        ("learning_rate", "1e400", "a number, above 0 and at most 1"),
        ("learning_rate", float("nan"), "a number, above 0 and at most 1"),
        ("learning_rate", 10**400, "a number, above 0 and at most 1"),
        ("learning_rate", "0", "above 0"),
        ("learning_rate", True, "a number"),
        ("dropout", "1", "a number, at least 0 and below 1"),
        ("optimizer", "Adam", "one of adam, sgd"),
        ("architecture", {"a": 1}, "text"),
        ("architecture", None, "text"),
        ("augment", "maybe", "true or false"),
        ("augment", "2", "true or false"),
        ("batch_size", "0", "a whole number, at least 1; or None"),
        ("layers", "[64, 0]", "a list, each item a whole number, at least 1"),
        ("layers", "[64, 32", "a list, each item a whole number"),
        ("layers", "[true]", "a list, each item a whole number"),
        ("layers", {"a": 1}, "a list"),
        ("rates", "[NaN]", "a list, each item a number"),
        ("tags", "[null]", "a list, each item text"),
        ("tags", "['a', 'b'", "a list, each item text"),
    ],
)
def test_a_wrong_value_is_rejected_with_the_allowed_ones(name, text, allowed):
    message = refusal({name: text})
    assert message.startswith(f"hyperparameter '{name}' is {text!r:.60}; it must be ")
    assert allowed in message
    assert len(message) < 250


def test_every_fault_is_reported_at_once():
    message = refusal({"epochs": "x", "dropout": "2", "momentun": "1", "optimizer": "sgd"})
    for part in ("'epochs' is 'x'", "'dropout' is '2'", "'momentun' is unknown"):
        assert part in message
    assert "'optimizer'" not in message


def test_an_unknown_name_gets_a_suggestion_and_the_known_ones():
    message = refusal({"learningrate": "1", "zzz": "1"})
    assert "hyperparameter 'learningrate' is unknown; did you mean 'learning_rate'?" in message
    assert "hyperparameter 'zzz' is unknown." in message
    assert message.endswith(f"Known are: {', '.join(sorted(p.name for p in describe(Declared)))}.")


def test_hyphens_may_replace_underscores_but_not_beside_them():
    assert convert({"learning-rate": "0.5"}, Declared).learning_rate == 0.5
    assert "given twice" in refusal({"learning-rate": "0.5", "learning_rate": "0.5"})


def test_reserved_keys_are_dropped():
    added = {
        "sagemaker_program": '"train.py"',
        "sagemaker_mpi_enabled": "false",
        "_tuning_objective_metric": "loss",
        "default_user_module_name": "x",
        "model_dir": "s3://x",
    }
    assert convert(added, Declared) == Declared()


def test_a_reserved_name_that_is_declared_is_not_dropped():
    @dataclass
    class Own:
        model_dir: str = hyperparameter("", help="")

    assert convert({"model_dir": "s3://x"}, Own).model_dir == "s3://x"


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from([p.name for p in describe(Declared)]), st.text(max_size=20)))
def test_any_text_is_converted_within_the_limits_or_rejected(raw):
    try:
        got = convert(raw, Declared)
    except UserError as error:
        assert "it must be" in str(error)  # noqa: PT017 - either outcome is right
        return
    assert type(got.epochs) is int
    assert 1 <= got.epochs <= 1000
    assert 0 < got.learning_rate <= 1
    assert got.optimizer in {"adam", "sgd"}


def test_describe_returns_the_values_for_a_table_and_a_tuning_range():
    parameters = {parameter.name: parameter for parameter in describe(Declared)}
    rate = parameters["learning_rate"]
    assert (rate.type, rate.default, rate.exclusive_minimum, rate.maximum) == ("float", 0.001, 0, 1)
    assert (rate.tunable, rate.scale, rate.help) == (True, "Logarithmic", "Step size of the optimizer.")
    assert (parameters["batch_size"].optional, parameters["batch_size"].type) == (True, "int")
    assert (parameters["layers"].many, parameters["layers"].type) == (True, "int")
    assert [parameters[n].default_text for n in ("augment", "layers", "optimizer", "batch_size")] == [
        "true",
        "[64, 32]",
        "adam",
        "None",
    ]


def test_plain_dataclass_fields_need_no_limits():
    @dataclass
    class Plain:
        depth: int = 3
        names: list[str] = field(default_factory=list)

    assert convert({"depth": "4", "names": "a,b"}, Plain) == Plain(4, ["a", "b"])


@pytest.mark.parametrize("hint", ["dict", "list", "int | str", "Any"])
def test_an_unsupported_type_is_an_error_of_the_declaration(hint):
    wrong = type("Wrong", (), {"__annotations__": {"x": hint}, "x": None, "__module__": __name__})
    with pytest.raises(TypeError, match="the field 'x' is declared as"):
        describe(dataclass(wrong))


def test_a_default_outside_its_range_is_an_error_of_the_declaration():
    @dataclass
    class Wrong:
        x: int = hyperparameter(0, help="", minimum=1)

    with pytest.raises(ValueError, match="default of 'x' is not a whole number, at least 1"):
        describe(Wrong)


@pytest.mark.parametrize("width", [60, 100])
def test_the_help_is_an_aligned_table_of_limited_width(width):
    text = render_help(Declared, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].split() == ["hyperparameter", "default", "allowed", "meaning"]
    column = lines[0].index("default")
    for parameter in describe(Declared):
        (line,) = [line for line in lines if line.startswith(f"{parameter.name} ")]
        assert line[column - 1] == " "
        assert line[column:].startswith(parameter.default_text[:5])
    assert " ".join(text.split()).count("Images") >= 1
