"""The real pip, offline, from wheels made here."""

from importlib import metadata

import numpy as np
import pytest

from tandem.errors import UserError
from tandem.script_mode.requirements import explain, find_wheels, install_requirements, list_installed
from wheels import make_wheel


def test_without_the_file_nothing_is_done(tmp_path):
    assert install_requirements(tmp_path) == []


@pytest.mark.parametrize("folder", ["wheels", "lib"])
def test_vendored_wheels_are_installed_aside_and_without_an_index(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/nobody/listens")
    make_wheel(tmp_path / folder, "tandem_vendored", "1.5", ["numpy"])
    (tmp_path / "requirements.txt").write_text("tandem-vendored>=1\n")
    (path,) = install_requirements(tmp_path)
    assert (path / "tandem_vendored.py").read_text() == "version = '1.5'\n"
    assert not (path / "numpy").exists()
    assert "tandem_vendored" not in {each.metadata["Name"] for each in metadata.distributions()}


@pytest.mark.parametrize("through", ["directly", "by a wheel"])
def test_what_is_installed_is_never_replaced(tmp_path, through):
    make_wheel(tmp_path / "wheels", "numpy", "1.0")
    make_wheel(tmp_path / "wheels", "tandem_old", "1", ["numpy==1.0"])
    (tmp_path / "requirements.txt").write_text("numpy==1.0\n" if through == "directly" else "tandem-old\n")
    with pytest.raises(UserError) as refused:
        install_requirements(tmp_path)
    message = str(refused.value)
    assert f"this image has numpy=={np.__version__}" in message
    assert "numpy==1.0" in message
    assert "ask for a version that fits it, or leave it out" in message
    assert "\n" not in message


def test_a_wheel_that_is_not_there_is_told_with_what_kind_it_must_be(tmp_path):
    make_wheel(tmp_path / "wheels", "tandem_vendored", "1.5")
    (tmp_path / "requirements.txt").write_text("tandem-absent==2\n")
    with pytest.raises(
        UserError, match=r"tandem-absent==2 was not found: .*wheels has no fitting wheel\. Put a wheel"
    ):
        install_requirements(tmp_path)


def test_a_version_that_no_wheel_has_of_what_the_image_has_is_not_asked_for(tmp_path):
    """A wheel of it would be refused too: the image's stays, by whichever name it was installed."""
    make_wheel(tmp_path / "wheels", "tandem_vendored", "1.5")
    (tmp_path / "requirements.txt").write_text("tensorflow==2.10.0\n")
    with pytest.raises(
        UserError, match=r"image has tensorflow([-_]cpu)?==.* stays.* leave it out"
    ) as refused:
        install_requirements(tmp_path)
    assert "Put a wheel" not in str(refused.value)
    told = explain("ERROR: No matching distribution found for NumPy==1.0 (from x)", "nowhere")
    assert f"This image has NumPy=={np.__version__}, which stays" in told


def test_without_network_and_wheels_the_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/nobody/listens")
    monkeypatch.setenv("PIP_RETRIES", "0")
    (tmp_path / "requirements.txt").write_text("tandem-absent\n")
    with pytest.raises(UserError, match="tandem-absent was not found: no index was reached or has it"):
        install_requirements(tmp_path)


def test_a_file_that_pip_cannot_read_is_told(tmp_path):
    (tmp_path / "requirements.txt").write_text("no such = thing\n")
    with pytest.raises(UserError, match="Invalid requirement"):
        install_requirements(tmp_path)
    assert explain("", "nowhere") == "pip failed; its words stand in the log."


def test_a_lib_without_wheels_is_no_vendored_folder(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/mine.py").touch()
    assert find_wheels(tmp_path) is None


def test_the_constraints_name_this_image():
    assert f"numpy=={np.__version__}" in list_installed()


def test_a_package_that_brings_the_modules_of_an_installed_one_keeps_its_version():
    """Else tensorflow, beside tensorflow-cpu, would be imported in its place."""
    versions = dict(line.split("==") for line in list_installed())
    assert versions["tensorflow"] == versions["tensorflow-cpu"]
    assert versions["opencv-python"] == versions["opencv-python-headless"]
