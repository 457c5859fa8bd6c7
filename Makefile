# make demo    set up .venv and run the main job on the embedded task
# make test    set up .venv and run the tests
# PIP_OPTIONS  is passed to pip, for another build of torch: make demo PIP_OPTIONS="--index-url ..."
PYTHON ?= python3
VENV ?= .venv
PIP_OPTIONS ?=
OUT ?= runs/demo
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow lint

demo: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.value_loss_variance --config benchmarks/presets/demo.yaml --out $(OUT)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2

test-slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 -m "slow and not gpu"

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --config setup.cfg

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_OPTIONS) --constraint constraints.txt --editable '.[dev]'
	touch $@
