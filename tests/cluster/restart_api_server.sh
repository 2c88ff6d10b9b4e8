#!/usr/bin/env bash
# restart_api_server.sh [SECONDS]: kills the API server, leaves it dead for so long, and starts it again as it was.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
. "$HERE/processes.sh"

alive kube-apiserver || fail "no API server of ours runs here: make cluster"
pid=$(pid_of kube-apiserver)
mapfile -d '' -t command <"/proc/$pid/cmdline"
stop kube-apiserver
while [ -n "$(start_time "$pid")" ]; do sleep 0.05; done # its port is free only when all of it is gone
sleep "${1:-0}"
start_in_network kube-apiserver "${command[@]}"
wait_until "ready API server" 120 kube-apiserver kubectl get --raw=/readyz
