#!/usr/bin/env bash
# Builds the documentation into outputs/site; any warning is an error. Arguments go to `mkdocs build`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_zoo ".[docs]"
"$python" -m mkdocs build --strict "$@"
