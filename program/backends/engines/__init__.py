"""What computes a stored model: TensorFlow or OpenVINO."""
