#!/usr/bin/env bash
# Makes the cluster's own images as tar files in $IMAGES, with no registry:
#   pause    holds a pod's namespaces open
#   coredns  answers names in pods
#   hostpy   empty folders only: a pod mounts the machine's /usr, Python and clone there (see ../hostpy.py)
set -euo pipefail
. "$(dirname "$0")/../settings.sh"

[ ! -d "$IMAGES" ] || exit 0
say "making images"
unfinished=$IMAGES.unfinished
rm -rf "$unfinished" && mkdir -p "$unfinished"
image() { "$PYTHON" "$HERE/images/oci_image.py" --out "$unfinished/$1.tar" --name "inferengine.local/$1:1" --root "$unfinished/$1" "${@:2}"; }

mkdir "$unfinished/pause" && cp "$PAUSE" "$unfinished/pause/"
image pause --entrypoint /pause

mkdir "$unfinished/coredns" && cp "$COREDNS" "$unfinished/coredns/"
image coredns --entrypoint /coredns

# Debian's merged layout, so that the machine's programs find their libraries and interpreters by the usual paths.
hostpy=$unfinished/hostpy
mkdir -p "$hostpy"/{dev,etc,home,opt,proc,root,run,sys,tmp,usr,var}
chmod 1777 "$hostpy/tmp"
for folder in bin lib lib64 sbin; do ln -s "usr/$folder" "$hostpy/$folder"; done
printf 'root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532:nonroot:/tmp:/bin/sh\n' >"$hostpy/etc/passwd"
printf 'root:x:0:\nnonroot:x:65532:\n' >"$hostpy/etc/group"
image hostpy

rm -r "$unfinished"/{pause,coredns,hostpy}
mv "$unfinished" "$IMAGES"
