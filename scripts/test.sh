#!/usr/bin/env bash
# Makes .venv if it is missing, installs the test extra and runs the whole suite; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_zoo ".[test]"
"$python" -m pytest "$@"
