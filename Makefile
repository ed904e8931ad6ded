# What a newcomer types: `make demo`, then `make test`. `make lab` opens JupyterLab.
# Choose the interpreter with PYTHON=python3.12 (3.11 to 3.13), the environment's place with VENV=...

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

# Two busy cores run torch's own threads badly: one thread a process, several processes.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo lab test lint notebooks check clean

help:  ## list these commands
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "lwlab needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lab: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing lwlab into $(VENV) (2.3 GB on disk, a few minutes) ..."
	$(PIP) --quiet -e '.[lab]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.lab
	$(PIP) --quiet -e '.[dev]'
	@touch $@

demo: $(VENV)/.lab  ## install, fetch the default model, run a paper's notebook, print its claims
	@$(BIN)/lwlab fetch smollm2-135m
	@$(BIN)/lwlab run relp --profile quick

lab: $(VENV)/.lab  ## open JupyterLab on the index notebook
	@$(BIN)/lwlab lab

test: $(VENV)/.dev  ## run all tests: units, every notebook, the browser
	@for m in smollm2-135m all-minilm-l6 efficientnet-lite0; do $(BIN)/lwlab fetch $$m || exit 1; done
	@$(BIN)/python -c 'from lwlab.models import toys; print(*toys.TABLE, sep="\n")' \
	  | xargs -P $(WORKERS) -I NAME $(BIN)/lwlab fetch toys/NAME
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(VENV)/.dev  ## rebuild the notebooks whose sources changed
	$(BIN)/lwlab notebooks build --stale

check: lint test  ## what CI runs

clean:  ## remove the environment and caches of this checkout (not the models)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache lwlab-runs lwlab-sweeps
