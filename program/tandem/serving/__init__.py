"""SageMaker's contract for serving: HTTP in, the model, HTTP out."""
