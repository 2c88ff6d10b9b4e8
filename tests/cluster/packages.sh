#!/usr/bin/env bash
# Unpacks the container runtime, the CNI plugins and nft under $PACKAGES. Nothing is installed and no service is started:
# the machine's own packages stay as they are.
set -euo pipefail
. "$(dirname "$0")/settings.sh"

NAMES=(containerd runc containernetworking-plugins nftables conntrack
  libbsd0 libedit2 libgmp10 libjansson4 libmd0 libmnl0 libnetfilter-conntrack3 libnfnetlink0 libnftables1 libnftnl11 libseccomp2 libxtables12)

[ ! -d "$PACKAGES" ] || exit 0
say "unpacking ${NAMES[*]}"
unfinished=$PACKAGES.unfinished
rm -rf "$unfinished" && mkdir -p "$unfinished/downloads"
# Without the sandbox user apt can write into a folder that only root may enter.
download() { (cd "$unfinished/downloads" && apt-get -qq -o APT::Sandbox::User=root download "${NAMES[@]}"); }
if ! download 2>/dev/null; then
  say "apt's lists are missing or old: apt-get update"
  apt-get -qq update
  download || fail "apt-get could not download ${NAMES[*]}: see the lines above"
fi
for file in "$unfinished"/downloads/*.deb; do dpkg-deb -x "$file" "$unfinished"; done
rm -r "$unfinished/downloads"
mv "$unfinished" "$PACKAGES"
