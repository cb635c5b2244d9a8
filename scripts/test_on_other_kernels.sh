#!/usr/bin/env bash
# Runs the tests as other processors compute: under every choice of kernels that the maths libraries offer, with one
# and with two threads. Arguments go to pytest. MKL heeds its settings on Intel processors only.
#
#   scripts/test_on_other_kernels.sh tests/models tests/checkpoints
set -uo pipefail
cd "$(dirname "$0")/.."
settings=(
    ""
    "MKL_CBWR=COMPATIBLE"
    "MKL_ENABLE_INSTRUCTIONS=AVX2"
    "ATEN_CPU_CAPABILITY=avx2"
    "ATEN_CPU_CAPABILITY=default"
    "ONEDNN_MAX_CPU_ISA=AVX2"
)
failed=0
for setting in "${settings[@]}"; do
    for threads in 1 2; do
        echo "== ${setting:-default kernels}, $threads threads"
        env ${setting:+"$setting"} OMP_NUM_THREADS="$threads" python3 -m pytest -q "$@" || failed=1
    done
done
exit "$failed"
