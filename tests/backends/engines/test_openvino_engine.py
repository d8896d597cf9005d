"""OpenVINO's batch sizes, and converting Keras models to OpenVINO."""

import logging

import numpy as np
import pytest

from backends.engines import openvino_engine


@pytest.mark.parametrize(("shape", "rows"), [((8, 8, 1), 4), ((160, 160, 3), 3), ((512, 512, 3), 2)])
def test_batches_of_large_rows_are_smaller(shape, rows):
    """A batch's memory depends on the number of its values."""
    openvino = openvino_engine.import_openvino()
    parameter = openvino.op.Parameter(openvino.Type.f32, openvino.PartialShape([-1, *shape]))
    model = openvino.Model([openvino.opset13.relu(parameter)], [parameter])
    compiled = openvino.Core().compile_model(model, "CPU")
    engine = openvino_engine.OpenVINOEngine(compiled, compiled, 1, "float32")
    assert engine.max_batch_rows == rows
    assert engine.predict(np.ones((5, *shape), np.float32)).shape == (5, *shape)


def test_a_converted_model_has_the_keras_models_outputs(tmp_path, caplog):
    """Also one with batch statistics; nothing is logged, and no other file is left."""
    import keras

    keras.utils.set_random_seed(7)
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten()]
    )
    with caplog.at_level(logging.INFO):
        openvino_engine.export(model, (8, 8, 3), tmp_path / "openvino" / "model.xml")
        assert logging.getLogger().level == logging.INFO
    assert caplog.text == ""
    assert {path.name for path in tmp_path.rglob("*")} == {"openvino", "model.xml", "model.bin"}
    rows = np.random.default_rng(7).uniform(0, 1, (5, 8, 8, 3)).astype(np.float32)
    answers = openvino_engine.load(tmp_path, cores=1, dtype="float32").predict(rows)
    np.testing.assert_allclose(answers, model(rows, training=False).numpy(), atol=1e-5)
