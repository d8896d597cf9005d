"""What a process that serves pictures has imported, and what it can do without."""

import json

import numpy as np
import pytest

from backends.bundle.writer import write_bundle
from tandem.images.codec import Preprocessing
from tandem.runtime.devices import Decision

# Keras 3 on TensorFlow 2.21 under NumPy 2: theirs to repair.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

NEVER = {"tensorflow", "keras", "matplotlib", "nncf", "pandas", "scipy", "sklearn", "torch", "h5py", "PIL"}


def test_serving_on_a_cpu_imports_no_framework_for_training(live_server, tmp_path):
    """Neither to load the model nor to answer a picture."""
    import keras

    network = keras.Sequential(
        [keras.layers.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    )
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    write_bundle(
        model_dir,
        network,
        labels=("ant", "bee", "cat"),
        preprocessing=Preprocessing(height=8, width=8).as_dict(),
        golden_inputs=np.random.default_rng(7).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        decision=Decision("cpu", "a test"),
    )
    server = live_server("lists_modules")
    picture = np.full((8, 8, 3), 7, np.uint8)
    status, _, body = server.invoke(json.dumps({"instances": [picture.tolist()]}).encode())
    assert status == 200, body
    (modules,) = json.loads(body)["predictions"]
    assert "openvino" in modules
    assert not NEVER & {name.partition(".")[0] for name in modules}
    assert "algorithms.image_classifier.training.train" not in modules
