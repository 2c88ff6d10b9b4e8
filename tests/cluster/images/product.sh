#!/usr/bin/env bash
# product.sh [--build-only]: builds the platform's two images as their users do, from images/Containerfile, and gives them to the
# real node of the running cluster. Prints "operator=NAME" and "engine=NAME". The first build on a machine needs the network and
# minutes; after that, as long as the dependencies stay, it needs seconds and no network, so that a test may call it.
#
# torch for CPUs alone is in an index that not every machine reaches, hence TORCH=cpu-only.
set -euo pipefail
. "$(dirname "$0")/../settings.sh"
. "$HERE/images/builder.sh"

[ $# = 0 ] || [ "$*" = --build-only ] || fail "usage: images/product.sh [--build-only]"
VERSION=$(sed -n 's/^appVersion: *//p' "$REPOSITORY/charts/inferengine/Chart.yaml")
CTR=("$STATE/bin/ctr" --address "$CONTAINERD/containerd.sock" --namespace k8s.io)
NODES_BLOBS=$CONTAINERD/root/io.containerd.content.v1.content/blobs/sha256
UV_CACHE=${UV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/uv}

# The machine's own way to a package index, seen by a build as if it were the image's.
machine_settings() {
  local authorities=/etc/ssl/certs/ca-certificates.crt
  mkdir -p "$PRODUCT/settings" "$UV_CACHE"
  {
    echo 'system-certs = true'
    [ -z "${UV_DEFAULT_INDEX:-}" ] || printf 'index-url = "%s"\n' "$UV_DEFAULT_INDEX"
  } >"$PRODUCT/settings/uv.toml"
  {
    cat /etc/pip.conf 2>/dev/null || echo '[global]'
    [ -z "${PIP_INDEX_URL:-}" ] || printf '[install]\nindex-url = %s\n' "$PIP_INDEX_URL"
  } >"$PRODUCT/settings/pip.conf"
  SETTINGS=(--volume "$PRODUCT/settings/uv.toml:/etc/uv/uv.toml:ro" --volume "$PRODUCT/settings/pip.conf:/etc/pip.conf:ro"
    --volume "$UV_CACHE:/var/cache/uv" --build-arg UV_CACHE_DIR=/var/cache/uv)
  [ ! -e $authorities ] || SETTINGS+=(--volume "$authorities:$authorities:ro")
}

# build TARGET: an image localhost/TARGET.
build() {
  buildah build --layers --signature-policy "$PRODUCT/policy.json" "${SETTINGS[@]}" --build-arg BASE=$BASE --build-arg TORCH=cpu-only \
    --build-arg VERSION="$VERSION" --target "$1" --tag "localhost/$1" --file "$REPOSITORY/images/Containerfile" "$REPOSITORY" \
    >"$PRODUCT/$1.log" 2>&1 || fail "the image of $1 could not be built; the end of $PRODUCT/$1.log: $(tail -n 5 "$PRODUCT/$1.log")"
}

# give TARGET: to the node. Layers that it has are not written again: where their files would be in the exported folder, there
# are links to the node's own.
give() {
  local folder container
  folder=$(mktemp -d -p "$PRODUCT")
  mkdir -p "$folder/blobs/sha256"
  find "$NODES_BLOBS" -type f -exec ln -s -t "$folder/blobs/sha256" {} +
  container=$(buildah from --pull-never --signature-policy "$PRODUCT/policy.json" "localhost/$1")
  buildah commit --quiet --rm --disable-compression --timestamp 0 --signature-policy "$PRODUCT/policy.json" "$container" "oci:$folder:$VERSION" >/dev/null
  (cd "$folder" && find . -type f -print0 | tar -cf - --null --files-from -) \
    | "${CTR[@]}" images import --base-name "inferengine.local/inferengine-$1" - >/dev/null
  rm -r "$folder"
  echo "$1=inferengine.local/inferengine-$1:$VERSION"
}

# forget_replaced: images that have lost their name to a newer one; the kubelet would leave them until its disk is nearly full.
forget_replaced() {
  local images
  images=$("${CTR[@]}" images list | tail -n +2)
  awk '$1 ~ /^sha256:/ {replaced[$1] = $3; next} {named[$3]}
    END {for (image in replaced) if (!(replaced[image] in named)) print image}' <<<"$images" \
    | xargs --no-run-if-empty "${CTR[@]}" images rm --sync >/dev/null
}

mkdir -p "$CACHE"
exec 8>>"$CACHE/product.lock"
flock 8
make_builder
machine_settings
say "images of the platform (the first time on a machine: some minutes)"
for target in project operator engine; do build $target; done
# What a broken off build was at, and what only earlier builds were made of.
buildah rm --all >/dev/null
buildah rmi --prune >/dev/null
[ $# = 0 ] || exit 0
for target in operator engine; do give $target; done
forget_replaced
