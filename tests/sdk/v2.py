"""Start one training job with SDK v2: `v2.py IMAGE DATA SOURCE OUTPUT REQUEST`, in the environment sdk2.

DATA is the folder of the channel, SOURCE a folder with programs, OUTPUT an empty folder. REQUEST is JSON with
`hyperparameters`, and with `program`, the program to run instead of the image's algorithm, or null.
"""

import json
import sys

from sagemaker.estimator import Estimator

image, data, source, output, request = sys.argv[1:]
request = json.loads(request)
code = {"source_dir": source, "entry_point": request["program"]} if request["program"] else {}
estimator = Estimator(
    image_uri=image,
    role="arn:aws:iam::123456789012:role/any",
    instance_count=1,
    instance_type="local",
    output_path=f"file://{output}",
    hyperparameters=request["hyperparameters"],
    **code,
)
estimator.fit({"training": f"file://{data}"})
