#!/bin/sh
# Everything that wants a CUDA GPU and is not a training run: does the code give a CPU's numbers there, and how fast is it.
#   sh benchmarks/gpu.sh [FOLDER]
# Ends within ten minutes; what is measured is kept in FOLDER, and the same command goes on from there.
set -eu
cd "$(dirname "$0")/.."
out=${1:-records/speed-on-cuda}
python=${PYTHON:-python3}
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
if ! test -f "$out/tests.txt"; then
  "$python" -m pytest -q -m cuda > "$out/tests.part" 2>&1 && ok=0 || ok=$?
  tail -15 "$out/tests.part"
  mv "$out/tests.part" "$out/tests.txt"
  test "$ok" -eq 0 || echo "Some CUDA tests failed; see $out/tests.txt." >&2
fi
test -f "$out/kernels.txt" || {
  "$python" benchmarks/kernels.py --device cuda --shape 1024 4 96 128 > "$out/kernels.part"
  mv "$out/kernels.part" "$out/kernels.txt"
}
cat "$out/kernels.txt"
"$python" benchmarks/speed.py "$out" --device cuda --seconds 420
