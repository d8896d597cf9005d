"""The README never says what is not true: its tables, its commands and its example are checked here."""

import json
import re

import numpy as np
import pytest

from algorithms import image_classifier
from conftest import ROOT
from tandem import hyperparameters, settings

README = (ROOT / "README.md").read_text()


def render_table(head, rows):
    """The Markdown table that the README must hold; to change it, paste what the failing test prints."""
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines).replace("| --- |", "|---|").replace("| --- |", "|---|")


def test_the_table_of_settings_is_what_settings_py_declares():
    rows = [
        [
            ", ".join(f"`{variable}`" for variable in setting.variables),
            setting.default_text and f"`{setting.default_text}`",
            setting.help,
        ]
        for setting in settings.describe()
    ]
    table = render_table(["variable", "default", "meaning"], rows)
    assert table in README, table


def test_the_table_of_hyperparameters_is_what_the_algorithm_declares():
    rows = [
        [f"`{parameter.name}`", f"`{parameter.default_text}`", parameter.allowed, parameter.help]
        for parameter in hyperparameters.describe(image_classifier.Hyperparameters)
    ]
    table = render_table(["name", "default", "allowed", "meaning"], rows)
    assert table in README, table


def test_the_epoch_line_is_one_that_the_declared_regexes_read():
    lines = re.findall(r"^epoch=.*$", README, re.MULTILINE)
    assert lines
    for line in lines:
        for name, pattern in image_classifier.METRICS.items():
            assert len(re.findall(pattern, line)) == 1, name


def test_every_media_type_of_the_tables_is_accepted():
    listed = set(re.findall(r"`((?:image|application|text)/[\w*.+-]+)`", README))
    assert listed == {*image_classifier.CONTENT_TYPES, *image_classifier.ACCEPTS}


def test_every_place_and_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z-]+)(?:$|`)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for place in re.findall(r"`((?:program|docker|local_test|tests|docs|bench)/[\w./]*)`", README):
        assert (ROOT / place).exists(), place


@pytest.fixture
def example(tmp_path):
    """The algorithm in the README, as a file."""
    (source,) = re.findall(r"```python\n(# program/algorithms/nearest_mean.py.*?)```", README, re.DOTALL)
    path = tmp_path / "example" / "nearest_mean.py"
    path.parent.mkdir()
    path.write_text(source)
    return path


def test_the_example_trains_and_serves(example, opt_ml, run_train, live_server):
    """It is a whole algorithm: the real `train` and `serve` run it."""
    root = opt_ml({"shrink": "0.1"})
    rows = np.array([[0, 1.0, 1.2], [0, 0.8, 1.0], [7, 9.0, 9.5], [7, 9.2, 9.1]])
    np.savetxt(root / "input/data/training/rows.csv", rows, delimiter=",")
    env = {"SAGEMAKER_PROGRAM": example.name, "SAGEMAKER_SUBMIT_DIRECTORY": str(example.parent)}
    done = run_train(root, "echo", **env)
    assert done.returncode == 0, done.stdout
    server = live_server("echo", base_dir=root, **env)
    status, _, body = server.invoke(b"1,1\n9,9\n", "text/csv")
    assert (status, json.loads(body)) == (200, {"predictions": [0.0, 7.0]})


def test_the_example_is_about_twenty_lines(example):
    lines = example.read_text().splitlines()
    assert len([line for line in lines if line and not line.startswith(("#", "from ", "import "))]) <= 20
