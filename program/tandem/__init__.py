"""SageMaker's container contract for training and serving, independent of frameworks and algorithms."""
