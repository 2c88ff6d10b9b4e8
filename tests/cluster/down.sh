#!/usr/bin/env bash
# Ends the cluster and all that it started; only the logs stay. Nothing else on the machine is touched, and nothing happens
# where no cluster is or where KUBECONFIG names another one.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
. "$HERE/processes.sh"
. "$HERE/cgroups.sh"
. "$HERE/lock.sh"

# shims: containerd's helpers, one a pod, which outlive it by design. They name our socket on their command line.
shims() {
  local file
  for file in $(grep -lzxF -- "$CONTAINERD/containerd.sock" /proc/[0-9]*/cmdline 2>/dev/null); do
    case $(readlink "${file%/cmdline}/exe") in */containerd-shim-*) file=${file%/cmdline} && echo "${file#/proc/}" ;; esac
  done
}

end_processes() {
  local file pids end=$((SECONDS + 20))
  stop kubelet # first: it would start again what ends
  stop containerd
  for file in "$PIDS"/*; do [ ! -e "$file" ] || stop "$(basename "$file")"; done
  # Until none is left: one may start another while the list is read, and a killed one takes a moment to go.
  while pids=$(shims; pod_processes) && [ -n "$pids" ]; do
    [ $SECONDS -lt $end ] || fail "these processes can't be ended: $(echo $pids)"
    kill -KILL $pids 2>/dev/null || true
    sleep 0.05
  done
}

[ "$(id -u)" = 0 ] || fail "root is needed to end the test cluster"
if users_cluster; then
  say "KUBECONFIG names a cluster that was not started here: it is left as it is"
  exit 0
fi
mkdir -p "$(dirname "$STATE")"
take_lock
check_owner
end_processes
remove_cgroups
# Mounts of pods lie in containerd's own mount namespace, which is gone with its last process.
[ ! -e "/run/netns/$NETNS" ] || ip netns delete "$NETNS"
for folder in "${FIXED_FOLDERS[@]}"; do [ ! -d "$folder" ] || rmdir --ignore-fail-on-non-empty "$folder"; done
[ ! -d "$STATE" ] || find "$STATE" -mindepth 1 -maxdepth 1 ! -name logs -exec rm -rf {} +
