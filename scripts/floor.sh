#!/usr/bin/env bash
# Makes .venv-floor with the oldest packages that are supported (scripts/floor.txt), on the oldest Python that is at hand,
# and runs the quick tests that depend on them most; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for candidate in "${PYTHON:-}" python3.10 "$(pyenv prefix 3.10 2>/dev/null || true)/bin/python" python3.11 python3; do
  if "$candidate" -c "" 2>/dev/null; then
    PYTHON=$candidate
    break
  fi
done
ZOO_VENV=${ZOO_VENV_FLOOR:-.venv-floor}
source scripts/environment.sh
install_zoo ".[clients,export,train]" --constraint scripts/floor.txt pytest pytest-xdist hypothesis
quick=(tests/clients tests/weights tests/kernels/test_native.py tests/kernels/test_trust.py tests/test_goldens.py)
quick+=(tests/test_export.py tests/test_timm.py tests/test_traces.py tests/training/test_train.py)
OMP_NUM_THREADS=1 "$python" -m pytest -n auto --maxprocesses 8 --dist worksteal -q -m "not slow" "${quick[@]}" "$@"
