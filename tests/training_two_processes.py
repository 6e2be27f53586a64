"""Started with two processes by test_training_loop: runs scripts one after the other, each with its list of arguments.

With `--shared_out` Accelerate is told that the processes are on GPUs: on CPUs it does not share weights out, though
torch does.
"""

import importlib
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

if "--shared_out" in sys.argv:
    from accelerate.state import DistributedType, PartialState

    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
for task, arguments in json.loads(Path(sys.argv[1]).read_text()):
    importlib.import_module(f"training.finetune_{task}").main(arguments)
