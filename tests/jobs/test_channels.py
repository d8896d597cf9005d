"""Which files are labelled data, and the errors if there are none."""

import logging
import os
from pathlib import Path

import pytest

from tandem.errors import UserError
from tandem.jobs.channels import Channel, check_content_type, list_labelled_files

PICTURES = {".jpg", ".png"}


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def listed(root: Path, **options: int) -> list[tuple[str, str]]:
    found = list_labelled_files(root, PICTURES, "training", **options)
    return [(path.relative_to(root).as_posix(), label) for path, label in found]


def refusal(root: Path, **options: int) -> str:
    with pytest.raises(UserError) as caught:
        list_labelled_files(root, PICTURES, "training", **options)
    message = str(caught.value)
    assert "'training'" in message
    assert str(root) in message
    return message


def test_the_label_is_the_first_folder_and_deeper_folders_belong_to_it(tmp_path):
    fill(tmp_path, "dogs/b.jpg", "cats/old/2019/a.png", "cats/z.jpg", "dogs/a.jpg")
    assert listed(tmp_path) == [
        ("cats/old/2019/a.png", "cats"),
        ("cats/z.jpg", "cats"),
        ("dogs/a.jpg", "dogs"),
        ("dogs/b.jpg", "dogs"),
    ]


def test_the_order_is_by_label_then_path(tmp_path):
    names = ["a b/1.jpg", "a-b/1.jpg", "a/1.jpg", "a/10.jpg", "a/2.jpg", "A/1.jpg"]
    forward, backward = fill(tmp_path / "f", *names), fill(tmp_path / "b", *reversed(names))
    assert listed(forward) == listed(backward)
    assert [label for _, label in listed(forward)] == ["A", "a", "a", "a", "a b", "a-b"]


def test_suffixes_match_in_any_case(tmp_path):
    fill(tmp_path, "a/1.JPG", "b/2.Png", "b/3.txt")
    assert list_labelled_files(tmp_path, [".Jpg", ".png"], "training") == [
        (tmp_path / "a/1.JPG", "a"),
        (tmp_path / "b/2.Png", "b"),
    ]


def test_hidden_files_and_those_of_macos_are_ignored(tmp_path):
    fill(tmp_path, "a/1.jpg", "b/2.jpg", "a/._1.jpg", "a/.DS_Store", ".cache/x.jpg", "a/.thumbs/1.jpg")
    fill(tmp_path, "__MACOSX/a/1.jpg", "b/__MACOSX/2.jpg")
    assert listed(tmp_path) == [("a/1.jpg", "a"), ("b/2.jpg", "b")]


def test_links_to_files_and_folders_are_followed(tmp_path):
    store = fill(tmp_path / "store", "one.jpg", "cats/two.jpg")
    root = fill(tmp_path / "root", "dogs/1.jpg")
    (root / "dogs/linked.jpg").symlink_to(store / "one.jpg")
    (root / "cats").symlink_to(store / "cats")
    assert listed(root) == [("cats/two.jpg", "cats"), ("dogs/1.jpg", "dogs"), ("dogs/linked.jpg", "dogs")]


def test_a_link_back_to_a_parent_is_not_followed(tmp_path):
    fill(tmp_path, "cats/in/1.jpg", "dogs/2.jpg")
    (tmp_path / "cats/in/self").symlink_to(tmp_path / "cats")
    (tmp_path / "dogs/root").symlink_to(tmp_path)
    assert listed(tmp_path) == [("cats/in/1.jpg", "cats"), ("dogs/2.jpg", "dogs")]


def test_entries_that_are_not_files_are_left_out_with_a_warning(tmp_path, caplog):
    fill(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "b/pipe.jpg")
    assert len(listed(tmp_path)) == 2
    assert "gone.jpg is neither a file nor a link to one; skipped" in caplog.text
    assert "pipe.jpg is neither a file" in caplog.text


