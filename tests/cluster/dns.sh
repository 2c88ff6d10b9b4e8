#!/usr/bin/env bash
# Runs CoreDNS as a pod, at the address that the kubelet writes into every pod's resolv.conf.
set -euo pipefail
. "$(dirname "$0")/settings.sh"

sed -e "s|@DNS_SERVICE_IP@|$DNS_SERVICE_IP|g" "$HERE/config/dns.yaml" | kubectl apply -f - >/dev/null
kubectl --namespace kube-system rollout status deployment/coredns --timeout=90s >/dev/null \
  || fail "CoreDNS did not start: kubectl --namespace kube-system describe pods"
