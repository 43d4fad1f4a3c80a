# `make help` says what there is. PYTHON, VENV, CUDA=1, PARALLEL, RUN and ARGS may be given:
#   make test PYTHON=python3.12 ARGS="-k prune"     make test PARALLEL= ARGS="-x --pdb"

PYTHON ?= python3
VENV ?= .venv
COMPAT_VENV ?= .venv-compat
RUN ?= latest
BIN := $(VENV)/bin
PARALLEL ?= -n auto --maxprocesses 8 --dist worksteal
SETUP_INPUTS := pyproject.toml requirements/ci.lock scripts/setup_venv.sh
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo view check test test-all test-compat bench docs lint format lock clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready $(VENV)/.graphviz ## Make the virtual environment and find or install Graphviz

$(VENV)/.ready: $(SETUP_INPUTS)
	@sh scripts/setup_venv.sh "$(PYTHON)" "$(VENV)"
	@touch $@

$(COMPAT_VENV)/.ready: $(SETUP_INPUTS)
	@sh scripts/setup_venv.sh "$(PYTHON)" "$(COMPAT_VENV)" 'transformer-lens==3.9.*' sae-lens
	@touch $@

$(VENV)/.graphviz: scripts/install_graphviz.sh | $(VENV)/.ready
	@sh scripts/install_graphviz.sh
	@touch $@

demo: setup ## Find the circuit for indirect objects in the embedded model, and draw it
	@$(BIN)/circuitfind discover ioi $(ARGS)

view: setup ## Open the report of the last run (or RUN=NAME) in a browser
	@$(BIN)/circuitfind view $(RUN) $(ARGS)

check: setup ## Hold the known circuits that need no download against what they must give
	@$(BIN)/circuitfind check --tier 1 $(ARGS)

test: setup ## Run the tests, but for the slow ones
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-all: setup ## Run all tests, the slow ones too (and those for a GPU, where there is one)
	@$(BIN)/python -m pytest $(PARALLEL) -m "" $(ARGS)

test-compat: $(COMPAT_VENV)/.ready ## Run the tests against transformer-lens 3.9 and the sae-lens that needs it
	@$(COMPAT_VENV)/bin/python -m pytest $(PARALLEL) $(ARGS)

bench: setup ## Measure speed and memory
	@$(BIN)/python benchmarks/run.py $(ARGS)

docs: $(VENV)/.ready ## Build the documentation site (build/docs/index.html)
	@$(BIN)/sphinx-build -W -q -b html docs build/docs
	@echo build/docs/index.html

lint: $(VENV)/.ready ## Check style, layout and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.ready ## Lay the code out, and mend what ruff can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

lock: $(VENV)/.ready ## Write requirements/ci.lock from what the virtual environment holds
	@sh scripts/lock.sh "$(VENV)"

clean: ## Remove the virtual environments, builds and caches (not outputs/)
	rm -rf $(VENV) $(COMPAT_VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find circuitfind tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
