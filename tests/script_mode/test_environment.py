import json
from dataclasses import field, make_dataclass, replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from conftest import CPU
from tandem import reserved
from tandem.hyperparameters import convert
from tandem.jobs.job import JobConfig
from tandem.runtime.devices import Decision
from tandem.script_mode.environment import decode_parameters, describe_environment, make_flags
from tandem.settings import Settings

#: Every variable of AWS's training toolkit and of version 3 of the SDK.
TOOLKIT = {
    "SM_HOSTS",
    "SM_CHANNELS",
    "SM_USER_ARGS",
    "SM_CURRENT_INSTANCE_GROUP_HOSTS",
    "SM_INSTANCE_GROUPS",
    "SM_DISTRIBUTION_INSTANCE_GROUPS",
    "SM_HPS",
    "SM_RESOURCE_CONFIG",
    "SM_INPUT_DATA_CONFIG",
    "SM_FRAMEWORK_PARAMS",
    "SM_INSTANCE_GROUPS_DICT",
    "SM_TRAINING_ENV",
    "SM_CURRENT_HOST",
    "SM_CURRENT_INSTANCE_TYPE",
    "SM_CURRENT_INSTANCE_GROUP",
    "SM_NETWORK_INTERFACE_NAME",
    "SM_USER_ENTRY_POINT",
    "SM_MODULE_NAME",
    "SM_MODULE_DIR",
    "SM_FRAMEWORK_MODULE",
    "SM_MODEL_DIR",
    "SM_INPUT_DIR",
    "SM_INPUT_CONFIG_DIR",
    "SM_OUTPUT_DIR",
    "SM_OUTPUT_DATA_DIR",
    "SM_OUTPUT_INTERMEDIATE_DIR",
    "SM_NUM_CPUS",
    "SM_NUM_GPUS",
    "SM_NUM_NEURONS",
    "SM_LOG_LEVEL",
    "SM_IS_HETERO",
    "SAGEMAKER_JOB_NAME",
    "CURRENT_HOST",
    "SM_INPUT_DATA_DIR",
    "SM_OUTPUT_FAILURE",
    "SM_SOURCE_DIR",
    "SM_ENTRY_SCRIPT",
    "SM_HOST_COUNT",
    "SM_CURRENT_HOST_RANK",
    "SM_MASTER_ADDR",
    "SM_MASTER_PORT",
}


def describe(root, **environ):
    job = replace(JobConfig.load(root), name="digits-1")
    return describe_environment(job, Settings.load(environ), 4, "train.py", root / "code")


def test_every_variable_of_the_toolkits_is_set_even_in_an_empty_tree(opt_ml):
    described = describe(opt_ml())
    assert set(described) >= TOOLKIT
    assert all(isinstance(value, str) for value in described.values())
    assert (described["SM_CURRENT_INSTANCE_TYPE"], described["SM_NETWORK_INTERFACE_NAME"]) == (
        "local",
        "eth0",
    )
    assert (described["SM_FRAMEWORK_MODULE"], described["SM_HPS"], described["SM_INSTANCE_GROUPS"]) == (
        "",
        "{}",
        "[]",
    )
    assert "SM_TOPOLOGY" not in described


