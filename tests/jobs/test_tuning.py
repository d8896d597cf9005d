"""The ranges, metrics and objective of a tuning job, made from an algorithm's declarations."""

import json
import re
import subprocess

import pytest

from algorithms import image_classifier
from ecr import stand_in
from painted import write_pictures
from tandem.algorithm import load_algorithm
from tandem.errors import TandemError
from tandem.jobs.tuning import describe_tuning

#: Checks each part against the service model of boto3 and prints the faults.
CHECK = """
import json, sys
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
described = json.load(sys.stdin)
model = ServiceModel(Loader().load_service_model("sagemaker", "service-2"))
tuning = model.operation_model("CreateHyperParameterTuningJob").input_shape
job = {
    "HyperParameterTuningJobName": "a-job",
    "HyperParameterTuningJobConfig": {
        "Strategy": "Bayesian",
        "ResourceLimits": {"MaxNumberOfTrainingJobs": 4, "MaxParallelTrainingJobs": 2},
        "HyperParameterTuningJobObjective": described["HyperParameterTuningJobObjective"],
        "ParameterRanges": described["ParameterRanges"],
    },
    "TrainingJobDefinition": {
        "AlgorithmSpecification": {
            "TrainingImage": "an-image",
            "TrainingInputMode": "File",
            "MetricDefinitions": described["MetricDefinitions"],
        },
        "RoleArn": "arn:aws:iam::123456789012:role/any-role",
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    },
}
report = ParamValidator().validate(job, tuning)
print(report.generate_report())
ranges = tuning.members["HyperParameterTuningJobConfig"].members["ParameterRanges"].members
scales = ranges["IntegerParameterRanges"].member.members["ScalingType"].enum
for kind in ("IntegerParameterRanges", "ContinuousParameterRanges"):
    for entry in described["ParameterRanges"][kind]:
        if entry["ScalingType"] not in scales:
            print(entry)
goals = tuning.members["HyperParameterTuningJobConfig"].members["HyperParameterTuningJobObjective"]
if described["HyperParameterTuningJobObjective"]["Type"] not in goals.members["Type"].enum:
    print(described["HyperParameterTuningJobObjective"])
"""

METRICS = 'METRICS = {"loss": regex("loss")}\nOBJECTIVE = ("Minimize", "loss")\n'


@pytest.fixture
def declare(tmp_path):
    """`declare("size: int = …", metrics=…)` returns an algorithm with these hyperparameters."""

    def make(*fields, metrics=METRICS):
        path = tmp_path / "mine.py"
        path.write_text(
            "from dataclasses import dataclass\n"
            "from tandem.hyperparameters import hyperparameter\n"
            "from tandem.metrics import regex\n"
            f"{metrics}"
            "@dataclass(frozen=True)\n"
            "class Hyperparameters:\n" + "".join(f"    {field}\n" for field in fields)
        )
        return load_algorithm("", path)

    return make


