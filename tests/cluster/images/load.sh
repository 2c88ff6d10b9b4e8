#!/usr/bin/env bash
# load.sh TAR...: gives images to the real node of the running cluster. Pods then name them with imagePullPolicy: Never.
set -euo pipefail
. "$(dirname "$0")/../settings.sh"

[ $# -gt 0 ] || fail "usage: images/load.sh IMAGE.tar..."
for image in "$@"; do
  "$STATE/bin/ctr" --address "$CONTAINERD/containerd.sock" --namespace k8s.io images import "$image" >/dev/null
done
