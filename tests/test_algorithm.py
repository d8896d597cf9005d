import sys

import pytest

from conftest import CPU
from tandem.algorithm import Context, find_program, load_algorithm
from tandem.errors import TandemError, UserError


@pytest.fixture
def context(tmp_path):
    return Context(model_dir=tmp_path, decision=CPU, backend="auto", cores=1)


def write_program(folder, text, name="inference.py"):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_functions_that_a_module_lacks_have_defaults(context):
    algorithm = load_algorithm("fixtures.echo")
    assert algorithm.input_fn(b"[1, 2]", "application/json", context) == [1, 2]
    assert algorithm.output_fn([1, 2], "application/json", context) == b'{"predictions": [1, 2]}'
    assert "application/json" in algorithm.content_types
    assert algorithm.max_batch_rows == 64


def test_a_function_gets_the_context_only_if_it_takes_one(tmp_path, context):
    program = write_program(
        tmp_path / "code",
        "def model_fn(model_dir, context): return context.cores\n"
        "def predict_fn(data, model): return [model] * len(data)\n"
        "def output_fn(*arguments): return str(len(arguments))\n",
    )
    algorithm = load_algorithm("", program)
    assert algorithm.model_fn(tmp_path, context) == 1
    assert algorithm.predict_fn([0, 0], 7, context) == [7, 7]
    assert algorithm.output_fn([], "text/csv", context) == "3"


def test_a_program_can_import_its_neighbours_and_hides_no_module(tmp_path):
    write_program(tmp_path / "code", "ANSWER = 42\n", "neighbour_of_json.py")
    program = write_program(
        tmp_path / "code", "from neighbour_of_json import ANSWER\nMAX_BATCH_ROWS = ANSWER\n", "json.py"
    )
    before = sys.modules["json"]
    assert load_algorithm("", program).max_batch_rows == 42
    assert sys.modules["json"] is before
    sys.path.remove(str(tmp_path / "code"))


def test_a_missing_module_is_distinguished_from_a_missing_import():
    with pytest.raises(UserError, match=r"no algorithm 'algorithms.nonsense'"):
        load_algorithm("algorithms.nonsense")
    with pytest.raises(UserError, match="no algorithm 'nowhere.at.all'"):
        load_algorithm("nowhere.at.all")
    with pytest.raises(TandemError, match="imports 'a_module_that_nobody_has'") as caught:
        load_algorithm("fixtures.missing_import")
    assert not isinstance(caught.value, UserError)


def test_the_error_without_a_name_says_what_to_set():
    with pytest.raises(UserError, match="set ALGORITHM"):
        load_algorithm("")


def test_a_missing_function_is_named():
    with pytest.raises(UserError, match=r"no train\(\)"):
        load_algorithm("fixtures.slow_load").require("train")


def test_a_program_is_found_in_the_first_folder_that_has_it(tmp_path):
    program = write_program(tmp_path / "b", "")
    assert find_program("inference.py", [tmp_path / "a", tmp_path / "b"]) == program
    assert find_program("", [tmp_path]) is None
    with pytest.raises(UserError, match="train.py.*not found in .*a"):
        find_program("train.py", [tmp_path / "a"])
