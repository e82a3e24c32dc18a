#!/usr/bin/env bash
# Minutes on a GPU: installs this checkout without a network, if it is not installed, and runs scripts/gpu_check.py.
# Arguments go to it: none first, which compiles, checks and times the kernels; then `--phase families:60,peers:220,models`.
# PYTHON is the interpreter that has PyTorch and Triton, python3 by default; .venv is used where there is one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

installed() { # this very checkout
  (cd scripts && "$python" -c "import sys, pathlib, zoo.kernels as k
sys.exit(not pathlib.Path(k.__file__).samefile('../kernels/__init__.py'))" 2>/dev/null)
}

link_package() { # what an editable install does, where pip or setuptools are too old for ours
  package=$PWD/outputs/gpu-package
  mkdir -p "$package/zoo"
  ln -sfn "$PWD"/zoo/* "$PWD/kernels" "$PWD/configs" "$PWD/weights_manifest.yaml" "$package/zoo/"
  export PYTHONPATH=$package${PYTHONPATH:+:$PYTHONPATH}
}

if ! installed; then
  "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation --editable . || true
  installed || link_package
fi
exec "$python" scripts/gpu_check.py "$@"
