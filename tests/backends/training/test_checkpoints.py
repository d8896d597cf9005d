"""Checkpoints are complete or skipped, pruned, shared between hosts, and bound to one training."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from backends.training import checkpoint_file
from backends.training.checkpoints import INCOMPLETE, Checkpoint, CheckpointStore
from conftest import ROOT
from tandem.errors import UserError

SAME = {"must": {"labels": ["a", "b"], "batch_size": 32}, "should": {"epochs": 5, "keras": "3.15.0"}}


@pytest.fixture
def open_store(tmp_path):
    """`open_store()` returns a store in one folder; each call is a new start of the job, or another host."""

    def make(host="algo-1", keep=2, **changes):
        fingerprint = {group: {**SAME[group], **changes.get(group, {})} for group in SAME}
        return CheckpointStore(tmp_path / "checkpoints", host, fingerprint, keep)

    return make


def make_checkpoint(epoch=1, step=0, number=1.5):
    arrays = {
        "weights": [np.full((3, 4), number, np.float32), np.arange(4, dtype=np.float32)],
        "optimizer": [np.array(step, np.int64), np.full((3, 4), -number, np.float32)],
        "random": [np.array([1, 2], np.uint32)],
        "empty": [],
    }
    return Checkpoint(epoch, step, arrays, {"best": 0.1 + 0.2, "history": [{"loss": number}], "seed": 7})


def assert_same(one, other):
    assert (one.epoch, one.step, one.state) == (other.epoch, other.step, other.state)
    assert one.arrays.keys() == other.arrays.keys()
    for name, arrays in one.arrays.items():
        for expected, array in zip(arrays, other.arrays[name], strict=True):
            assert (expected.dtype, expected.shape) == (array.dtype, array.shape)
            assert expected.tobytes() == array.tobytes()


def list_names(store):
    return sorted(path.name for path in store._directory.iterdir())


def test_a_checkpoint_is_restored_bit_for_bit(open_store):
    """The store creates its folder, and another start of the job reads the checkpoint."""
    saved = make_checkpoint(3, 120)
    path = open_store().save(saved)
    assert path.name == "checkpoint-algo-1-000003-000120.npz"
    store = open_store()
    assert store.steps() == [(3, 120)]
    assert_same(store.load((3, 120)), saved)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        arrays_of.arrays(
            st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint32, np.uint8, np.bool_]),
            arrays_of.array_shapes(min_dims=0, min_side=0, max_side=4),
        ),
        max_size=4,
    ),
    st.dictionaries(st.text(max_size=5), st.floats() | st.integers() | st.text() | st.none(), max_size=3),
    st.booleans(),
)
def test_any_numbers_are_restored_bit_for_bit(tmp_path_factory, arrays, state, transposed):
    """Including scalars, empty arrays, NaN and column-major arrays, with any JSON."""
    store = CheckpointStore(tmp_path_factory.mktemp("any"), "algo-1", SAME)
    arrays = [array.T if transposed else array for array in arrays]
    store.save(Checkpoint(1, 2, {"a/b": arrays}, state))
    loaded = store.load((1, 2))
    assert json.dumps(loaded.state) == json.dumps(state)
    for expected, array in zip(arrays, loaded.arrays["a/b"], strict=True):
        assert (expected.dtype, expected.shape) == (array.dtype, array.shape)
        assert expected.tobytes() == array.tobytes()


def test_arrays_that_need_pickling_are_rejected(open_store):
    with pytest.raises(ValueError, match="weights/0 is an array of object"):
        open_store().save(Checkpoint(1, 0, {"weights": [np.array([{}], object)]}))


def test_a_crafted_file_with_a_valid_hash_cannot_run_code(open_store, tmp_path, caplog):
    store = open_store()
    path = store.save(make_checkpoint())
    members = {"head": np.array([{"about": 1}], object)}
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = bytes(64)
        for name, array in members.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=True)
    content = path.read_bytes()[:-64]
    path.write_bytes(content + checkpoint_file.hashlib.sha256(content).hexdigest().encode())
    assert store.steps() == []
    assert "allow_pickle" in caplog.text


def test_only_the_newest_are_kept_and_other_hosts_files_are_untouched(open_store):
    first, second = open_store("algo-1"), open_store("algo-2")
    for step in range(5):
        first.save(make_checkpoint(1, step))
    second.save(make_checkpoint(1, 4))
    assert list_names(first) == [
        "checkpoint-algo-1-000001-000003.npz",
        "checkpoint-algo-1-000001-000004.npz",
        "checkpoint-algo-2-000001-000004.npz",
    ]
    assert first.steps() == [(1, 3), (1, 4)]


def test_files_of_a_host_that_left_are_removed_after_enough_newer_ones(open_store):
    """Its checkpoint as well as its incomplete file."""
    path = open_store("algo-3").save(make_checkpoint(1, 1))
    leftover = path.with_name(f"{INCOMPLETE}algo-3-000001-000002")
    leftover.write_bytes(b"half")
    store = open_store("algo-1")
    store.save(make_checkpoint(1, 3))
    assert store.steps() == [(1, 1), (1, 3)]
    assert leftover.exists()
    store.save(make_checkpoint(1, 4))
    assert store.steps() == [(1, 3), (1, 4)]
    assert len(list_names(store)) == 2


def test_epochs_and_steps_of_many_digits_are_sorted_by_number(open_store):
    store = open_store(keep=9)
    steps = [(1, 999_999), (1, 1_000_000), (2, 0), (999_999, 0), (1_000_000, 0)]
    for step in steps:
        store.save(make_checkpoint(*step))
    assert store.steps() == steps


def test_any_host_reads_any_hosts_checkpoint(open_store):
    """A new host finds the files of all hosts; a step is listed once."""
    for host in ("algo-1", "algo-10", "algo-2"):
        open_store(host).save(make_checkpoint(2, 7))
    store = open_store("algo-1-fresh")
    assert store.steps() == [(2, 7)]
    assert_same(store.load((2, 7)), make_checkpoint(2, 7))


def test_a_hosts_name_may_contain_any_character(open_store):
    store = open_store("a/../b 1")
    store.save(make_checkpoint())
    assert store.steps() == [(1, 0)]
    assert [name for name in list_names(store) if "/" in name] == []


def test_another_hosts_file_is_read_if_the_own_one_is_damaged(open_store):
    path = open_store("algo-1").save(make_checkpoint(2, 7))
    open_store("algo-2").save(make_checkpoint(2, 7))
    path.write_bytes(path.read_bytes()[:-1])
    store = open_store("algo-1")
    assert store.steps() == [(2, 7)]
    assert_same(store.load((2, 7)), make_checkpoint(2, 7))


@pytest.mark.parametrize("damage", ["truncated", "empty", "longer", "zeros", "one bit", "not an archive"])
def test_a_damaged_checkpoint_is_skipped_with_one_warning(open_store, caplog, damage):
    store = open_store()
    store.save(make_checkpoint(1, 1))
    path = store.save(make_checkpoint(1, 2))
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[len(content) // 2] ^= 1
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "longer": content + b"\0",
            "zeros": content[:100] + bytes(len(content) - 100),
            "one bit": content,
            "not an archive": b"a text longer than a hash, which is no archive and has no hash at its end",
        }[damage]
    )
    store = open_store()
    assert store.steps() == store.steps() == [(1, 1)]
    assert_same(store.load((1, 1)), make_checkpoint(1, 1))
    with pytest.raises(UserError, match="no readable checkpoint of epoch 1, step 2"):
        store.load((1, 2))
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert f"{path} is skipped" in warnings[0].getMessage()


def test_every_truncation_and_every_changed_byte_is_detected(open_store):
    store = open_store()
    path = store.save(Checkpoint(1, 1, {"weights": [np.arange(3.0)]}))
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError):
            checkpoint_file.verify(path)
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 0x40]) + content[index + 1 :])
        with pytest.raises(ValueError):
            checkpoint_file.verify(path)
    path.write_bytes(content)
    checkpoint_file.verify(path)


def test_a_damaged_checkpoint_does_not_count_as_kept(open_store):
    """The next save removes it, and keeps two readable ones."""
    store = open_store()
    for step in (1, 2):
        store.save(make_checkpoint(1, step))
    store.save(make_checkpoint(1, 9)).write_bytes(b"")
    store = open_store()
    assert store.steps() == [(1, 2)]
    store.save(make_checkpoint(1, 5))
    assert store.steps() == [(1, 2), (1, 5)]
    assert len(list_names(store)) == 2


def test_a_damaged_file_of_the_same_step_is_replaced(open_store):
    open_store().save(make_checkpoint(1, 1)).write_bytes(b"")
    store = open_store()
    assert store.steps() == []
    store.save(make_checkpoint(1, 1))
    assert store.steps() == [(1, 1)]


def test_incomplete_files_of_a_killed_save_are_ignored_and_removed_at_the_next_start(open_store):
    store = open_store("algo-1")
    path = store.save(make_checkpoint(1, 1))
    own, other = (path.with_name(f"{INCOMPLETE}{host}-000001-000002") for host in ("algo-1", "algo-10"))
    for leftover in (own, other):
        shutil.copy(path, leftover)
    assert store.steps() == [(1, 1)]
    open_store("algo-1")
    assert not own.exists()
    assert other.exists()


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"batch_size": 64}, r"batch_size was 32 and is now 64"),
        ({"labels": ["a", "c"]}, r'labels was \["a", "b"\] and is now \["a", "c"\]'),
        ({"seed": 1}, "seed was not set and is now 1"),
        (
            {"batch_size": 1, "labels": [str(n) for n in range(99)]},
            r"batch_size was 32.*; labels .* is now .*…",
        ),
    ],
)
def test_the_differences_to_another_trainings_checkpoint_are_named(open_store, changes, differences):
    open_store().save(make_checkpoint())
    store = open_store(must=changes)
    for read in (store.steps, lambda: store.load((1, 0))):
        with pytest.raises(
            UserError, match=rf"of another training: {differences}.*empty the checkpoint location"
        ):
            read()


def test_other_settings_are_allowed_with_one_warning(open_store, caplog):
    """The training resumes with more epochs, or with another version of a library."""
    store = open_store()
    for step in (1, 2):
        store.save(make_checkpoint(1, step))
    store = open_store(should={"epochs": 9})
    assert store.steps() == [(1, 1), (1, 2)]
    store.load((1, 2))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["the checkpoint was made with other settings: epochs was 5 and is now 9."]


def test_tuples_in_a_fingerprint_equal_lists(tmp_path):
    """Fingerprints are compared as JSON."""
    CheckpointStore(tmp_path, "algo-1", {"must": {"labels": ("a", "b")}}).save(make_checkpoint())
    assert CheckpointStore(tmp_path, "algo-1", {"must": {"labels": ["a", "b"]}}).steps() == [(1, 0)]


def test_a_checkpoint_of_a_later_format_is_rejected(open_store, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr("backends.training.checkpoints.FORMAT", 2)
        open_store().save(make_checkpoint())
    with pytest.raises(UserError, match="has format 2, but this image reads format 1"):
        open_store().steps()


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=rf"cannot be written to {tmp_path}/file/checkpoints: Not a directory"
    ):
        CheckpointStore(tmp_path / "file/checkpoints", "algo-1", SAME)


@pytest.fixture
def small_disk(tmp_path):
    """A 1 MB file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"only root can mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_reported_in_bytes_and_the_earlier_checkpoint_kept(small_disk):
    store = CheckpointStore(small_disk / "checkpoints", "algo-1", SAME)
    small, large = (
        Checkpoint(1, step, {"w": [np.ones(size)]}) for step, size in ((1, 1 << 15), (2, 1 << 17))
    )
    store.save(small)
    free = shutil.disk_usage(small_disk).free
    with pytest.raises(UserError, match="the disk is full") as caught:
        store.save(large)
    assert f"{small_disk}/checkpoints, which has {free} bytes free" in str(caught.value)
    assert 1 << 20 < int(str(caught.value).split(" needs ")[1].split()[0]) < (1 << 20) + 4096
    assert list_names(store) == ["checkpoint-algo-1-000001-000001.npz"]
    assert_same(store.load((1, 1)), small)


