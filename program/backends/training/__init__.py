"""What training needs besides the model: replicas and hosts, checkpoints, mixed precision."""
