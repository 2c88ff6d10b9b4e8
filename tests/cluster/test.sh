#!/usr/bin/env bash
# test.sh [PYTEST_ARGUMENTS...]: the tests that need Kubernetes, on the cluster that runs, or on one for the time of the tests.
set -euo pipefail
. "$(dirname "$0")/settings.sh"

PYTHON_BIN=${VENV:-.venv}/bin
cd "$REPOSITORY"
export INFERENGINE_TEST_CLUSTER=1
exec "$HERE/on.sh" "$PYTHON_BIN/python" -m pytest "${@:-tests/cluster}"
