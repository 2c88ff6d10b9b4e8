#!/usr/bin/env bash
# fake_nodes.sh [COUNT]: COUNT nodes played by kwok, with 8 GPUs each, for tests of scale and of scheduling. Pods on them
# become Running and Ready within about a second, and nothing runs. Called again with more, it adds the missing ones.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
. "$HERE/processes.sh"

count=${1:-3}
[[ $count =~ ^[0-9]+$ ]] || fail "KWOK_NODES=$count: give a number"
alive kwok || start_in_network kwok "$KWOK" --kubeconfig="$CERTIFICATES/kwok.kubeconfig" --config="$(dirname "$KWOK")/stages.yaml" \
  --manage-all-nodes=false --manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake --node-lease-duration-seconds=40 \
  --cidr=$FAKE_POD_RANGE --node-ip=127.0.0.1 --server-address=127.0.0.1:10247
[ "$count" -gt 0 ] || exit 0
for ((i = 0; i < count; i++)); do sed "s/@NAME@/kwok-$i/g" "$HERE/config/kwok-node.yaml"; done | kubectl apply -f - >/dev/null
# Counted, since `kubectl wait` asks for one node after the other: 10 s for 100 of them.
nodes_are_ready() { [ "$(kubectl get nodes --selector type=kwok --no-headers | awk '$2 == "Ready"' | wc -l)" -ge "$count" ]; }
wait_until "$count ready fake nodes" $((60 + count)) kwok nodes_are_ready
