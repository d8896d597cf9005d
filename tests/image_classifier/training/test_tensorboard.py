"""TensorBoard scalars, read with TensorFlow's own reader."""

import numpy as np

from algorithms.image_classifier.training.tensorboard import DATA_CLASS, Scalars

EPOCHS = [
    {
        "epoch": 1,
        "loss": 1.5,
        "accuracy": 0.25,
        "val_loss": 1.25,
        "val_accuracy": 0.5,
        "images_per_second": 100.0,
    },
    {"epoch": 2, "loss": 0.5, "accuracy": 0.75, "val_loss": float("nan"), "val_accuracy": 1.0},
]


def read_scalars(folder):
    """Return what TensorBoard would show: (tag, step) → number of each scalar."""
    import tensorflow as tf

    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                # TensorBoard keeps the metadata of a tag's first value; later ones may leave it out.
                assert value.metadata.plugin_data.plugin_name == "scalars"
                assert value.metadata.data_class == 1
                number = tf.make_ndarray(value.tensor)
                assert number.shape == ()
                assert number.dtype == np.float32
                found[value.tag, event.step] = float(number)
    return found


def test_the_data_class_is_that_of_scalars_in_tensorflows_protocol():
    import tensorflow as tf

    data_class = tf.compat.v1.SummaryMetadata.DESCRIPTOR.fields_by_name["data_class"]
    assert data_class.enum_type.values_by_name["DATA_CLASS_SCALAR"].number == DATA_CLASS


def test_the_metrics_of_an_epoch_are_scalars_of_two_runs(tmp_path):
    board = Scalars(tmp_path / "output/tensorboard")
    board.observe(1, EPOCHS[0], network=None)
    assert (
        read_scalars(tmp_path / "output/tensorboard/training")["epoch_loss", 1] == 1.5
    )  # flushed after each epoch
    board.observe(2, EPOCHS[1], network=None)
    board.close()
    assert read_scalars(tmp_path / "output/tensorboard/training") == {
        ("epoch_loss", 1): 1.5,
        ("epoch_accuracy", 1): 0.25,
        ("epoch_images_per_second", 1): 100.0,
        ("epoch_loss", 2): 0.5,
        ("epoch_accuracy", 2): 0.75,
    }
    validation = read_scalars(tmp_path / "output/tensorboard/validation")
    assert np.isnan(validation.pop(("epoch_loss", 2)))
    assert validation == {("epoch_loss", 1): 1.25, ("epoch_accuracy", 1): 0.5, ("epoch_accuracy", 2): 1.0}


def test_a_resumed_job_adds_to_existing_scalars(tmp_path):
    for epoch, metrics in enumerate(EPOCHS, 1):
        board = Scalars(tmp_path)
        board.observe(epoch, metrics, network=None)
        board.close()
    assert {step for _, step in read_scalars(tmp_path / "training")} == {1, 2}


def test_no_directory_is_created_before_the_first_epoch(tmp_path):
    board = Scalars(tmp_path / "tensorboard")
    board.close()
    assert not (tmp_path / "tensorboard").exists()


def test_a_directory_that_cannot_be_written_is_logged_once(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    board = Scalars(tmp_path / "file")
    for epoch, metrics in enumerate(EPOCHS, 1):
        board.observe(epoch, metrics, network=None)
    board.close()
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(tmp_path / "file") in message
