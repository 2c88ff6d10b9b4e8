# Sourced by every script of this folder: where things lie, which addresses are used, how a script complains.
# Nothing is done here but to compute names.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(cd "$HERE/../.." && pwd)

# What is built once and may be used by every clone on the machine.
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/inferengine/cluster
# What one running cluster owns. The place is the same for every clone and user setting: it is also how a second clone
# finds out that a cluster is up.
STATE=/var/lib/inferengine-cluster
CERTIFICATES=$STATE/certificates
LOGS=$STATE/logs
PIDS=$STATE/pids
CONTAINERD=$STATE/containerd
KUBELET=$STATE/kubelet
CLUSTER_KUBECONFIG=$STATE/kubeconfig

NETNS=inferengine-cluster
CGROUP=inferengine-cluster
NODE=real-0
NODE_IP=10.200.0.1
API_PORT=26443
ETCD_PORT=2379
SERVICE_RANGE=10.96.0.0/16
KUBERNETES_SERVICE_IP=10.96.0.1
DNS_SERVICE_IP=10.96.0.10
POD_RANGE=10.244.0.0/24
# kwok invents addresses for the pods of its nodes; nothing routes there.
FAKE_POD_RANGE=10.245.0.0/16

PYTHON=${PYTHON:-python3}

say() { printf '>> %s\n' "$*" >&2; }
fail() { printf 'cluster: %s\n' "$*" >&2; exit 1; }

# users_cluster: whether KUBECONFIG names a cluster that these scripts did not start (kind, k3d, a real one).
users_cluster() { [ -n "${KUBECONFIG:-}" ] && [ "$KUBECONFIG" != "$CLUSTER_KUBECONFIG" ]; }

# source_key PATH...: a hash of files' contents and names, by which built things are kept.
source_key() { (cd "$HERE" && find "$@" -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum | cut -c1-16; }

# program NAME: the folder of a program built from binaries/NAME.
program() { printf '%s/%s-%s' "$CACHE" "$1" "$(source_key "binaries/$1")"; }

KUBERNETES=$(program kubernetes)/kk
KWOK=$(program kwok)/kwok
COREDNS=$(program coredns)/coredns
PAUSE=$(program pause)/pause
PACKAGES=$CACHE/packages-$(source_key packages.sh /etc/os-release)
IMAGES=$CACHE/images-$(source_key images/build.sh images/oci_image.py binaries/coredns binaries/pause)

# The newest client, whatever the machine's own kubectl is.
kubectl() { in_network "$STATE/bin/kubectl" --kubeconfig "$CLUSTER_KUBECONFIG" "$@"; }

# in_network COMMAND...: runs it in the cluster's network namespace. Not `ip netns exec`, which remounts /sys and so hides
# the cgroups from the kubelet.
in_network() { nsenter --net="/run/netns/$NETNS" -- "$@"; }

# Folders that containerd, the CNI library and the kubelet use whatever their settings say.
FIXED_FOLDERS=(/run/containerd /var/lib/cni /var/lib/kubelet /var/log/containers /var/log/pods)
