# Two commands do everything from a clean checkout: `make demo` and `make test`.
# PYTHON picks the interpreter (3.11 is what constraints.txt was tested with), VENV where the environment goes.
PYTHON ?= python3
VENV ?= .venv
TASK ?= halfcheetah
JOBS ?= 2
BIN := $(VENV)/bin
# One thread: two cost more than they give as soon as anything else runs on the machine.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test slow lint types bench docs-setup docs links clean
help:
	@echo "make demo [TASK=pointmaze]  set up, train RLPD and SAC side by side, report (about 3 minutes)"
	@echo "make test                   set up, lint, check types, run the fast tests and every docstring example"
	@echo "make slow | bench           the slow tests | the short benchmarks, with what became slower on this machine"
	@echo "make docs                   the site, with examples and tutorials run: docs/_build/html/index.html"
	@echo "make links                  whether each link that leaves the site is answered (needs the network)"

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

# With the environment's own interpreter: without torch's types nothing would be checked.
types: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: setup
	$(BIN)/python benchmarks/update.py --short
	$(BIN)/python benchmarks/sampling.py --short
	$(BIN)/python benchmarks/collect.py --short
	$(BIN)/python benchmarks/end_to_end.py --short

DOCS_DATA := halfcheetah/linear-mix-v0 halfcheetah/linear-medium-v0 pointmaze/medium-play-v0
docs-setup: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"

docs: docs-setup
	for name in $(DOCS_DATA); do $(BIN)/o2o data make o2o/$$name || exit 1; done
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

links: docs-setup
	O2O_DOCS_EXECUTE=0 $(BIN)/python -m sphinx -b linkcheck docs docs/_build/links

clean:
	rm -rf $(VENV)
