#!/usr/bin/env bash
# Makes .venv, installs the zoo, trains a small backbone on handwritten digits, lets it read digits that it has not seen,
# and looks at a photograph through a feature pyramid.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_zoo ".[train]"

run=outputs/quickstart
rm -rf "$run"
"$zoo" train digits --epochs 5 --output "$run"
"$zoo" predict "$run"/digits/validation/[0-9]/00*.png --checkpoint "$run/best.safetensors" --topk 1

photo=$("$python" -c "import matplotlib.cbook as c; print(c.get_sample_data('grace_hopper.jpg', asfileobj=False))")
echo "Photograph: $photo"
"$zoo" info davit_tiny
"$zoo" features "$photo" --model davit_tiny --output outputs/davit_pyramid.png
"$zoo" features "$photo" --model maxvit_tiny_tf_224 --output outputs/maxvit_pyramid.png
echo "Next: open $run/curves.png and outputs/davit_pyramid.png, then try '.venv/bin/zoo train digits' for the whole recipe,"
echo "'.venv/bin/zoo list' and '.venv/bin/zoo features YOUR.jpg --pretrained'."
