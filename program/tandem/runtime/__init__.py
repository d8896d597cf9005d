"""What the machine has: memory, cores and GPUs."""
