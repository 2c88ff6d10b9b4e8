# Sourced: buildah on this machine without an installation, and a base image out of the machine's own package sources.
# Out: $PRODUCT, where all of it is kept, and the function `buildah`. make_builder needs the network, and does nothing later on.

PRODUCT=$CACHE/product-$(source_key images/builder.sh /etc/os-release)
BUILDER_PACKAGES=(buildah mmdebstrap libassuan0 libdevmapper1.02.1 libgpg-error0 libgpgme11 libseccomp2)
BASE_PACKAGES=ca-certificates,python3,python3-venv
BASE=localhost/base:1

# chroot: needs no container runtime. buildah calls itself with an empty environment, so its libraries are told by a cache of the
# dynamic linker's that it sees instead of the machine's; LD_LIBRARY_PATH would be lost.
buildah() {
  BUILDAH_ISOLATION=chroot CONTAINERS_CONF=$PRODUCT/empty.conf CONTAINERS_REGISTRIES_CONF=$PRODUCT/empty.conf \
    unshare --mount -- sh -c 'mount --bind "$0" /etc/ld.so.cache && exec "$@"' "$PRODUCT/ld.so.cache" \
    "$PRODUCT/unpacked/usr/bin/buildah" --root "$PRODUCT/storage" --runroot "$PRODUCT/run" --storage-driver overlay "$@"
}

make_builder() {
  [ ! -e "$PRODUCT/made" ] || return 0
  local suite sources=() file
  command -v perl >/dev/null || fail "missing: perl (Debian package perl)"
  suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  [ -n "$suite" ] || fail "/etc/os-release names no VERSION_CODENAME: images are made of the packages of a Debian release"
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ ! -s "$file" ] || sources+=("$file")
  done
  say "a base image out of the packages of $suite"
  rm -rf "$PRODUCT" && mkdir -p "$PRODUCT/downloads"
  (cd "$PRODUCT/downloads" && apt-get -qq -o APT::Sandbox::User=root download "${BUILDER_PACKAGES[@]}") \
    || fail "apt-get could not download ${BUILDER_PACKAGES[*]}: see the lines above; perhaps apt-get update"
  for file in "$PRODUCT"/downloads/*.deb; do dpkg-deb -x "$file" "$PRODUCT/unpacked"; done
  printf '%s\n' 'include /etc/ld.so.conf' "$(echo "$PRODUCT"/unpacked/usr/lib/*-linux-gnu)" >"$PRODUCT/ld.so.conf"
  "$(PATH=$PATH:/usr/sbin:/sbin command -v ldconfig)" -X -C "$PRODUCT/ld.so.cache" -f "$PRODUCT/ld.so.conf"
  : >"$PRODUCT/empty.conf"
  echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$PRODUCT/policy.json"
  PATH="$PRODUCT/unpacked/usr/bin:$PATH" SOURCE_DATE_EPOCH=0 mmdebstrap --quiet --mode=root --variant=minbase --include=$BASE_PACKAGES \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$PRODUCT/base.tar" "${sources[@]}"
  printf 'FROM scratch\nADD base.tar /\n' >"$PRODUCT/Containerfile"
  buildah build --quiet --signature-policy "$PRODUCT/policy.json" --tag $BASE --file "$PRODUCT/Containerfile" "$PRODUCT" >/dev/null
  rm -r "$PRODUCT"/{downloads,base.tar,Containerfile}
  touch "$PRODUCT/made"
}
