#!/usr/bin/env bash
# Writes $CERTIFICATES: one authority, a certificate for each program and for the administrator, the key that signs
# service-account tokens, and a kubeconfig with embedded certificates for each client. Made anew for each cluster.
set -euo pipefail
. "$(dirname "$0")/settings.sh"

rm -rf "$CERTIFICATES" && mkdir -p "$CERTIFICATES" && chmod 700 "$CERTIFICATES" && cd "$CERTIFICATES"
private_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key" 2>/dev/null; }

# certificate NAME SUBJECT USAGE [ALTERNATIVE_NAMES]
certificate() {
  private_key "$1"
  {
    echo "basicConstraints=CA:FALSE"
    echo "keyUsage=critical,digitalSignature,keyEncipherment"
    echo "extendedKeyUsage=$3"
    if [ $# -gt 3 ]; then echo "subjectAltName=$4"; fi
  } >"$1.extensions"
  openssl req -new -key "$1.key" -subj "$2" \
    | openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -sha256 -extfile "$1.extensions" -out "$1.crt" 2>/dev/null
  rm "$1.extensions"
}

# kubeconfig NAME FILE
kubeconfig() {
  cat >"$2" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: inferengine, cluster: {server: "https://127.0.0.1:$API_PORT", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
contexts: [{name: inferengine, context: {cluster: inferengine, user: $1}}]
current-context: inferengine
YAML
  chmod 600 "$2"
}

private_key ca
openssl req -x509 -new -key ca.key -sha256 -days 3650 -subj /CN=inferengine-test-cluster -out ca.crt \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
openssl genrsa -out service-accounts.key 2048 2>/dev/null
openssl rsa -in service-accounts.key -pubout -out service-accounts.pub 2>/dev/null

api_names=DNS:localhost,IP:127.0.0.1,IP:$KUBERNETES_SERVICE_IP,IP:$NODE_IP
for name in kubernetes kubernetes.default kubernetes.default.svc kubernetes.default.svc.cluster.local; do api_names+=,DNS:$name; done
certificate kube-apiserver /CN=kube-apiserver serverAuth "$api_names"
certificate kubelet-server "/O=system:nodes/CN=system:node:$NODE" serverAuth "DNS:$NODE,IP:127.0.0.1,IP:$NODE_IP"
certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
certificate front-proxy-client /CN=front-proxy-client clientAuth

certificate admin /O=system:masters/CN=admin clientAuth
certificate kwok /O=system:masters/CN=kwok clientAuth
certificate kubelet "/O=system:nodes/CN=system:node:$NODE" clientAuth
for component in kube-controller-manager kube-scheduler kube-proxy; do certificate $component /CN=system:$component clientAuth; done

for client in kwok kubelet kube-controller-manager kube-scheduler kube-proxy; do kubeconfig $client $client.kubeconfig; done
kubeconfig admin "$CLUSTER_KUBECONFIG"
