#!/usr/bin/env bash
# Makes .venv, installs the zoo, and looks at a photograph through a feature pyramid.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_zoo .

photo=$("$python" -c "import matplotlib.cbook as c; print(c.get_sample_data('grace_hopper.jpg', asfileobj=False))")
echo "Photograph: $photo"
"$zoo" info davit_tiny
"$zoo" features "$photo" --model davit_tiny --output outputs/davit_pyramid.png
"$zoo" features "$photo" --model maxvit_tiny_tf_224 --output outputs/maxvit_pyramid.png
echo "Next: open outputs/davit_pyramid.png, then try '.venv/bin/zoo list' and '.venv/bin/zoo features YOUR.jpg --pretrained'."