def test_the_estimated_size_is_the_files_size_or_a_little_more(open_store):
    checkpoint = Checkpoint(
        1, 1, {"a name of a list": [np.ones((7, n)) for n in range(50)]}, {"text": "x" * 9999}
    )
    size = open_store().save(checkpoint).stat().st_size
    estimated = checkpoint_file.count_bytes(
        checkpoint_file.pack({**SAME, **checkpoint.state}, checkpoint.arrays)
    )
    assert size <= estimated + 1024
    assert estimated <= size + 51 * 512


SAVER = """
import sys, numpy as np
from pathlib import Path
from backends.training.checkpoints import Checkpoint, CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), "algo-1", {})
first = max((step for _, step in store.steps()), default=0) + 1
for step in range(first, 1 << 20):
    store.save(Checkpoint(1, step, {"w": [np.full(1 << 17, step, np.float64)] * 4}))
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_while_saving_loses_at_most_the_checkpoint_being_saved(tmp_path):
    """After each of 20 kills at any moment, all saved checkpoints are found and no other files."""
    found, saved = [], 0
    for attempt in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, tmp_path],
            env={**os.environ, "PYTHONPATH": str(ROOT / "program")},
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            for line in itertools.islice(process.stdout, attempt % 4 + 1):
                saved = int(line)
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
        saved = int(rest[-1]) if rest else saved
        found.append(any(path.name.startswith(INCOMPLETE) for path in tmp_path.iterdir()))
        store = CheckpointStore(tmp_path, "algo-1", {})
        steps = [step for _, step in store.steps()]
        assert steps[-1] in (saved, saved + 1), (steps, saved)
        for step in steps:
            assert all((array == step).all() for array in store.load((1, step)).arrays["w"])
        assert len(list(tmp_path.iterdir())) == len(steps) <= 3
    assert any(found), "no kill interrupted a save, so the test has shown nothing"
