#!/usr/bin/env bash
# Makes .venv if it is missing, installs the test extra and runs the whole suite; arguments go to pytest. Each core runs
# tests of its own: one thread a process is faster than all threads in one, which wait for each other between layers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_zoo ".[test]"
OMP_NUM_THREADS=1 "$python" -m pytest -n auto --maxprocesses 8 --dist worksteal "$@"
