#!/usr/bin/env bash
# run.sh COMMAND...: runs it where Service and pod addresses can be reached, with KUBECONFIG and a fitting kubectl.
# With KUBECONFIG set to another cluster the command runs as it is.
set -euo pipefail
. "$(dirname "$0")/settings.sh"

[ $# -gt 0 ] || fail "usage: run.sh COMMAND..."
users_cluster && exec "$@"
[ -e "$CLUSTER_KUBECONFIG" ] || fail "no cluster runs here: make cluster"
export KUBECONFIG=$CLUSTER_KUBECONFIG PATH="$STATE/bin:$PATH"
exec nsenter --net="/run/netns/$NETNS" -- "$@"
