import pytest

from tandem.algorithm import load_algorithm
from tandem.errors import UserError
from tandem.jobs.job import JobConfig
from tandem.training import check_channels


def test_a_missing_channel_is_named_with_the_existing_ones(opt_ml):
    job = JobConfig.load(opt_ml(channels=["train", "valid"]))
    with pytest.raises(UserError, match=r"'training' is missing.*channels of this job: train, valid"):
        check_channels(load_algorithm("fixtures.fails_to_train"), job)
