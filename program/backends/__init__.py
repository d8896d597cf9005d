"""The engines: how a trained Keras model is stored, checked and computed."""
