"""The machine: SageMaker's container contract, with no framework and no algorithm by name."""
