"""Fine-tuning from a checkout: data, augmentation, optimisation, one loop, one short script per job."""

from importlib.util import find_spec

if find_spec("accelerate") is None:
    raise ModuleNotFoundError(
        'Training needs packages of the `train` extra: pip install -e ".[train,eval]" in the checkout.',
        name="accelerate",
    )
