#!/usr/bin/env bash
# Makes the network namespace that the control plane, the real node and its pods share. It has no way out: whatever is not
# inside is unreachable at once, so that a test can't come to depend on the world.
set -euo pipefail
. "$(dirname "$0")/settings.sh"

[ -e "/run/netns/$NETNS" ] || ip netns add "$NETNS"
in_network ip link set lo up
in_network ip address replace "$NODE_IP/32" dev lo
in_network ip route replace unreachable default metric 4278198272
# kube-proxy rewrites service addresses in the output hook, which a packet reaches only where a route exists already.
in_network ip route replace "$SERVICE_RANGE" dev lo src "$NODE_IP"
in_network sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
