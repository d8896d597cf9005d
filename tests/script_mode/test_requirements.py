"""The real pip, offline, with wheels made by the tests."""

from importlib import metadata

import numpy as np
import pytest

from tandem.errors import UserError
from tandem.script_mode.requirements import explain, find_wheels, install_requirements, list_installed
from wheels import make_wheel


def test_without_the_file_nothing_is_installed(tmp_path):
    assert install_requirements(tmp_path) == []


@pytest.mark.parametrize("folder", ["wheels", "lib"])
def test_vendored_wheels_are_installed_to_a_prefix_without_an_index(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/nobody/listens")
    make_wheel(tmp_path / folder, "tandem_vendored", "1.5", ["numpy"])
    (tmp_path / "requirements.txt").write_text("tandem-vendored>=1\n")
    (path,) = install_requirements(tmp_path)
    assert (path / "tandem_vendored.py").read_text() == "version = '1.5'\n"
    assert not (path / "numpy").exists()
    assert "tandem_vendored" not in {each.metadata["Name"] for each in metadata.distributions()}


@pytest.mark.parametrize("through", ["directly", "by a wheel"])
def test_installed_packages_are_never_replaced(tmp_path, through):
    make_wheel(tmp_path / "wheels", "numpy", "1.0")
    make_wheel(tmp_path / "wheels", "tandem_old", "1", ["numpy==1.0"])
    (tmp_path / "requirements.txt").write_text("numpy==1.0\n" if through == "directly" else "tandem-old\n")
    with pytest.raises(UserError) as refused:
        install_requirements(tmp_path)
    message = str(refused.value)
    assert f"this image has numpy=={np.__version__}" in message
    assert "numpy==1.0" in message
    assert "request a version that fits, or leave it out" in message
    assert "\n" not in message


def test_the_error_of_a_missing_wheel_names_the_expected_kind(tmp_path):
    make_wheel(tmp_path / "wheels", "tandem_vendored", "1.5")
    (tmp_path / "requirements.txt").write_text("tandem-absent==2\n")
    with pytest.raises(
        UserError, match=r"tandem-absent==2 was not found: .*wheels has no matching wheel\. Put a wheel"
    ):
        install_requirements(tmp_path)


def test_a_missing_version_of_an_installed_package_is_not_requested(tmp_path):
    """A wheel would be rejected too: the image's package is not replaced, under any of its names."""
    make_wheel(tmp_path / "wheels", "tandem_vendored", "1.5")
    (tmp_path / "requirements.txt").write_text("tensorflow==2.10.0\n")
    with pytest.raises(
        UserError, match=r"image has tensorflow([-_]cpu)?==.* not replaced.* leave it out"
    ) as refused:
        install_requirements(tmp_path)
    assert "Put a wheel" not in str(refused.value)
    sentence = explain("ERROR: No matching distribution found for NumPy==1.0 (from x)", "nowhere")
    assert f"This image has NumPy=={np.__version__}, which is not replaced" in sentence


def test_the_error_without_network_and_wheels(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/nobody/listens")
    monkeypatch.setenv("PIP_RETRIES", "0")
    (tmp_path / "requirements.txt").write_text("tandem-absent\n")
    with pytest.raises(UserError, match="tandem-absent was not found: no index was reached or has it"):
        install_requirements(tmp_path)


def test_a_file_that_pip_cannot_read_is_rejected(tmp_path):
    (tmp_path / "requirements.txt").write_text("no such = thing\n")
    with pytest.raises(UserError, match="Invalid requirement"):
        install_requirements(tmp_path)
    assert explain("", "nowhere") == "pip failed; its output is in the log."


def test_a_lib_without_wheels_is_not_a_vendored_folder(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/mine.py").touch()
    assert find_wheels(tmp_path) is None


def test_the_constraints_name_the_installed_packages():
    assert f"numpy=={np.__version__}" in list_installed()


def test_variants_of_an_installed_package_keep_its_version():
    """Otherwise tensorflow, beside tensorflow-cpu, would be imported instead."""
    versions = dict(line.split("==") for line in list_installed())
    assert versions["tensorflow"] == versions["tensorflow-cpu"]
    assert versions["opencv-python"] == versions["opencv-python-headless"]
