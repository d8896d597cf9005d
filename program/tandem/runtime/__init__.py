"""The resources of the host or container: memory, cores and GPUs."""
