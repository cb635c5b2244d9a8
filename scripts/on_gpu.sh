#!/usr/bin/env bash
# Runs what needs a GPU, in at most eight minutes: the `gpu` tests, the calls of `tests/real_weights` on the miniature, then
# every benchmark on the device. JSON files go to $OUT (default: benchmarks/results). A PyTorch that is there already is used;
# for a machine without network give the folder of the other packages as WHEELS. `--dry-run` only prints the commands. Not run
# on a GPU yet.
#
#   scripts/on_gpu.sh
#   WHEELS=wheels OUT=results scripts/on_gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export LTX2_BENCHMARK_RESULTS="${OUT:-benchmarks/results}"
mkdir -p "$LTX2_BENCHMARK_RESULTS"
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
dry_run=${1:-}
failed=0

run() {
    echo "+ $*"
    [ "$dry_run" = --dry-run ] || "$@"
}

if [ -n "${WHEELS:-}" ]; then
    run python3 -m pip install --quiet --no-index --no-deps --target "$packages" "$WHEELS"/*.whl || failed=1
else
    run python3 -m pip install --quiet --upgrade-strategy only-if-needed '.[test]' || failed=1
fi
export PYTHONPATH="$PWD/src:$packages${PYTHONPATH:+:$PYTHONPATH}"
# A failing test does not keep the figures from being taken.
run timeout 110 python3 -m pytest -q -m gpu --junitxml="$LTX2_BENCHMARK_RESULTS/gpu_tests.xml" || failed=1
# Numbers in float32 are recorded for every machine; what memory a GPU needs is recorded by the first run on its kind.
run timeout 30 python3 -m pytest -q -m slow tests/real_weights --checkpoint ltx2-mini --dtype float32 --record-missing || failed=1
run cp tests/real_weights/records.json "$LTX2_BENCHMARK_RESULTS/real_weights.json" || failed=1
# The next ones write after every case. Most of their time is compiling; with a warm cache they take half of it.
run timeout 100 python3 -m benchmarks.step --quick --device cuda || failed=1
run timeout 30 python3 -m benchmarks.kernels --device cuda || failed=1
run timeout 90 python3 -m benchmarks.pipeline --quick --device cuda || failed=1
run timeout 50 python3 -m benchmarks.vae --quick --device cuda || failed=1
# Alone, on a card of 80 GB, it may take nine minutes.
run timeout 40 python3 -m benchmarks.gpu_memory || failed=1
# Some cases need the libraries for quantised weights; those that cannot run say so in their row.
run timeout 30 python3 -m benchmarks.training_step --quick --device cuda || failed=1
exit "$failed"
