#!/usr/bin/env bash
# Starts etcd, API server, scheduler and controller manager in the cluster's network namespace, and the forwarder that lets
# the machine's own network reach the API server.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
. "$HERE/processes.sh"

ETCD=http://127.0.0.1:$ETCD_PORT
ETCD_PEER=http://127.0.0.1:$((ETCD_PORT + 1))
# The default client limits (20 to 50 requests a second) make 1,000 pods take twice as long.
FAST_CLIENT=(--kube-api-qps=500 --kube-api-burst=1000)

start_etcd() {
  # No fsync: this store does not outlive the cluster.
  start_in_network etcd "$KUBERNETES" etcd --name default --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls "$ETCD" --advertise-client-urls "$ETCD" \
    --listen-peer-urls "$ETCD_PEER" --initial-advertise-peer-urls "$ETCD_PEER" --initial-cluster "default=$ETCD_PEER" \
    --quota-backend-bytes 2147483648
}

start_api_server() {
  start_in_network kube-apiserver "$KUBERNETES" kube-apiserver \
    --etcd-servers="$ETCD" --secure-port=$API_PORT --bind-address=0.0.0.0 --advertise-address=$NODE_IP \
    --service-cluster-ip-range=$SERVICE_RANGE --authorization-mode=Node,RBAC --allow-privileged=true --profiling=false \
    --client-ca-file="$CERTIFICATES/ca.crt" \
    --tls-cert-file="$CERTIFICATES/kube-apiserver.crt" --tls-private-key-file="$CERTIFICATES/kube-apiserver.key" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$CERTIFICATES/service-accounts.pub" \
    --service-account-signing-key-file="$CERTIFICATES/service-accounts.key" \
    --kubelet-client-certificate="$CERTIFICATES/kubelet-client.crt" \
    --kubelet-client-key="$CERTIFICATES/kubelet-client.key" \
    --kubelet-certificate-authority="$CERTIFICATES/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --requestheader-client-ca-file="$CERTIFICATES/ca.crt" --requestheader-allowed-names=front-proxy-client \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$CERTIFICATES/front-proxy-client.crt" \
    --proxy-client-key-file="$CERTIFICATES/front-proxy-client.key" \
    --audit-policy-file="$HERE/config/audit-policy.yaml" --audit-log-path="$LOGS/audit.jsonl" --audit-log-mode=batch
}

start_scheduler() {
  local config=$CERTIFICATES/kube-scheduler.kubeconfig
  start_in_network kube-scheduler "$KUBERNETES" kube-scheduler --kubeconfig="$config" "${FAST_CLIENT[@]}" \
    --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" --leader-elect=false --bind-address=127.0.0.1
}

start_controller_manager() {
  # A node counts as lost after 20 s rather than 50: tests kill nodes and wait for it.
  start_in_network kube-controller-manager "$KUBERNETES" kube-controller-manager \
    --kubeconfig="$CERTIFICATES/kube-controller-manager.kubeconfig" "${FAST_CLIENT[@]}" \
    --leader-elect=false --bind-address=127.0.0.1 --use-service-account-credentials=true \
    --service-account-private-key-file="$CERTIFICATES/service-accounts.key" --root-ca-file="$CERTIFICATES/ca.crt" \
    --cluster-signing-cert-file="$CERTIFICATES/ca.crt" --cluster-signing-key-file="$CERTIFICATES/ca.key" \
    --node-monitor-period=2s --node-monitor-grace-period=20s
}

start_etcd
start_api_server
start api-forwarder "$PYTHON" "$HERE/api_forwarder.py" $API_PORT "/run/netns/$NETNS"
wait_until "ready API server" 120 kube-apiserver kubectl get --raw=/readyz
start_scheduler
start_controller_manager
wait_until "default service account" 60 kube-controller-manager kubectl get serviceaccount default
alive api-forwarder || fail "127.0.0.1:$API_PORT can't be used: $(tail -n 1 "$LOGS/api-forwarder.log")"
