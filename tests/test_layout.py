"""The repository's layout: which names are free, which files are executable, and how sources are stored."""

import subprocess
import sys
import tokenize

import pytest

from conftest import ROOT

PROGRAM = ROOT / "program"


def test_nothing_in_program_hides_a_standard_module():
    """`program/` is the first place Python looks when `train` runs."""
    names = {path.stem for path in PROGRAM.iterdir() if not path.name.startswith("__")}
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", ["train", "serve"])
def test_executables_have_no_suffix_and_may_be_executed(name):
    path = PROGRAM / name
    assert path.stat().st_mode & 0o777 == 0o755
    assert path.read_text().startswith("#!/usr/bin/env python3\n")


def test_sources_are_plain_utf_8_with_unix_line_ends():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".sh", ".md", ".json", ".toml", ".in", ".txt", ".c"} and path.exists():
            assert b"\r" not in path.read_bytes(), name
    for path in PROGRAM.rglob("*.py"):
        with tokenize.open(path) as file:
            assert file.encoding == "utf-8"
