"""Index files: which files count as one, what they list, and their errors."""

import json

import pytest

from algorithms.image_classifier.files import listing
from algorithms.image_classifier.files.index import find_index, read_index
from sample_images import make_channels, write_images
from tandem.errors import UserError


@pytest.fixture
def channel(tmp_path):
    """Return a channel with two blue and two red images."""
    return write_images(tmp_path / "in", labels=["blue", "red"], count=2)


def write(channel, name, *lines):
    path = channel / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def listed(path):
    return [(found.relative_to(path.parent).as_posix(), label) for found, label in read_index(path)]


FORMATS = {
    "train.lst": ["5\t1.000000\tred/000.png", "7\t0\tblue/001.png"],
    "output.manifest": [
        '{"source-ref": "red/000.png", "class": 1}',
        "",
        '{"class": "0", "source-ref": "./blue/001.png"}',
    ],
    "TRAIN.JSONL": ['{"source-ref": "red/000.png", "x": 1.0}', '{"source-ref": "blue/001.png", "y": 0}'],
    "labels.csv": ["label,who,path", "1,me,red/000.png", '0,you,"blue/001.png"'],
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_lists_sorted_images_and_labels(channel, name):
    """Integer labels have no decimal point, however they are written."""
    path = write(channel, name, *FORMATS[name])
    assert find_index(channel) == path
    assert listed(path) == [("blue/001.png", "0"), ("red/000.png", "1")]


def test_labels_may_be_words(channel):
    """Ground Truth's metadata have names for its numbers."""
    path = write(channel, "a.csv", "path,label", "red/000.png,deep red", "blue/000.png,Bläulich")
    assert [label for _, label in listed(path)] == ["Bläulich", "deep red"]
    metadata = {"class-name": "rosso", "confidence": 0.9, "type": "groundtruth/image-classification"}
    line = {"source-ref": "red/000.png", "my-job": 3, "my-job-metadata": metadata}
    assert listed(write(channel, "a.manifest", json.dumps(line))) == [("red/000.png", "rosso")]


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(channel):
    """As Excel writes a CSV."""
    path = channel / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfpath,label\r\nred/000.png,1\r\n")
    assert find_index(channel) == path
    assert listed(path) == [("red/000.png", "1")]


WRONG = {
    "a path outside": ("a.lst", ["0\t1\tred/000.png", "1\t1\t../in/red/001.png"], "line 2: the path is"),
    "an absolute path": ("a.csv", ["path,label", "/etc/passwd,1"], "line 2: the path is '/etc/passwd'"),
    "an address": (
        "a.jsonl",
        ['{"source-ref": "s3://b/red/000.png", "class": 1}'],
        "line 1: the path is 's3:",
    ),
    "the channel itself": ("a.csv", ["path,label", ".,1"], "line 2: the path is"),
    "a missing file": ("a.csv", ["path,label", "red/009.png,1"], "line 2: there is no file 'red/009.png'"),
    "a missing folder": ("a.csv", ["path,label", "rot/000.png,1"], "line 2: there is no file"),
    "a folder": ("a.csv", ["path,label", "red,1"], "line 2: there is no file 'red'"),
    "no label": ("a.csv", ["path,label", "red/000.png,"], "line 2: there is no label"),
    "a short row": ("a.csv", ["path,label", "red/000.png"], "line 2: there is no label"),
    "no path": ("a.jsonl", ['{"class": 1}'], "line 1: there is no path"),
    "an image twice": (
        "a.csv",
        ["path,label", "red/000.png,1", "red/001.png,1", "red/./000.png,0"],
        "line 4: .* in line 2 already",
    ),
    "two cells": ("a.lst", ["0\tred/000.png"], "line 1: 2 cells"),
    "spaces instead of tabs": ("a.lst", ["0 1 red/000.png"], "line 1: 1 cells"),
    "no JSON": ("a.manifest", ["red/000.png 1"], "line 1 is not JSON"),
    "another JSON": ("a.manifest", ["[1]"], "line 1 is a JSON list"),
    "no attribute": ("a.jsonl", ['{"source-ref": "red/000.png"}'], "line 1 has 0 attributes"),
    "two attributes": (
        "a.jsonl",
        ['{"source-ref": "red/000.png", "a": 1, "b": 2}'],
        "line 1 has 2 attributes",
    ),
    "a list of labels": ("a.jsonl", ['{"source-ref": "red/000.png", "a": [1]}'], "line 1: the label 'a'"),
    "nothing": ("a.lst", [], "lists no images"),
    "an open quote": (
        "a.csv",
        ["path,label", 'red/000.png,"1', "x" * 200_000],
        "line 2 is not CSV: .* quotes",
    ),
    "an open quote to the end": (
        "a.csv",
        ["path,label", 'red/000.png,"1', "x"],
        "line 2 is not CSV: .* quotes",
    ),
    "half a pair in a label": (
        "a.jsonl",
        [r'{"source-ref": "red/000.png", "x": "x\ud83d"}'],
        "line 1: the label",
    ),
    "half a pair in a path": ("a.jsonl", [r'{"source-ref": "red\ud800/0.png", "x": 1}'], "line 1: the path"),
    "a NUL in a path": ("a.jsonl", [r'{"source-ref": "red\u0000/0.png", "x": 1}'], "line 1: the path"),
    "no number": ("a.lst", ["0\tnan\tred/000.png"], "line 1: the label is 'nan'"),
    "an infinite number": ("a.lst", ["0\t-inf\tred/000.png"], "line 1: the label is '-inf'"),
    "an infinite number of JSON": (
        "a.jsonl",
        ['{"source-ref": "red/000.png", "x": 1e999}'],
        "the label is 'inf'",
    ),
    "a number of Python": ("a.lst", ["0\t1_0\tred/000.png"], "line 1: the label is '1_0'"),
    "a column twice": ("a.csv", ["path,label,Label", "red/000.png,1,2"], "line 1: 2 columns label"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_the_file_and_the_line(channel, case):
    name, lines, message = WRONG[case]
    path = write(channel, name, *lines)
    with pytest.raises(UserError, match=message) as caught:
        read_index(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_text_is_rejected(channel):
    (channel / "a.lst").write_bytes(b"0\t1\tred/000.png\n\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_index(channel / "a.lst")


def test_files_that_are_not_an_index_are_ignored(channel, caplog):
    """Other files, hidden ones, those in folders, and a table without the two columns."""
    write(channel, "notes.csv", "who,when", "me,now")
    write(channel, "readme.txt", "path,label")
    write(channel, ".hidden.lst", "0\t1\tred/000.png")
    write(channel / "red", "a.lst", "0\t1\t000.png")
    (channel / "folder.lst").mkdir()
    assert find_index(channel) is None
    assert "notes.csv is not an index" in caplog.text
    assert find_index(channel / "nowhere") is None


@pytest.mark.parametrize("header", ["path, label", "Path,Label", "PATH ,LABEL"])
def test_case_and_spaces_of_a_header_do_not_matter(channel, header):
    path = write(channel, "a.csv", header, "red/000.png, 1")
    assert find_index(channel) == path
    assert listed(path) == [("red/000.png", "1")]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_rejected_instead_of_ignored(channel, separator):
    write(channel, "a.csv", f"path{separator}Label", f"red/000.png{separator}1")
    with pytest.raises(UserError, match=r"a\.csv line 1: .* expected commas: path,label"):
        find_index(channel)


def test_a_header_with_an_open_quote_does_not_crash(channel):
    """Whatever the length of the rest."""
    write(channel, "notes.csv", '"who,when', "x" * 200_000)
    assert find_index(channel) is None
    path = write(channel, "a.csv", 'path,"label', "x" * 200_000)
    with pytest.raises(UserError, match="line 1 is not CSV"):
        read_index(path)


def test_large_numbers_stay_different(channel):
    """As floats they would be equal."""
    numbers = ["12345678901234567890", "12345678901234567891"]
    lines = [f"{n}\t{number}\tred/00{n}.png" for n, number in enumerate(numbers)]
    assert [label for _, label in listed(write(channel, "a.lst", *lines))] == numbers


def test_two_indexes_are_rejected(channel):
    write(channel, "a.lst", "0\t1\tred/000.png")
    write(channel, "b.csv", "path,label")
    with pytest.raises(UserError, match=r"a\.lst, b\.csv; expected one"):
        find_index(channel)


def test_an_index_takes_precedence_over_folders(channel):
    """It determines images and labels; numeric labels are sorted by value."""
    rows = ["blue/000.png,10", "blue/001.png,10", "red/000.png,9"]
    write(channel, "a.csv", "path,label", *rows)
    validation = write_images(channel.parent / "validation", labels=["9"], count=0)
    write(write_images(validation, labels=["blue"], count=1), "b.lst", "0\t9\tblue/000.png")
    images = listing.list_images(make_channels({"training": channel, "validation": validation}), 0.2, 0)
    assert images.labels == ("9", "10")
    found = [(path.relative_to(channel).as_posix(), label) for path, label in images.training]
    assert found == [("blue/000.png", 1), ("blue/001.png", 1), ("red/000.png", 0)]
    assert [label for _, label in images.validation] == [0]
