#!/usr/bin/env bash
# Ends with one line that names what this machine lacks to run the cluster; says nothing where all is there.
set -euo pipefail
. "$(dirname "$0")/settings.sh"

# need COMMAND PACKAGE
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$1 (Debian package $2)"); }

[ "$(uname -s)" = Linux ] || fail "Linux is needed, this is $(uname -s): set KUBECONFIG to a cluster of your own"
[ "$(id -u)" = 0 ] || fail "root is needed (network namespaces, containers): use sudo, or set KUBECONFIG to a cluster of your own"

missing=()
need apt-get "apt; other distributions: set KUBECONFIG to a cluster of your own"
need dpkg-deb dpkg
need flock util-linux
need ip iproute2
need nsenter util-linux
need openssl openssl
need "$PYTHON" python3
need setsid util-linux
need unshare util-linux
[ ${#missing[@]} = 0 ] || fail "missing: $(printf '%s; ' "${missing[@]}" | sed 's/; $//')"

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || fail "Python 3.11 or newer is needed, $PYTHON is $("$PYTHON" -V 2>&1): name another with make PYTHON=python3.12"
[ -e /sys/fs/cgroup ] || fail "missing: a cgroup file system at /sys/fs/cgroup"
grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || fail "missing: the kernel's overlay file system (modprobe overlay)"

built=true
for binary in "$KUBERNETES" "$KWOK" "$COREDNS" "$PAUSE"; do [ -x "$binary" ] || built=false; done
if ! $built; then
  command -v go >/dev/null 2>&1 || fail "missing: go 1.26 or newer in PATH (it builds Kubernetes, once on a machine)"
  version=$(GOTOOLCHAIN=local go env GOVERSION)
  printf 'go1.26\n%s\n' "$version" | sort --check=quiet --version-sort \
    || fail "go 1.26 or newer is needed, $(command -v go) is $version"
fi
