#!/usr/bin/env bash
# restart_api_server.sh [SECONDS]: kills the API server, leaves it dead for so long, and starts it again as it was.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
. "$HERE/processes.sh"

alive kube-apiserver || fail "no API server of ours runs here: make cluster"
mapfile -d '' -t command <"/proc/$(pid_of kube-apiserver)/cmdline"
stop kube-apiserver
# A killed process keeps its port until the last of its threads is gone.
while [ -n "$(in_network ss --no-header --listening --tcp --numeric "sport = :$API_PORT")" ]; do sleep 0.05; done
sleep "${1:-0}"
start_in_network kube-apiserver "${command[@]}"
wait_until "ready API server" 120 kube-apiserver kubectl get --raw=/readyz
