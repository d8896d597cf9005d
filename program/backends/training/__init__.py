"""What training any Keras network needs: checkpoints, several GPUs and hosts."""
