#!/usr/bin/env bash
# Starts the real node: containerd, kubelet, kube-proxy. Pods on it are real containers.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
. "$HERE/processes.sh"
. "$HERE/cgroups.sh"

# fill_in FILE: config/FILE with the places that its @NAME@ stand for.
fill_in() {
  sed -e "s|@CERTIFICATES@|$CERTIFICATES|g" -e "s|@CONTAINERD@|$CONTAINERD|g" -e "s|@KUBELET@|$KUBELET|g" \
    -e "s|@PACKAGES@|$PACKAGES|g" -e "s|@NODE_IP@|$NODE_IP|g" -e "s|@CGROUP@|$CGROUP|g" \
    -e "s|@DNS_SERVICE_IP@|$DNS_SERVICE_IP|g" -e "s|@POD_RANGE@|$POD_RANGE|g" "$HERE/config/$1"
}

start_containerd() {
  mkdir -p "$CONTAINERD/cni" "${FIXED_FOLDERS[@]}"
  fill_in containerd.toml >"$CONTAINERD/config.toml"
  fill_in cni.conflist >"$CONTAINERD/cni/10-bridge.conflist"
  start_in_network containerd unshare --mount --propagation private \
    "$HERE/private_mounts.sh" env "${UNPACKED[@]}" "$PACKAGES/usr/bin/containerd" --config "$CONTAINERD/config.toml"
  wait_until "containerd socket" 30 containerd "$STATE/bin/ctr" --address "$CONTAINERD/containerd.sock" version
  "$HERE/images/load.sh" "$IMAGES"/*.tar
}

start_kubelet() {
  mkdir -p "$KUBELET/manifests"
  fill_in kubelet.yaml >"$KUBELET/config.yaml"
  start_in_network kubelet nsenter --target "$(pid_of containerd)" --mount -- \
    env "${UNPACKED[@]}" "$KUBERNETES" kubelet --config="$KUBELET/config.yaml" --kubeconfig="$CERTIFICATES/kubelet.kubeconfig" \
    --root-dir="$KUBELET" --cert-dir="$KUBELET/pki" --hostname-override=$NODE --node-ip=$NODE_IP --node-labels=type=real
}

start_proxy() {
  # Zeroes: the machine's connection tracking limits are not ours to set.
  start_in_network kube-proxy env "${UNPACKED[@]}" "$KUBERNETES" kube-proxy \
    --kubeconfig="$CERTIFICATES/kube-proxy.kubeconfig" --proxy-mode=nftables --hostname-override=$NODE \
    --cluster-cidr=$POD_RANGE --bind-address=$NODE_IP \
    --healthz-bind-address=127.0.0.1:10256 --metrics-bind-address=127.0.0.1:10249 \
    --conntrack-max-per-core=0 --conntrack-min=0 \
    --conntrack-tcp-timeout-established=0s --conntrack-tcp-timeout-close-wait=0s
}

node_is_ready() { kubectl wait --for=condition=Ready "node/$NODE" --timeout=1s; }

# How unpacked programs find each other and their libraries.
UNPACKED=("PATH=$PACKAGES/usr/sbin:$PACKAGES/usr/bin:$PATH" "LD_LIBRARY_PATH=$(echo "$PACKAGES"/usr/lib/*-linux-gnu)")

make_cgroups
start_containerd
start_kubelet
start_proxy
wait_until "ready node" 90 kubelet node_is_ready