def test_a_missing_channel_is_named_with_its_path(tmp_path):
    assert "is missing: there is no folder" in refusal(tmp_path / "training")


def test_a_channel_that_is_a_file_is_rejected(tmp_path):
    assert "is not a folder" in refusal(fill(tmp_path, "training") / "training")


def test_an_empty_channel_is_rejected(tmp_path):
    message = refusal(fill(tmp_path, ".DS_Store"))
    assert message.endswith("is empty; expected one folder per class with .jpg or .png files")


def test_files_without_folders_are_counted_and_named(tmp_path):
    message = refusal(fill(tmp_path, "c.csv", "a.csv", "b.csv"))
    assert "holds 3 files (a.csv, b.csv, c.csv) and no folders; expected one folder per class" in message


def test_a_message_names_only_some_of_many_files(tmp_path):
    message = refusal(fill(tmp_path, *(f"{i}.csv" for i in range(8))))
    assert "8 files (0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 3 more)" in message


def test_the_error_names_the_kinds_of_other_files(tmp_path):
    message = refusal(fill(tmp_path, "a/1.gif", "b/2.gif", "b/README", "b/x.TXT"))
    assert "holds 2 folders (a, b) with 4 other files (2 .gif, 1 .txt, 1 no suffix) in them" in message
    assert ".jpg or .png" in message


def test_folders_without_files_are_rejected(tmp_path):
    (tmp_path / "a").mkdir()
    assert "holds 1 folder (a) with no files in them" in refusal(tmp_path)


def test_a_single_class_is_rejected_if_two_are_needed(tmp_path):
    fill(tmp_path, "cats/1.jpg", "cats/2.jpg")
    assert "holds 1 class (cats); expected" in refusal(tmp_path)
    assert len(listed(tmp_path, minimum_classes=1)) == 2


def test_classes_one_folder_too_deep_get_a_hint(tmp_path):
    message = refusal(fill(tmp_path, "dataset/cats/1.jpg", "dataset/dogs/2.jpg"))
    assert "the folder dataset holds 2 folders (cats, dogs)" in message
    assert "put them directly into the channel" in message


def test_files_beside_the_classes_are_ignored_with_a_warning(tmp_path, caplog):
    fill(tmp_path, "a/1.jpg", "b/2.jpg", "loose.jpg")
    with caplog.at_level(logging.WARNING):
        assert len(listed(tmp_path)) == 2
    assert "1 file (loose.jpg) beside the folders" in caplog.text


def test_a_class_without_files_is_left_out_with_a_warning(tmp_path, caplog):
    fill(tmp_path, "a/1.jpg", "b/2.jpg", "empty/notes.txt")
    with caplog.at_level(logging.WARNING):
        assert {label for _, label in listed(tmp_path)} == {"a", "b"}
    assert "in its folder empty" in caplog.text


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path):
    name = b"caf\xe9.csv".decode("utf-8", "surrogateescape")
    message = refusal(fill(tmp_path, name))
    assert message.encode()
    assert r"caf\xe9.csv" in message


def test_a_class_whose_name_is_not_utf8_is_rejected(tmp_path):
    """Its label could be neither in the manifest nor in an answer."""
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    fill(tmp_path, f"{name}/1.jpg", "b/2.jpg")
    assert r"names are not UTF-8: caf\xe9; rename them" in refusal(tmp_path)


def test_a_content_type_must_be_one_that_the_algorithm_declares():
    """A missing content type or declaration is allowed."""
    allowed = ["application/x-image", "image/png"]
    for content_type in ("", "image/png"):
        check_content_type(Channel("training", Path(), content_type=content_type), allowed)
    check_content_type(Channel("training", Path(), content_type="text/csv"), [])
    with pytest.raises(UserError, match=r"'training' has ContentType 'text/csv'; expected application/x-im"):
        check_content_type(Channel("training", Path(), content_type="text/csv"), allowed)
