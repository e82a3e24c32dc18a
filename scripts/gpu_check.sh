#!/usr/bin/env bash
# On a machine with a GPU: the tests that need one and all tests of kernels, then benchmarks of kernels and of models.
# Results are appended to benchmarks/kernels.csv and benchmarks/models.csv; benchmarks/gpu.md and gpu.png show them.
# Arguments go to scripts/bench_models.py: `--peer FILE` for published code (see there).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

no_gpu() {
  echo "No GPU: $1. This script needs an NVIDIA GPU of compute capability 7.5 or later, or an AMD GPU with ROCm." >&2
  echo "Without one, run scripts/test.sh, scripts/bench_kernels.py and scripts/aot_report.py." >&2
  exit 1
}

if ! command -v nvidia-smi >/dev/null && [ ! -e /dev/kfd ]; then
  no_gpu "neither nvidia-smi nor /dev/kfd is there"
fi
source scripts/environment.sh
install_zoo ".[test]"
"$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || no_gpu "PyTorch finds none"
"$python" -c "import torch; print(torch.cuda.get_device_name(), 'with torch', torch.__version__)"

status=0
"$python" -m pytest tests/kernels || status=1
"$python" -m pytest -m gpu --ignore tests/kernels || [ $? = 5 ] || status=1  # 5: none outside of tests/kernels
"$python" scripts/bench_kernels.py --device cuda --batch 64 --dtype bfloat16 --dtype float16 \
  --csv benchmarks/kernels.csv --markdown benchmarks/gpu.md --plot benchmarks/gpu.png || status=1
models=(davit_tiny maxvit_tiny_tf_224 nat_tiny dinat_tiny biformer_tiny transnext_micro crossformer_tiny litv2_s)
"$python" scripts/bench_models.py "${models[@]/#/--model=}" --device cuda --batch 64 --dtype bfloat16 \
  --pass forward --pass training --csv benchmarks/models.csv "$@" || status=1
if [ $status = 0 ]; then
  echo "All passed. Results: benchmarks/gpu.md, gpu.png, kernels.csv and models.csv."
else
  echo "Something failed, see above. Results so far: benchmarks/." >&2
fi
exit $status
