# Two commands do everything from a clean checkout: `make demo` and `make test`.
# PYTHON picks the interpreter (3.11 is what constraints.txt was tested with), VENV where the environment goes.
PYTHON ?= python3
VENV ?= .venv
TASK ?= halfcheetah
JOBS ?= 2
BIN := $(VENV)/bin
# One thread: two cost more than they give as soon as anything else runs on the machine.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test slow lint types bench clean
help:
	@echo "make demo [TASK=pointmaze]  set up, train RLPD and SAC side by side, report (about 5 minutes)"
	@echo "make test                   set up, lint, check types, run the fast tests and every docstring example"
	@echo "make slow | bench           the slow tests | the short benchmarks"

setup: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/o2o demo $(TASK)

test: setup lint types
	$(BIN)/python -m pytest -q -m "not slow" -n $(JOBS)

slow: setup
	$(BIN)/python -m pytest -q -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

bench: setup
	$(BIN)/python benchmarks/update.py --short
	$(BIN)/python benchmarks/sampling.py --short
	$(BIN)/python benchmarks/collect.py --short
	$(BIN)/python benchmarks/end_to_end.py --short

clean:
	rm -rf $(VENV)
