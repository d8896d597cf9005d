"""The README's tables, commands, paths and example are correct."""

import json
import re

import numpy as np
import pytest

from algorithms import image_classifier
from conftest import ROOT
from tandem import hyperparameters, settings

README = (ROOT / "README.md").read_text()


def render_table(head, rows):
    """Return the Markdown table that must be in the README; a failing test prints it, ready to paste."""
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines).replace("| --- |", "|---|").replace("| --- |", "|---|")


def test_the_table_of_settings_matches_settings_py():
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


def test_the_table_of_hyperparameters_matches_the_algorithm():
    rows = [
        [f"`{parameter.name}`", f"`{parameter.default_text}`", parameter.allowed, parameter.help]
        for parameter in hyperparameters.describe(image_classifier.Hyperparameters)
    ]
    table = render_table(["name", "default", "allowed", "meaning"], rows)
    assert table in README, table


def test_the_declared_regexes_match_the_epoch_lines():
    lines = re.findall(r"^epoch=.*$", README, re.MULTILINE)
    assert lines
    for line in lines:
        for name, pattern in image_classifier.METRICS.items():
            assert len(re.findall(pattern, line)) == 1, name


def test_the_tables_list_the_accepted_media_types():
    listed = set(re.findall(r"`((?:image|application|text)/[\w*.+-]+)`", README))
    assert listed == {*image_classifier.CONTENT_TYPES, *image_classifier.ACCEPTS}


def test_every_path_and_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z-]+)(?:$|`)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"`((?:program|docker|local_test|tests|docs|bench)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path


@pytest.fixture
def example(tmp_path):
    """The README's algorithm, as a file."""
    (source,) = re.findall(r"```python\n(# program/algorithms/nearest_mean.py.*?)```", README, re.DOTALL)
    path = tmp_path / "example" / "nearest_mean.py"
    path.parent.mkdir()
    path.write_text(source)
    return path


def test_the_example_trains_and_serves(example, opt_ml, run_train, live_server):
    """The real `train` and `serve` run the example."""
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
