#!/usr/bin/env bash
# on.sh COMMAND...: runs it as run.sh does, on the cluster that runs, or on one for the time of the command.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
. "$HERE/lock.sh"

[ $# -gt 0 ] || fail "usage: on.sh COMMAND..."
was_up=true
if users_cluster; then
  command -v kubectl >/dev/null || fail "missing: kubectl in PATH, for the cluster that KUBECONFIG names"
else
  [ "$(id -u)" = 0 ] || fail "root is needed, or KUBECONFIG set to a cluster of your own"
  take_lock
  [ -e "$CLUSTER_KUBECONFIG" ] || was_up=false
  "$HERE/up.sh" "${KWOK_NODES:-3}" >/dev/null
fi
# Kept until the end: what the command left running must not outlive it, whatever it came to.
finish() { $was_up || "$HERE/down.sh"; }
trap finish EXIT
[ -z "${INFERENGINE_TEST_CLUSTER:-}" ] || users_cluster || "$HERE/images/for_tests.sh"
"$HERE/run.sh" "$@"
