"""The hyperparameters that SageMaker and its SDK add to a job's own."""

PREFIX = "sagemaker_"
PROGRAM = "sagemaker_program"
SUBMIT_DIRECTORY = "sagemaker_submit_directory"
JOB_NAME = "sagemaker_job_name"
REGION = "sagemaker_region"
DISTRIBUTION_GROUPS = "sagemaker_distribution_instance_groups"

#: Keys that AWS's training toolkit keeps to itself. It passes other keys with the prefix to frameworks.
TOOLKIT = frozenset(
    {
        PROGRAM,
        SUBMIT_DIRECTORY,
        JOB_NAME,
        REGION,
        "sagemaker_enable_cloudwatch_metrics",
        "sagemaker_container_log_level",
        "sagemaker_s3_output",
        "default_user_module_name",
        "_tuning_objective_metric",
    }
)

#: The SDK's bucket for the model. Scripts of AWS's examples parse it, so they get it.
MODEL_DIR = "model_dir"


def is_reserved(name: str) -> bool:
    """Return whether a key is the platform's: a script gets it neither as a flag nor as a variable."""
    return name in TOOLKIT or name.startswith(PREFIX)


def is_for_frameworks(name: str) -> bool:
    """Return whether a key configures a framework of AWS's images, such as `sagemaker_mpi_enabled`."""
    return name.startswith(PREFIX) and name not in TOOLKIT


def is_dropped(name: str) -> bool:
    """Return whether a declaration that lacks the key ignores it instead of calling it unknown."""
    return is_reserved(name) or name == MODEL_DIR
