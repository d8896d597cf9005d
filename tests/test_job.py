import pytest

from tandem.errors import UserError
from tandem.job import TrainingJob


def test_paths_channels_and_hosts_come_from_the_tree(opt_ml):
    root = opt_ml(
        {"epochs": "3"},
        channels=["training", "validation"],
        resourceconfig={"current_host": "algo-2", "hosts": ["algo-1", "algo-2"], "topology": None},
    )
    job = TrainingJob.load(root)
    assert job.channels == {name: root / "input/data" / name for name in ("training", "validation")}
    assert job.hyperparameters == {"epochs": "3"}
    assert (job.rank, job.model_dir, job.output_dir) == (1, root / "model", root / "output")


def test_a_bare_tree_is_one_host_with_the_folders_as_channels(tmp_path):
    (tmp_path / "input/data/training").mkdir(parents=True)
    job = TrainingJob.load(tmp_path)
    assert list(job.channels) == ["training"]
    assert (job.hosts, job.rank, job.hyperparameters) == (("algo-1",), 0, {})


def test_the_config_file_has_its_lower_case_name(opt_ml):
    """The tutorials' resourceConfig.json is not what the platform writes, and is not read."""
    root = opt_ml()
    config = root / "input" / "config"
    (config / "resourceconfig.json").rename(config / "resourceConfig.json")
    (config / "resourceConfig.json").write_text('{"current_host": "b", "hosts": ["a", "b"]}')
    assert TrainingJob.load(root).hosts == ("algo-1",)


@pytest.mark.parametrize("name", ["hyperparameters", "inputdataconfig", "resourceconfig"])
@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_a_config_file_that_is_no_object_is_named(opt_ml, name, text):
    root = opt_ml()
    (root / "input/config" / f"{name}.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"{name}.json .*expected|{name}.json .*Expected"):
        TrainingJob.load(root)


def test_a_host_that_is_not_among_the_hosts_is_refused(opt_ml):
    root = opt_ml(resourceconfig={"current_host": "algo-9", "hosts": ["algo-1"]})
    with pytest.raises(UserError, match="algo-9"):
        TrainingJob.load(root)


@pytest.mark.parametrize("hosts", [5, "algo-1", [1]])
def test_hosts_that_are_no_list_of_names_are_refused(opt_ml, hosts):
    root = opt_ml(resourceconfig={"current_host": "algo-1", "hosts": hosts})
    with pytest.raises(UserError, match="expected a list of names"):
        TrainingJob.load(root)


def test_a_byte_order_mark_is_no_fault(opt_ml):
    root = opt_ml()
    (root / "input/config/hyperparameters.json").write_text('{"epochs": "3"}', encoding="utf-8-sig")
    assert TrainingJob.load(root).hyperparameters == {"epochs": "3"}
