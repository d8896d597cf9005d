"""Storing, checking and running trained Keras models with TensorFlow and OpenVINO."""
