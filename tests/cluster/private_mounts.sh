#!/usr/bin/env bash
# private_mounts.sh COMMAND...: runs it, inside a fresh mount namespace (unshare -m), with mounts that keep the machine as it
# is. They end with the last process that sees them.
set -euo pipefail
. "$(dirname "$0")/settings.sh"

# Places that containerd, the CNI library and the kubelet use whatever they are told: a real node on this machine may own them.
for folder in "${FIXED_FOLDERS[@]}"; do mount -t tmpfs tmpfs "$folder"; done

# The kubelet would set these three for the whole machine. It finds the values that it wants and leaves the real ones alone.
echo 1 >"$STATE/one"
echo 10 >"$STATE/ten"
mount --bind "$STATE/one" /proc/sys/vm/overcommit_memory
mount --bind "$STATE/ten" /proc/sys/kernel/panic
mount --bind "$STATE/one" /proc/sys/kernel/panic_on_oops
exec "$@"
