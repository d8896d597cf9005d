import pytest

from tandem.errors import UserError
from tandem.jobs.job import JobConfig
from tandem.script_mode.submission import Submission, find_submission, is_module
from tandem.settings import Settings
from tars import pack


def find(root, **variables):
    return find_submission(JobConfig.load(root), Settings.load(variables))


def test_without_a_name_there_is_no_program(opt_ml):
    assert find(opt_ml({"sagemaker_submit_directory": "/somewhere"})) is None


@pytest.mark.parametrize("name", ["train.py", "'train.py'", '"train.py"', '"\\"train.py\\""'])
def test_the_job_names_the_program_in_any_dialect(opt_ml, name):
    root = opt_ml({"sagemaker_program": name})
    (root / "code").mkdir()
    (root / "code/train.py").touch()
    assert find(root) == Submission(root / "code", "train.py")
    assert find(root, SAGEMAKER_PROGRAM="other.py") == Submission(root / "code", "train.py")


def test_a_name_with_folders_runs_in_its_root(opt_ml):
    root = opt_ml({"sagemaker_program": "src/train.py"}, channels=["code"])
    (root / "input/data/code/src").mkdir()
    (root / "input/data/code/src/train.py").touch()
    assert find(root) == Submission(root / "input/data/code", "src/train.py")


def test_an_absolute_name_is_used_unchanged(opt_ml, tmp_path):
    (tmp_path / "mine.py").touch()
    assert find(opt_ml(), SAGEMAKER_PROGRAM=str(tmp_path / "mine.py")) == Submission(tmp_path, "mine.py")


@pytest.mark.parametrize("where", ["code channel", "file", "folder"])
def test_an_archive_is_unpacked_into_code(opt_ml, tmp_path, where):
    archive = tmp_path / "mine" / "sourcedir.tar.gz"
    given = {"sagemaker_program": "train.py"}
    if where == "code channel":
        root = opt_ml(given, channels=["code"])
        archive = root / "input/data/code/sourcedir.tar.gz"
    else:
        submitted = archive if where == "file" else archive.parent
        root = opt_ml({**given, "sagemaker_submit_directory": f'"{submitted}"'})
    pack(archive, ("train.py", b"x = 1"), ("lib/run.sh", b"true"))
    assert find(root) == Submission(root / "code", "train.py")
    assert (root / "code/train.py").read_bytes() == b"x = 1"
    assert (root / "code/lib/run.sh").stat().st_mode & 0o777 == 0o755
    assert (root / "code/train.py").stat().st_mode & 0o777 == 0o644


def test_existing_files_in_code_are_not_overwritten(opt_ml, tmp_path):
    root = opt_ml({"sagemaker_program": "train.py", "sagemaker_submit_directory": str(tmp_path / "mine.tgz")})
    pack(tmp_path / "mine.tgz", ("train.py", b"new"))
    (root / "code").mkdir()
    (root / "code/train.py").write_bytes(b"old")
    assert find(root).path.read_bytes() == b"old"


def test_a_repacked_archive_replaces_its_earlier_files(opt_ml, tmp_path):
    root = opt_ml({"sagemaker_program": "train.py", "sagemaker_submit_directory": str(tmp_path / "mine.tgz")})
    for content in (b"old", b"new"):
        pack(tmp_path / "mine.tgz", ("train.py", content))
        assert find(root).path.read_bytes() == content


def test_a_bucket_is_rejected_with_what_to_do_instead(opt_ml):
    root = opt_ml(
        {"sagemaker_program": "train.py", "sagemaker_submit_directory": '"s3://bucket/source.tar.gz"'}
    )
    with pytest.raises(
        UserError, match=r"fetches nothing from S3 itself; give the job a channel named code with"
    ):
        find(root)
    (root / "code").mkdir()
    (root / "code/train.py").touch()
    assert find(root) == Submission(root / "code", "train.py")


def test_the_error_of_a_missing_program_names_the_searched_folders(opt_ml):
    root = opt_ml({"sagemaker_program": "train.py", "sagemaker_submit_directory": "/nowhere"})
    with pytest.raises(UserError, match=rf"'train.py' was not found in /nowhere, {root}/code"):
        find(root)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def train(job): pass", True),
        ("from mine import train", True),
        ("import mine\ntrain = mine.run", True),
        ("def train(args): pass\nif __name__ == '__main__':\n    train(1)", False),
        ("def train(args): pass\ntrain(1)", False),
        ("def train(args): pass\nhistory = train(1)", False),
        ("def main():\n    train(1)\ndef train(args): pass", True),
        ("class Model:\n    def train(self): pass", False),
        ("if True:\n    def train(job): pass", False),
        ("print('hello')", False),
        ("raise SystemExit", False),
    ],
)
def test_an_algorithms_module_is_distinguished_from_a_script_without_running_it(tmp_path, text, expected):
    (tmp_path / "x.py").write_text(text)
    assert is_module(tmp_path / "x.py") is expected


def test_only_python_files_are_modules(tmp_path):
    (tmp_path / "x.sh").write_text("def train(job): pass")
    assert not is_module(tmp_path / "x.sh")


@pytest.mark.parametrize("content", [b"def train(:", b"x = 1\0", b"\xff\xfe", b"# coding: nonsense\n"])
def test_a_file_that_is_not_python_is_rejected(tmp_path, content):
    (tmp_path / "x.py").write_bytes(content)
    with pytest.raises(UserError, match="is not valid Python"):
        is_module(tmp_path / "x.py")
