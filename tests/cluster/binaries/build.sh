#!/usr/bin/env bash
# Builds kk (all of Kubernetes), kwok, CoreDNS and pause from the Go modules beside this script, each into a cache folder
# named by the hash of its sources: once on a machine, whatever the number of clones.
set -euo pipefail
. "$(dirname "$0")/../settings.sh"

export GOTOOLCHAIN=local # a surprise download of another toolchain would hide what is needed
export GOFLAGS=          # what the user set for their own modules
export CGO_ENABLED=0     # static: CoreDNS and pause run in images that hold nothing else

# build MODULE BINARY PACKAGE [LDFLAGS]: `nice`, since a first build keeps all cores busy for minutes.
build() {
  local folder target=$2 unfinished
  folder=$(dirname "$target")
  [ ! -x "$target" ] || return 0
  say "building $(basename "$target")"
  unfinished=$folder.unfinished
  rm -rf "$unfinished" && mkdir -p "$unfinished"
  (cd "$HERE/binaries/$1" && nice go build -trimpath -buildvcs=false -ldflags "${4:--s -w}" -o "$unfinished/$(basename "$target")" "$3")
  [ "$1" != kwok ] || write_stages "$unfinished/stages.yaml"
  mv "$unfinished" "$folder" # a half-built folder never carries the final name
}

# write_stages FILE: how fake nodes and pods move from state to state. kwok has none built in; these are its own, from the
# module that it was built from.
write_stages() {
  local stages
  stages=$(cd "$HERE/binaries/kwok" && go list -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage
  find "$stages"/node/fast "$stages"/node/heartbeat-with-lease "$stages"/pod/fast -name '*.yaml' ! -name kustomization.yaml \
    | sort | while read -r file; do printf -- '---\n'; cat "$file"; done >"$1"
}

mkdir -p "$CACHE"
exec 9>"$CACHE/build.lock"
flock 9 # two clones that build at once would do the same work twice
build pause "$PAUSE" .
build coredns "$COREDNS" .
build kwok "$KWOK" sigs.k8s.io/kwok/cmd/kwok
build kubernetes "$KUBERNETES" . "$(cat "$HERE/binaries/kubernetes/ldflags")"
