# Two commands on a fresh machine: make train, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help train test lint type bench wheel clean

help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "robustfg needs Python 3.11 or newer; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peers]'
	@touch $@

train: $(READY) ## train and attack a classifier on the built-in birds (minutes on two cores); ARGS="loss=gm" for options
	$(BIN)/python -m robustfg.train $(ARGS)

test: $(READY) ## run all tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## style and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(READY) ## static types
	$(BIN)/mypy

bench: $(READY) ## speed and memory beside plain PyTorch and other libraries, as ratios; fails over a limit
	for file in benchmarks/loss.py benchmarks/maxsep.py benchmarks/detectors.py benchmarks/attack_speed.py; do $(BIN)/python $$file || exit 1; done

wheel: $(READY) ## build dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove caches and builds; keeps outputs/ and the environment
	rm -rf dist build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
