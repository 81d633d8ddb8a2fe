#!/usr/bin/env bash
# Builds the extension in place, runs on a GPU what needs one, and prints what passed.
#
#   tools/gpu_check.sh [step...]    steps: build tests memcheck racecheck; all by default
#
# Needs python3 with torch, setuptools and pytest, and nvcc; installs nothing. Exit status 1 if a step
# failed. compute-sanitizer may be missing. Environment:
#   OUT         folder of the logs, one a step; default gpu-check
#   PYTHON      default python3
#   LIMIT       seconds that a step may take; default 1800
#   TEST_JOBS   test processes, where pytest-xdist is installed; default 4
#   REGOPS_CUDA_ARCHITECTURES, MAX_JOBS   as for setup.py; default the GPU's own, and all cores
set -uo pipefail

out=${OUT:-gpu-check}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
limit=${LIMIT:-1800}
steps=("$@")
[ $# -gt 0 ] || steps=(build tests memcheck racecheck)
rows=()
failed=0

row() { rows+=("$(printf '%-10s %-28s %7s' "$1" "$2" "$3")"); }

# run NAME COMMAND...: its output goes to a log, of which the end is shown where it failed.
run() {
  local name=$1 log=$out/$1.txt start=$SECONDS status
  shift
  echo "$name: $*"
  timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1
  status=$?
  case $status in
    0) row "$name" passed $((SECONDS - start)) ;;
    124 | 137) row "$name" "FAILED: over $limit s" $((SECONDS - start)) ;;
    *) row "$name" "FAILED: exit status $status" $((SECONDS - start)) ;;
  esac
  if [ $status -ne 0 ]; then
    failed=1
    tail -n 40 "$log"
  fi
  return $status
}

build() {
  local own
  own=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null)
  if [ -n "$own" ]; then
    export REGOPS_CUDA_ARCHITECTURES=${REGOPS_CUDA_ARCHITECTURES:-$own}
  fi
  MAX_JOBS=${MAX_JOBS:-$(nproc)} REGOPS_CUDA=1 run build "$python" setup.py build_ext --inplace
}

# Tests that need a GPU are skipped where there is none, and would pass.
device() {
  run device "$python" -c 'import regops, torch
print(torch.cuda.get_device_name(), torch.version.cuda, regops.info(), sep="\n")'
}

pytest=("$python" -m pytest -q -m gpu -p no:cacheprovider --continue-on-collection-errors)

tests() {
  local jobs=()
  if "$python" -c 'import xdist' 2>/dev/null; then
    jobs=(-n "${TEST_JOBS:-4}" --dist loadfile)
  fi
  run tests "${pytest[@]}" "${jobs[@]}"
}

# sanitize TOOL EXPRESSION: a short list, since each call takes ten times as long and more. Without
# torch's cache each tensor is an allocation, and what lies beyond its end belongs to nobody.
sanitize() {
  local tool=$1 expression=$2
  if ! command -v compute-sanitizer >/dev/null; then
    row "$tool" "not run: no compute-sanitizer" -
    return
  fi
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 run "$tool" \
    compute-sanitizer --tool "$tool" --error-exitcode 86 "${pytest[@]}" -k "$expression" \
    tests/test_ops.py::test_forward_and_backward_match_reference \
    tests/test_optimizer_steps.py::test_ten_steps_match_reference
}

memcheck() { sanitize memcheck "baseline and (float32 or bfloat16)"; }
# Hazards in shared memory, which these kernels use.
racecheck() { sanitize racecheck "baseline and bfloat16 and not dropout-"; }

for step in "${steps[@]}"; do
  case $step in
    build | tests | memcheck | racecheck) ;;
    *) echo "$0: no step is named $step" >&2; exit 2 ;;
  esac
done
checked=no
for step in "${steps[@]}"; do
  if [ "$step" != build ] && [ $checked = no ]; then
    checked=yes
    device || { row "all others" "not run: no GPU" -; break; }
  fi
  $step || [ "$step" != build ] || { row "all others" "not run: no build" -; break; }
done

echo
printf '%-10s %-28s %7s\n' step result seconds
printf '%s\n' "${rows[@]}"
echo "logs: $out"
exit $failed
