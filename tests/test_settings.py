import logging
from pathlib import Path

import pytest

from conftest import ROOT
from tandem.errors import UserError
from tandem.settings import Settings, describe, render_settings


def test_defaults_work_with_nothing_set():
    settings = Settings.load({})
    assert settings.base_dir == Path("/opt/ml")
    assert (settings.port, settings.device, settings.backend) == (8080, "auto", "auto")


def test_variables_are_read_and_typed():
    settings = Settings.load(
        {
            "SAGEMAKER_BASE_DIR": "/tmp/ml",
            "SAGEMAKER_BIND_TO_PORT": "9000",
            "TANDEM_DEVICE": " CPU",
            "SAGEMAKER_MODEL_SERVER_TIMEOUT": "2.5",
        }
    )
    assert settings.base_dir == Path("/tmp/ml")
    assert (settings.port, settings.device, settings.timeout) == (9000, "cpu", 2.5)


def test_the_first_variable_of_a_setting_wins():
    """SageMaker's own name beats the tutorials' older one."""
    both = {"SAGEMAKER_MODEL_SERVER_WORKERS": "3", "MODEL_SERVER_WORKERS": "5"}
    assert Settings.load(both).workers == 3
    assert Settings.load({"MODEL_SERVER_WORKERS": "5"}).workers == 5


@pytest.mark.parametrize(("text", "level"), [("20", logging.INFO), ("10", 10), ("warning", logging.WARNING)])
def test_log_levels_are_numbers_or_names(text, level):
    assert Settings.load({"SAGEMAKER_CONTAINER_LOG_LEVEL": text}).log_level == level


def test_an_empty_variable_counts_as_not_set_except_cudas():
    """An empty CUDA_VISIBLE_DEVICES hides every GPU, so it must not be lost."""
    settings = Settings.load({"SAGEMAKER_BIND_TO_PORT": "", "BACKEND": "", "CUDA_VISIBLE_DEVICES": ""})
    assert (settings.port, settings.backend, settings.visible_devices) == (8080, "auto", "")


def test_every_wrong_variable_is_named_with_the_expected_value():
    with pytest.raises(UserError) as caught:
        Settings.load(
            {"SAGEMAKER_BIND_TO_PORT": "many", "BACKEND": "torch", "SAGEMAKER_CONTAINER_LOG_LEVEL": "loud"}
        )
    message = str(caught.value)
    assert (
        "SAGEMAKER_BIND_TO_PORT is 'many'; expected a whole number, at least 1 and at most 65535" in message
    )
    assert "BACKEND is 'torch'; expected one of auto, tensorflow, openvino" in message
    assert "SAGEMAKER_CONTAINER_LOG_LEVEL is 'loud'" in message


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SAGEMAKER_BIND_TO_PORT", "0"),
        ("SAGEMAKER_BIND_TO_PORT", "80.5"),
        ("SERVER_THREADS", "1"),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "nan"),
        ("EMF_SECONDS", "3601"),
        ("SAGEMAKER_TRAINING_MODULE", "mine.main"),
        ("MODEL_SERVER_WORKERS", "none"),
        ("NGINX", "maybe"),
        ("PRECISION", "float16"),
    ],
)
def test_a_value_outside_its_limits_is_rejected(variable, text):
    with pytest.raises(UserError, match=f"{variable} is '{text}'; expected "):
        Settings.load({variable: text})


def test_help_names_every_variable():
    text = render_settings()
    for setting in describe():
        assert " or ".join(setting.variables) in text
        assert setting.help.endswith(".")


@pytest.mark.parametrize(
    ("environ", "limit"),
    [
        ({}, 25),
        ({"SAGEMAKER_BATCH": "true"}, 100),
        ({"SAGEMAKER_BATCH": "True"}, 100),
        ({"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "6"}, 6),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "1024"}, 1024),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}, 0),
    ],
)
def test_the_body_limit_follows_the_mode(environ, limit):
    """Real-time, batch transform (in both of its spellings), and asynchronous inference."""
    assert Settings.load(environ).max_payload_mb == limit


def test_local_containers_get_every_setting_except_the_folder_and_the_port():
    """`local_test/train.sh IMAGE` mounts its folder at /opt/ml, and serve.sh publishes the port."""
    known = {variable for setting in describe() for variable in setting.variables}
    listed = (ROOT / "local_test" / "settings.env").read_text().splitlines()[1:]
    assert set(listed) == known - {"SAGEMAKER_BASE_DIR", "SAGEMAKER_BIND_TO_PORT", "CUDA_VISIBLE_DEVICES"}
