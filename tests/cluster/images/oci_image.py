"""Makes an image that `ctr images import` takes out of a folder: no registry, no daemon, standard library only.

In: a root folder, a name, an entry point. Out: a tar in the OCI image layout with one uncompressed layer. The same folder
always gives the same bytes: owners, times and the order of names are fixed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import platform
import tarfile
import tempfile
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SEARCH_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Forget who built the image and when."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def write_layer(file: io.BufferedRandom, root: Path) -> dict[str, Any]:
    """Write `root`'s content as a layer, and describe it."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as layer:
        for path in sorted(root.iterdir()):
            layer.add(path, arcname=path.name, filter=owned_by_root)
    size = file.tell()
    file.seek(0)
    return {"mediaType": LAYER, "digest": f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", "size": size}


def add_bytes(image: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member that lies in memory."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    image.addfile(member, io.BytesIO(content))


def add_json(image: tarfile.TarFile, media_type: str, value: object) -> dict[str, Any]:
    """Add `value` as a blob, and describe it."""
    content = json.dumps(value, sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()
    add_bytes(image, f"blobs/sha256/{digest}", content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def write_image(out: Path, name: str, root: Path, entrypoint: list[str], environment: list[str]) -> None:
    """Write the image: its layer first to a file of its own, since the digest comes before the content."""
    architecture = ARCHITECTURES[platform.machine()]
    with tempfile.TemporaryFile(dir=out.parent) as layer_file, tarfile.open(out, "w") as image:
        layer = write_layer(layer_file, root)
        member = tarfile.TarInfo("blobs/sha256/" + layer["digest"].removeprefix("sha256:"))
        member.size = layer["size"]
        layer_file.seek(0)
        image.addfile(member, layer_file)
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": entrypoint, "Env": [SEARCH_PATH, *environment]},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        }
        description = add_json(image, CONFIG, config)
        manifest = add_json(
            image, MANIFEST, {"schemaVersion": 2, "mediaType": MANIFEST, "config": description, "layers": [layer]}
        )
        manifest["annotations"] = {
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name.rpartition(":")[2],
        }
        manifest["platform"] = {"architecture": architecture, "os": "linux"}
        add_bytes(image, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        add_bytes(image, "index.json", json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode())


def main() -> None:
    """Read the command line and write the image."""
    parser = argparse.ArgumentParser(description="an OCI image out of a folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", required=True, help="such as inferengine.local/engine:1")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--entrypoint", nargs="*", default=[])
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    write_image(given.out, given.name, given.root, given.entrypoint, given.env)


if __name__ == "__main__":
    main()
