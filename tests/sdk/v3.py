"""Start one training job with SDK v3: `v3.py IMAGE DATA SOURCE OUTPUT REQUEST`, with the arguments of v2.py.

If `script` in REQUEST is true, the program is a script that runs instead of `train`.
"""

import json
import sys

from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, InputData, SourceCode
from sagemaker.train.model_trainer import Mode

image, data, source, output, request = sys.argv[1:]
request = json.loads(request)
program = request["program"]
code, environment = None, {}
if program and request.get("script"):
    code = SourceCode(source_dir=source, entry_script=program)
elif program:
    code, environment = SourceCode(source_dir=source, command="train"), {"SAGEMAKER_PROGRAM": program}
trainer = ModelTrainer(
    training_mode=Mode.LOCAL_CONTAINER,
    training_image=image,
    source_code=code,
    environment=environment,
    compute=Compute(instance_type="local_cpu", instance_count=1),
    hyperparameters=request["hyperparameters"],
    local_container_root=output,
)
trainer.train([InputData(channel_name="training", data_source=data)])
