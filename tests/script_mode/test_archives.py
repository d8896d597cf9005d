import errno
import gzip
import json
import shutil
import tarfile

import pytest

from tandem.errors import UserError
from tandem.script_mode.archives import unpack
from tars import pack


def list_files(folder):
    """Return the content of every file below a folder, except the record of the archive."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".unpacked.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def link(name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        ("../outside.py", b"x"),
        ("a/../../outside.py", b"x"),
        ("/etc/outside.py", b"x"),
        link("train.py", tarfile.SYMTYPE, "/etc/passwd"),
        link("train.py", tarfile.LNKTYPE, "../x"),
        link("pipe", tarfile.FIFOTYPE, ""),
        link("device", tarfile.CHRTYPE, ""),
    ],
    ids=["parent", "parent inside", "absolute", "symbolic link", "hard link", "pipe", "device"],
)
def test_an_archive_with_paths_outside_is_rejected_and_nothing_is_written(tmp_path, member):
    archive = pack(tmp_path / "a.tar.gz", ("harmless.py", b"x"), member)
    with pytest.raises(UserError, match="is not a plain file below its top"):
        unpack(archive, tmp_path / "code")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_an_invalid_or_truncated_archive_is_rejected(tmp_path, cut):
    archive = pack(tmp_path / "a.tar.gz", ("train.py", bytes(range(256)) * 8))
    archive.write_bytes(archive.read_bytes()[:cut])
    with pytest.raises(UserError, match="is not a complete tar archive"):
        unpack(archive, tmp_path / "code")


@pytest.mark.parametrize("kind", ["checksum", "data"])
def test_an_archive_with_a_wrong_bit_is_rejected(tmp_path, kind):
    """The checksum is at the end, behind the data of tar."""
    archive = pack(tmp_path / "a.tar.gz", ("train.py", bytes(range(256)) * 800))
    content = bytearray(archive.read_bytes())
    content[-5 if kind == "checksum" else 60] ^= 0x40
    archive.write_bytes(content)
    with pytest.raises(UserError, match="is not a complete tar archive"):
        unpack(archive, tmp_path / "code")
    assert not (tmp_path / "code").exists()


def test_a_checksum_behind_the_end_of_the_tar_is_checked(tmp_path):
    archive = pack(tmp_path / "a.tar.gz", ("train.py", b"x"))
    content = bytearray(gzip.compress(gzip.decompress(archive.read_bytes()) + bytes(1 << 20)))
    content[-5] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match="is not a complete tar archive"):
        unpack(archive, tmp_path / "code")


@pytest.mark.parametrize("members", [["a", "a/b"], ["a/b", "a"], ["./a", "a/b/c"]])
def test_a_name_that_is_a_file_and_a_folder_is_rejected(tmp_path, members):
    archive = pack(tmp_path / "a.tar.gz", *[(name, b"x") for name in members])
    with pytest.raises(UserError, match="has 'a' both as a file and as a folder"):
        unpack(archive, tmp_path / "code")


def test_a_failed_unpacking_leaves_nothing_that_could_run(tmp_path, monkeypatch):
    """The next start unpacks it again."""
    archive = pack(tmp_path / "a.tar.gz", ("a.py", b"a"), ("train.py", b"b"))

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", fail)
        with pytest.raises(OSError, match="No space"):
            unpack(archive, tmp_path / "code")
    assert not (tmp_path / "code").exists()
    unpack(archive, tmp_path / "code")
    assert list_files(tmp_path / "code") == {"a.py": b"a", "train.py": b"b"}


def test_unpacking_after_a_kill_is_done_again(tmp_path):
    """Killed while unpacking or while moving files."""
    code = tmp_path / "code"
    archive = pack(tmp_path / "a.tar.gz", ("lib/a.py", b"a"), ("train.py", b"b"))
    (code / ".unpacking").mkdir(parents=True)
    (code / ".unpacking/train.py").write_bytes(b"half")
    (code / ".unpacked.json.new").write_text('{"sha')
    unpack(archive, code)
    (code / "lib/a.py").unlink()
    record = json.loads((code / ".unpacked.json").read_text())
    (code / ".unpacked.json").write_text(json.dumps({**record, "sha256": ""}))
    unpack(archive, code)
    assert list_files(code) == {"lib/a.py": b"a", "train.py": b"b"}


def test_another_archive_replaces_only_the_files_of_the_earlier_one(tmp_path, caplog):
    """A user's file stays, even if the archive has one with its name."""
    code, archive = tmp_path / "code", tmp_path / "a.tar.gz"
    unpack(pack(archive, ("train.py", b"1"), ("old/a.py", b"1"), ("b", b"1")), code)
    (code / "mine.py").write_bytes(b"mine")
    (code / "train.py").write_bytes(b"changed here")
    unpack(archive, code)
    assert list_files(code)["train.py"] == b"changed here"
    unpack(pack(archive, ("train.py", b"2"), ("mine.py", b"2"), ("b/c", b"2")), code)
    assert list_files(code) == {"train.py": b"2", "mine.py": b"mine", "b/c": b"2"}
    assert "mine.py is not from an archive" in caplog.text
    unpack(pack(archive, ("train.py", b"3")), code)
    assert list_files(code) == {"train.py": b"3", "mine.py": b"mine"}
    assert not (code / "old").exists()


def test_a_users_file_in_the_way_of_an_archive_is_named(tmp_path):
    code, archive = tmp_path / "code", tmp_path / "a.tar.gz"
    unpack(pack(archive, ("train.py", b"1")), code)
    (code / "lib").write_bytes(b"mine")
    pack(archive, ("lib/a.py", b"2"))
    for _ in range(2):
        with pytest.raises(UserError, match="lib is in the way"):
            unpack(archive, code)
    assert list_files(code)["lib"] == b"mine"


def test_empty_folders_of_an_archive_are_created(tmp_path):
    info = tarfile.TarInfo("results/new")
    info.type = tarfile.DIRTYPE
    unpack(pack(tmp_path / "a.tar.gz", info), tmp_path / "code")
    assert (tmp_path / "code/results/new").is_dir()
