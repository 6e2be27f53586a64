"""Started by torchrun in test_training_loop: runs scripts one after the other, each with its list of arguments."""

import importlib
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

for task, arguments in json.loads(Path(sys.argv[1]).read_text()):
    importlib.import_module(f"training.finetune_{task}").main(arguments)