def test_a_job_is_described_by_the_variables_of_the_toolkits(opt_ml):
    resources = {
        "current_host": "algo-2",
        "hosts": ["algo-1", "algo-2"],
        "current_instance_type": "ml.g5.xlarge",
        "current_group_name": "gpus",
        "instance_groups": [
            {"instance_group_name": "gpus", "instance_type": "ml.g5.xlarge", "hosts": ["algo-1", "algo-2"]}
        ],
        "network_interface_name": "ethwe",
        "topology": {"a": 1},
    }
    root = opt_ml(
        {
            "learning-rate": "0.1",
            "layers": "[64, 32]",
            "name": '"two words"',
            "flag": "true",
            "k": "v",
            "sagemaker_program": "train.py",
            "sagemaker_mpi_enabled": "true",
            "sagemaker_region": '"eu-west-1"',
            "_tuning_objective_metric": "accuracy",
        },
        channels=["training", "my-data"],
        resourceconfig=resources,
    )
    variables = describe(root, SAGEMAKER_CONTAINER_LOG_LEVEL="10")
    parameters = {"flag": True, "k": "v", "layers": [64, 32], "learning-rate": 0.1, "name": "two words"}
    assert json.loads(variables["SM_HPS"]) == parameters
    assert (
        variables["SM_HPS"] == '{"flag":true,"k":"v","layers":[64,32],"learning-rate":0.1,"name":"two words"}'
    )
    assert json.loads(variables["SM_USER_ARGS"]) == make_flags(parameters)
    assert variables["SM_HP_LEARNING-RATE"] == variables["SM_HP_LEARNING_RATE"] == "0.1"
    assert (variables["SM_HP_LAYERS"], variables["SM_HP_NAME"], variables["SM_HP_FLAG"]) == (
        "[64,32]",
        "two words",
        "true",
    )
    assert variables["SM_CHANNELS"] == '["my-data","training"]'
    assert variables["SM_CHANNEL_TRAINING"] == str(root / "input/data/training")
    assert (
        variables["SM_CHANNEL_MY-DATA"] == variables["SM_CHANNEL_MY_DATA"] == str(root / "input/data/my-data")
    )
    assert (variables["SM_HOSTS"], variables["SM_CURRENT_HOST"]) == ('["algo-1","algo-2"]', "algo-2")
    assert (variables["SM_HOST_COUNT"], variables["SM_CURRENT_INSTANCE_GROUP"]) == ("2", "gpus")
    assert variables["SM_CURRENT_INSTANCE_GROUP_HOSTS"] == '["algo-1","algo-2"]'
    assert variables["SM_DISTRIBUTION_INSTANCE_GROUPS"] == '["gpus"]'
    assert variables["SM_FRAMEWORK_PARAMS"] == '{"sagemaker_mpi_enabled":true}'
    assert (variables["SM_NETWORK_INTERFACE_NAME"], variables["SM_TOPOLOGY"]) == ("ethwe", '{"a":1}')
    assert (variables["SM_NUM_CPUS"], variables["SM_NUM_GPUS"], variables["SM_LOG_LEVEL"]) == ("4", "0", "10")
    assert (variables["SM_USER_ENTRY_POINT"], variables["SM_MODULE_NAME"]) == ("train.py", "train")
    assert (variables["SAGEMAKER_JOB_NAME"], variables["SAGEMAKER_REGION"]) == ("digits-1", "eu-west-1")
    assert json.loads(variables["SM_RESOURCE_CONFIG"]) == resources
    training = json.loads(variables["SM_TRAINING_ENV"])
    assert training["channel_input_dirs"]["training"] == variables["SM_CHANNEL_TRAINING"]
    assert (training["hyperparameters"], training["is_master"]) == (parameters, False)


def test_the_gpus_are_those_of_the_decision(opt_ml):
    job = JobConfig.load(opt_ml())
    assert describe_environment(job, Settings(), 1)["SM_NUM_GPUS"] == "0"
    two = Decision("gpu", "two", gpus=(None, None))
    job = JobConfig(job.base_dir, decision=two)
    assert describe_environment(job, Settings(), 1)["SM_NUM_GPUS"] == "2"
    assert CPU.gpus == ()


@pytest.mark.parametrize(
    ("parameters", "flags"),
    [
        ({"b": 1, "alpha": True}, ["--alpha", "True", "-b", "1"]),
        ({"layers": [64, 32], "of": {"y": 2, "x": 1}}, ["--layers", "[64, 32]", "--of", "x=1,y=2"]),
        ({"none": None, "text": "a 'b' \"c\" $d;e"}, ["--none", "", "--text", "a 'b' \"c\" $d;e"]),
    ],
)
def test_flags_match_the_toolkit(parameters, flags):
    assert make_flags(parameters) == flags


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("true", True),
        ("True", "True"),
        ("None", "None"),
        ("null", None),
        ("007", "007"),
        ("x", "x"),
    ],
)
def test_values_are_json_or_else_text(text, value):
    assert decode_parameters({"a": text}) == {"a": value}


@pytest.mark.parametrize(
    "name", sorted({*reserved.TOOLKIT, "sagemaker_parameter_server_enabled", "sagemaker_new"})
)
def test_reserved_keys_are_ignored(name):
    """Neither a script nor an algorithm with declared hyperparameters gets them."""
    declared = make_dataclass("Declared", [], frozen=True)
    assert decode_parameters({name: "x"}) == {}
    assert convert({name: "x"}, declared) == declared()


@pytest.mark.parametrize("name", [*sorted(reserved.TOOLKIT), "model_dir"])
def test_a_declaration_may_have_a_parameter_of_a_reserved_name(name):
    declared = make_dataclass("Declared", [(name, str, field(default=""))], frozen=True)
    assert getattr(convert({name: "x"}, declared), name) == "x"


def test_the_model_dir_that_the_sdk_adds_is_passed_to_scripts_only():
    """Scripts of AWS's examples parse --model_dir; a declaration need not have it."""
    declared = make_dataclass("Declared", [], frozen=True)
    assert convert({"model_dir": "s3://b/m"}, declared) == declared()
    assert decode_parameters({"model_dir": '"s3://b/m"'}) == {"model_dir": "s3://b/m"}


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=5))
def test_any_hyperparameters_give_a_valid_environment(tmp_path_factory, parameters):
    job = JobConfig(tmp_path_factory.getbasetemp(), raw_hyperparameters=parameters)
    for name, value in describe_environment(job, Settings(), 1).items():
        assert "=" not in name
        assert "\0" not in name + value
        (name + value).encode()
