#!/bin/sh
# build.sh [operator|engine|engine-cuda]...: the images, by what is here of docker, podman and buildah; without names the first two.
# In: BUILDER (one of the three), REGISTRY (what stands before the names, such as registry.example.com/team; default none),
# IMAGE_ARGS (further arguments of the build, such as "--build-arg TORCH=cpu-only").
set -eu
cd "$(dirname "$0")/.."
VERSION=$(sed -n 's/^appVersion: *//p' charts/inferengine/Chart.yaml)

fail() { printf 'images: %s\n' "$*" >&2; exit 1; }

# usable TOOL: also a service that it needs has to answer.
usable() { command -v "$1" >/dev/null 2>&1 && "$1" info >/dev/null 2>&1; }

if [ -z "${BUILDER:-}" ]; then
  for tool in docker podman buildah; do
    ! usable "$tool" || { BUILDER=$tool; break; }
  done
fi
[ -n "${BUILDER:-}" ] || fail "docker, podman or buildah is needed, and none of them is here and works (docker needs its service)"

[ $# -gt 0 ] || set -- operator engine
for image in "$@"; do
  name=${REGISTRY:+$REGISTRY/}inferengine-${image%-cuda}:$VERSION
  case $image in
    operator | engine) torch= ;;
    engine-cuda) name=$name-cuda torch="--build-arg TORCH=cuda" ;;
    *) fail "no image $image: there are operator, engine, engine-cuda" ;;
  esac
  # shellcheck disable=SC2086 # several words each
  "$BUILDER" build --file images/Containerfile --target "${image%-cuda}" --build-arg "VERSION=$VERSION" $torch ${IMAGE_ARGS:-} --tag "$name" .
  printf '%s\n' "$name"
done
