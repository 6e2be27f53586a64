# Each target works on a fresh machine with Python 3.10+ and make: it creates .venv and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CODE = sapiens_hf conversion training tests

.PHONY: demo test check bench clean

# torchvision from the registry needs the registry's own torch build, so both are installed by name, unpinned.
$(VENV)/.installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet -e ".[$*]"
	touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/python docs/demo.py --output demo_output
	$(BIN)/python docs/demo_full_size.py --output demo_output/full_size

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

check: $(VENV)/.installed-test
	$(BIN)/ruff check $(CODE) docs
	$(BIN)/ruff format --check $(CODE) docs
	$(BIN)/mypy
	$(BIN)/pylint --disable=all --enable=duplicate-code --min-similarity-lines=8 sapiens_hf conversion training
	$(BIN)/python -m pytest tests/test_layers.py

bench: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet opencv-python-headless
	set -e; for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output
