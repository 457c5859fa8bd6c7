# make demo    set up .venv and run the main job on the embedded task
# make test    set up .venv and run the tests
# make docs    set up .venv and build the book of docs/ in build/docs; a warning is an error
# make test-oldest, make test-newest   the core tests with the oldest and newest packages that setup.cfg admits (torch: the
#              pinned one), each in an environment of its own
# make test-bridges   the tests of the bridges with verl's and SkyRL's own packages, in an environment of their own
# PIP_OPTIONS  is passed to pip, for another build of torch: make demo PIP_OPTIONS="--index-url ..."
PYTHON ?= python3
VENV ?= .venv
PIP_OPTIONS ?=
OUT ?= runs/demo
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-bridges test-oldest test-newest lint docs

demo: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks value_loss_variance --config demo --out $(OUT)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2

test-slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 -m "slow and not gpu" --durations 20

test-bridges: $(VENV)-bridges/.installed
	$(VENV)-bridges/bin/python -m pytest tests/benchmarks/bridges

$(VENV)-bridges/.installed: $(INSTALLED) benchmarks/bridges/install.sh
	PATH="$(abspath $(VENV))/bin:$$PATH" benchmarks/bridges/install.sh $(VENV)-bridges
	touch $@

docs: $(INSTALLED)
	$(VENV)/bin/sphinx-build -W --keep-going -q docs build/docs

# What leans on other packages most. Old packages warn of what a newer torch deprecates, which is theirs to mend.
CORE := tests/models tests/rlhf_core/test_golden.py tests/project/test_readme.py

test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest -n 2 -W default $(CORE)

test-newest: $(VENV)-newest/.installed
	$(VENV)-newest/bin/python -m pytest -n 2 $(CORE)

$(VENV)-oldest/.installed: setup.cfg tools/oldest_versions.py
	$(PYTHON) -m venv $(VENV)-oldest
	$(PYTHON) tools/oldest_versions.py > $(VENV)-oldest/oldest.txt
	$(VENV)-oldest/bin/python -m pip install $(PIP_OPTIONS) --constraint $(VENV)-oldest/oldest.txt --editable '.[dev]'
	touch $@

$(VENV)-newest/.installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)-newest
	grep '^torch==' constraints.txt > $(VENV)-newest/torch.txt
	$(VENV)-newest/bin/python -m pip install $(PIP_OPTIONS) --constraint $(VENV)-newest/torch.txt --editable '.[dev]'
	touch $@

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --config setup.cfg

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_OPTIONS) --constraint constraints.txt --editable '.[dev,docs,cluster]'
	touch $@
