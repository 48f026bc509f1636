#!/usr/bin/env bash
# The suite on every Python from 3.10 to 3.14 that this machine has, one after the other, each in a fresh virtual
# environment.  Python 3.10 gets the lowest packages that pyproject.toml allows, the others get the newest.
# Prints a line for each version, with the tests that failed.  The exit code is 1 if one failed.
#
#     tests/versions.sh [OPTION OF PYTEST ...]       such as --backend strict, or -m process
#
# .ci/run reads the functions below with `source`.

# The interpreters, the lowest first, one for each version: on the PATH, else pyenv's, else uv's.
pythons() {
  local minor python
  for minor in 10 11 12 13 14; do
    for python in "python3.$minor" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/3.$minor"[.-]*/bin/python \
      "$(UV_PYTHON_DOWNLOADS=never uv python find "3.$minor" 2>/dev/null)"; do
      # A name that pyenv puts on the PATH may not work, and Debian's Python may lack venv.  No free threads.
      if "$python" -c "import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, $minor) or 't' in sys.abiflags)" \
        2>/dev/null; then
        echo "$python"
        break
      fi
    done
  done
}

# make_venv PYTHON FOLDER: a virtual environment with the package and what its tests need.  Only Python 3.10, the lowest
# that pyproject.toml allows, gets the lowest packages: they have no wheels for the newest Python.
make_venv() {
  "$1" -m venv "$2"
  if "$2/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))'; then
    grep -E '^(dependencies|test) = ' pyproject.toml | grep -oE '[a-z-]+>=[0-9.]+' | sed 's/>=/==/' >"$2/packages.txt"
  else
    touch "$2/packages.txt"
  fi
  "$2/bin/python" -m pip install --quiet --constraint "$2/packages.txt" --editable ".[test]"
}

# versions FOLDER: "Python 3.10.13, NumPy 2.0.0, matplotlib 3.8.4" of a virtual environment
versions() {
  "$1/bin/python" -c 'import platform, matplotlib, numpy
print(f"Python {platform.python_version()}, NumPy {numpy.__version__}, matplotlib {matplotlib.__version__}")'
}

main() {
  local found folder python failed=0
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  found=$(pythons)
  [ -n "$found" ] || { echo "no Python from 3.10 to 3.14 with venv: install one with pyenv, uv or apt-get" >&2; exit 1; }
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  for python in $found; do
    make_venv "$python" "$folder/venv"
    PATH="$folder/venv/bin:$PATH" CI=1 MPLBACKEND=agg python -m pytest -q "$@" >"$folder/log" 2>&1 || failed=1
    echo "$(versions "$folder/venv"): $(tail -1 "$folder/log")"
    grep -E '^(FAILED|ERROR)' "$folder/log" || true
    rm -rf "$folder/venv"
  done
  exit "$failed"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then set -euo pipefail; main "$@"; fi
