import os

import pytest

from tandem.errors import UserError
from tandem.jobs.channels import Channel
from tandem.jobs.job import JobConfig, warn_of_unlisted, warn_without_model


def test_paths_channels_and_hosts_come_from_the_tree(opt_ml):
    root = opt_ml(
        {"epochs": "3"},
        channels=["training", "validation"],
        resourceconfig={"current_host": "algo-2", "hosts": ["algo-1", "algo-2"], "topology": None},
    )
    job = JobConfig.load(root)
    names = ("training", "validation")
    assert job.channels == {name: Channel(name, root / "input/data" / name) for name in names}
    assert job.raw_hyperparameters == {"epochs": "3"}
    assert (job.rank, job.model_dir, job.output_dir) == (1, root / "model", root / "output")


def test_a_tree_without_config_files_has_one_host_and_its_folders_as_channels(tmp_path):
    (tmp_path / "input/data/training").mkdir(parents=True)
    job = JobConfig.load(tmp_path)
    assert list(job.channels) == ["training"]
    assert (job.hosts, job.rank, job.raw_hyperparameters) == (("algo-1",), 0, {})


def test_the_name_of_a_config_file_is_lower_case(opt_ml):
    """The tutorials' resourceConfig.json is not what the platform writes, and is not read."""
    root = opt_ml()
    config = root / "input" / "config"
    (config / "resourceconfig.json").rename(config / "resourceConfig.json")
    (config / "resourceConfig.json").write_text('{"current_host": "b", "hosts": ["a", "b"]}')
    assert JobConfig.load(root).hosts == ("algo-1",)


@pytest.mark.parametrize("name", ["hyperparameters", "inputdataconfig", "resourceconfig"])
@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_a_config_file_that_is_not_an_object_is_named(opt_ml, name, text):
    root = opt_ml()
    (root / "input/config" / f"{name}.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"{name}.json .*expected|{name}.json .*Expected"):
        JobConfig.load(root)


def test_a_current_host_that_is_not_among_the_hosts_is_rejected(opt_ml):
    root = opt_ml(resourceconfig={"current_host": "algo-9", "hosts": ["algo-1"]})
    with pytest.raises(UserError, match="algo-9"):
        JobConfig.load(root)


@pytest.mark.parametrize("hosts", [5, "algo-1", [1]])
def test_hosts_that_are_not_a_list_of_names_are_rejected(opt_ml, hosts):
    root = opt_ml(resourceconfig={"current_host": "algo-1", "hosts": hosts})
    with pytest.raises(UserError, match="expected a list of names"):
        JobConfig.load(root)


def test_a_byte_order_mark_is_accepted(opt_ml):
    root = opt_ml()
    (root / "input/config/hyperparameters.json").write_text('{"epochs": "3"}', encoding="utf-8-sig")
    assert JobConfig.load(root).raw_hyperparameters == {"epochs": "3"}


def test_a_channel_has_the_values_of_its_entry(opt_ml):
    """Input mode, content type without parameters, wrapper and distribution, or their defaults."""
    entry = {
        "TrainingInputMode": "Pipe",
        "ContentType": "Application/X-RecordIO; charset=utf-8",
        "RecordWrapperType": "RecordIO",
        "S3DistributionType": "ShardedByS3Key",
    }
    root = opt_ml(inputdataconfig={"training": entry, "validation": {}})
    data = root / "input/data"
    assert JobConfig.load(root).channels == {
        "training": Channel(
            "training", data / "training", "Pipe", "application/x-recordio", "RecordIO", sharded=True
        ),
        "validation": Channel("validation", data / "validation"),
    }


def test_an_unknown_input_mode_is_rejected(opt_ml):
    root = opt_ml(inputdataconfig={"training": {"TrainingInputMode": "Tape"}})
    with pytest.raises(UserError, match=r"'training'.*'Tape'.*File, FastFile or Pipe"):
        JobConfig.load(root)


def test_checkpoints_go_to_the_folder_that_the_platform_copies(opt_ml):
    """The folder exists, or checkpointconfig.json names one; without either a job keeps none."""
    root = opt_ml()
    assert JobConfig.load(root).checkpoint_dir is None
    (root / "checkpoints").mkdir()
    assert JobConfig.load(root).checkpoint_dir == root / "checkpoints"
    config = root / "input/config/checkpointconfig.json"
    config.write_text('{"LocalPath": "/opt/ml/saved/"}')
    assert JobConfig.load(root).checkpoint_dir == root / "saved"
    config.write_text('{"LocalPath": "/mnt/saved"}')
    assert str(JobConfig.load(root).checkpoint_dir) == "/mnt/saved"


def test_a_job_with_a_checkpoint_config_has_a_checkpoint_folder(opt_ml):
    """The folder need not exist yet, and the platform's file may have any form."""
    root = opt_ml(checkpointconfig={"S3Uri": "s3://bucket/prefix"})
    assert JobConfig.load(root).checkpoint_dir == root / "checkpoints"


@pytest.mark.parametrize("folder", ["/opt/ml/model", "/opt/ml/model/", "/opt/ml/checkpoints/../model/saved"])
def test_checkpoints_inside_the_model_are_rejected(opt_ml, folder):
    root = opt_ml(checkpointconfig={"LocalPath": folder})
    with pytest.raises(
        UserError, match=r"checkpointconfig.json: LocalPath.*inside model/.*/opt/ml/checkpoints"
    ):
        JobConfig.load(root)


def test_folders_that_are_not_channels_are_named(opt_ml, caplog):
    """FIFOs and manifests are not folders; without the config file every folder is a channel."""
    root = opt_ml(channels=["training"])
    data = root / "input/data"
    warn_of_unlisted(JobConfig.load(root))
    os.mkfifo(data / "stream_0")
    (data / "training-manifest").touch()
    (data / ".hidden").mkdir()
    warn_of_unlisted(JobConfig.load(root))
    assert not caplog.records
    (data / "validation").mkdir()
    (data / "test").mkdir()
    warn_of_unlisted(JobConfig.load(root))
    (record,) = caplog.records
    assert "contains test, validation, which inputdataconfig.json does not list" in record.getMessage()
    caplog.clear()
    (root / "input/config/inputdataconfig.json").unlink()
    warn_of_unlisted(JobConfig.load(root))
    assert not caplog.records


@pytest.mark.parametrize(("host", "warnings"), [("algo-1", 1), ("algo-2", 0)])
def test_only_the_first_host_warns_of_a_missing_model(opt_ml, caplog, host, warnings):
    root = opt_ml(resourceconfig={"current_host": host, "hosts": ["algo-1", "algo-2"]})
    warn_without_model(root)
    assert len(caplog.records) == warnings
    (root / "model/model.txt").touch()
    caplog.clear()
    warn_without_model(root)
    assert not caplog.records