def test_each_kind_of_hyperparameter_has_its_range(declare):
    described = describe_tuning(
        declare(
            'layers: int = hyperparameter(2, minimum=1, maximum=9, tunable=True, help=".")',
            'wide: int = hyperparameter(8, exclusive_minimum=3, exclusive_maximum=9, tunable=True, help=".")',
            "rate: float = hyperparameter(0.1, exclusive_minimum=0, maximum=1, tunable=(1e-05, 0.5), "
            'scale="Logarithmic", help=".")',
            'kind: str = hyperparameter("a", choices=("a", "b"), tunable=True, help=".")',
            'power: int = hyperparameter(2, choices=(1, 2, 4), tunable=True, help=".")',
            'deep: bool = hyperparameter(False, tunable=True, help=".")',
            'fixed: int = hyperparameter(1, help=".")',
        )
    )
    assert described == {
        "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"},
        "ParameterRanges": {
            "IntegerParameterRanges": [
                {"Name": "layers", "MinValue": "1", "MaxValue": "9", "ScalingType": "Auto"},
                {"Name": "wide", "MinValue": "4", "MaxValue": "8", "ScalingType": "Auto"},
            ],
            "ContinuousParameterRanges": [
                {"Name": "rate", "MinValue": "1e-05", "MaxValue": "0.5", "ScalingType": "Logarithmic"}
            ],
            "CategoricalParameterRanges": [
                {"Name": "kind", "Values": ["a", "b"]},
                {"Name": "power", "Values": ["1", "2", "4"]},
                {"Name": "deep", "Values": ["true", "false"]},
            ],
        },
        "MetricDefinitions": [{"Name": "loss", "Regex": image_classifier.METRICS["loss"]}],
    }


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ('x: int = hyperparameter(2, minimum=1, tunable=True, help=".")', "one end of its range is open"),
        ('x: float = hyperparameter(0.5, exclusive_minimum=0, maximum=1, tunable=True, help=".")', "is open"),
        ('x: int = hyperparameter(2, tunable=(9, 1), help=".")', "goes from 9 to 1"),
        ('x: int = hyperparameter(2, maximum=8, tunable=(1, 9), help=".")', "'x' is '9'; it must be"),
        ('x: int = hyperparameter(2, tunable=(0.5, 4), help=".")', "'x' is '0.5'; it must be a whole number"),
        ('x: str = hyperparameter("a", tunable=True, help=".")', "has 0 choices"),
        ('x: int = hyperparameter(1, choices=range(1, 40), tunable=True, help=".")', "has 39 choices"),
        ('x: list[int] = hyperparameter([1], tunable=True, help=".")', "it is a list"),
        ('x: int = hyperparameter(2, tunable=(0, 4), scale="Logarithmic", help=".")', "starts above 0"),
        ('x: float = hyperparameter(0.5, tunable=(0, 1), scale="ReverseLogarithmic", help=".")', "below 1"),
        ('x: int = hyperparameter(2, help=".")', "0 hyperparameters are tunable"),
    ],
)
def test_a_range_that_cannot_be_searched_is_rejected_with_a_remedy(declare, field, expected):
    with pytest.raises(TandemError) as caught:
        describe_tuning(declare(field))
    assert expected in str(caught.value)
    assert str(caught.value).startswith("the algorithm ")


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ("", "METRICS has 0 entries"),
        ('METRICS = {"loss": regex("loss")}\n', "declares no OBJECTIVE"),
        ('METRICS = {"loss": regex("loss")}\nOBJECTIVE = ("Maximize", "f1")\n', "'f1'; METRICS has: loss"),
        ('METRICS = {"loss": regex("loss")}\nOBJECTIVE = ("Least", "loss")\n', "begins with 'Least'"),
        ('METRICS = {"loss": "loss=(.)(.)"}\nOBJECTIVE = ("Maximize", "loss")\n', "has 2 groups"),
        ('METRICS = {"loss": "x" * 501}\nOBJECTIVE = ("Maximize", "loss")\n', "regex over 500"),
    ],
)
def test_metrics_that_a_tuning_job_cannot_read_are_rejected(declare, metrics, expected):
    algorithm = declare('x: int = hyperparameter(2, tunable=(1, 4), help=".")', metrics=metrics)
    with pytest.raises(TandemError, match=re.escape(expected)):
        describe_tuning(algorithm)


def test_every_fault_is_reported_at_once(declare):
    algorithm = declare(
        'x: str = hyperparameter("a", tunable=True, help=".")',
        'y: int = hyperparameter(2, tunable=True, help=".")',
        metrics="",
    )
    with pytest.raises(TandemError, match="'x'.*'y'.*METRICS.*OBJECTIVE"):
        describe_tuning(algorithm)


@pytest.mark.slow
def test_train_prints_a_valid_request(opt_ml, run_train):
    """The image classifier's declarations pass the checks of boto3."""
    done = run_train(opt_ml(), "algorithms.image_classifier", "--tuning")
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert described["HyperParameterTuningJobObjective"]["MetricName"] == "val_accuracy"
    tuned = [entry["Name"] for ranges in described["ParameterRanges"].values() for entry in ranges]
    assert {"batch_size", "learning_rate", "augmentation"} <= set(tuned)
    stand_in.install()
    checked = subprocess.run(
        [stand_in.ENVIRONMENT / "bin" / "python", "-c", CHECK],
        input=done.stdout,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert checked.stdout.strip() == ""


def test_an_algorithm_that_cannot_be_tuned_is_one_sentence(opt_ml, run_train):
    done = run_train(opt_ml(), "echo", "--tuning")
    assert done.returncode == 1
    assert "cannot be tuned" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_every_metric_is_read_from_the_lines_of_a_real_run(opt_ml, run_train):
    """As on the platform: each regex over each line, also with the key that a tuning job adds."""
    parameters = {"image_size": "8", "epochs": "2", "batch_size": "16", "augmentation": "none"}
    root = opt_ml({**parameters, "_tuning_objective_metric": "val_accuracy"})
    write_pictures(root / "input/data/training")
    done = run_train(root, "algorithms.image_classifier", seconds=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    for definition in describe_tuning(load_algorithm("algorithms.image_classifier"))["MetricDefinitions"]:
        read = [float(number) for line in lines for number in re.findall(definition["Regex"], line)]
        assert len(read) == 2, definition["Name"]
