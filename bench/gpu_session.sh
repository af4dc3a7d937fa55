#!/usr/bin/env bash
# One session on a machine with an NVIDIA GPU, at most ten minutes: builds the CUDA kernels (or takes those that are
# there), measures them, runs the tests that need a GPU and NVIDIA's memory checker, and prints a table.
#
#     bench/gpu_session.sh FOLDER      # FOLDER gets at most eight files, whatever ends early
#
# Nothing is installed, nor needs this package be: any Python (PYTHON=…, python3 by default) with a CUDA build of
# PyTorch, NumPy, onnx and pytest; CMake, Ninja and nvcc where mssts/lib has no library for this GPU.
# SECONDS_IN_ALL (570) limits all.
set -u -o pipefail

fail() { echo "gpu_session: error: $*" >&2; exit 2; }

[ $# -eq 1 ] || fail "expected one argument, the folder for the results"
root=$(cd "$(dirname "$0")/.." && pwd) || exit 2
mkdir -p "$1" && out=$(cd "$1" && pwd) || fail "cannot make the folder $1"
python=$(command -v "${PYTHON:-python3}") || fail "no ${PYTHON:-python3} on PATH; set PYTHON"
command -v nvidia-smi >/dev/null || fail "no nvidia-smi, so no NVIDIA driver: run this on a machine with an NVIDIA GPU"
query=name,compute_cap,driver_version,clocks.sm,clocks.max.sm
gpu=$(nvidia-smi --query-gpu=$query --format=csv,noheader 2>/dev/null | head -1)
case "$gpu" in *,*) ;; *) fail "nvidia-smi finds no GPU: $(nvidia-smi 2>&1 | head -1)" ;; esac
cd "$root" || exit 2
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
  fail "$python has no PyTorch that finds the GPU; set PYTHON to one with a CUDA build of torch"

work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
end=${SECONDS_IN_ALL:-570}
log="$out/session.log"
rm -f "$out"/{tests.log,summary.txt,compiler_report.json}
rm -f "$out"/kernels_{encoder_fp16,encoder_fp16_fma,forward,backward}.json
: >"$log"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PATH="$PATH:/usr/local/cuda/bin"
if ! "$python" -c 'import tqdm' 2>/dev/null; then
  # The benchmark shows its progress by it, and by nothing else.
  cat >"$work/tqdm.py" <<'STAND_IN'
class tqdm:
    def __init__(self, items, **_): self.items = items
    def __enter__(self): return self
    def __exit__(self, *_): return None
    def __iter__(self): return iter(self.items)
    def set_description(self, *_): pass
    def set_postfix_str(self, *_): pass
STAND_IN
  export PYTHONPATH="$PYTHONPATH:$work"
fi
if ! "$python" -c 'import safetensors.torch' 2>/dev/null; then
  # Test modules import it; no GPU test reads or writes such a file.
  mkdir "$work/safetensors"
  echo 'class SafetensorError(Exception): pass
safe_open = None' >"$work/safetensors/__init__.py"
  echo 'load_file = save_file = None' >"$work/safetensors/torch.py"
  export PYTHONPATH="$PYTHONPATH:$work"
fi

# part NAME SECONDS LOG COMMAND…: runs it for at most so long, and no longer than what is left; its outcome is kept.
part() {
  local name=$1 limit=$2 to=$3 left=$((end - SECONDS)) began=$SECONDS code=0
  shift 3
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$limit" -lt 5 ]; then
    echo "$name: left out, no time was left" | tee -a "$work/parts"
    return 1
  fi
  echo "== $name (at most $limit s): $*" >>"$to"
  timeout -k 5 "$limit" "$@" >>"$to" 2>&1 || code=$?
  local outcome="done"
  [ $code -ne 0 ] && outcome="FAILED with $code"
  [ $code -eq 124 ] && outcome="STOPPED by its limit"
  echo "$name: $outcome after $((SECONDS - began)) s" | tee -a "$work/parts"
  return $code
}

usable() {
  "$python" -c 'import sys
from mssts.kernels import library
found = library("cuda")
print(found.path, found.reason)
sys.exit(bool(found.reason))'
}
# `mssts bench kernels` without the entry point of an installed package.
benchmark() {
  local name=$1 seconds=$2
  shift 2
  part "$name" "$seconds" "$log" "$python" -c 'import argparse, sys
from bench import kernels
from mssts.errors import MsstsError
parser = argparse.ArgumentParser()
kernels.add_arguments(parser)
try:
    sys.exit(kernels.run(parser.parse_args()))
except MsstsError as error:
    sys.exit(f"error: {error}")' --device cuda --out "$out/$name.json" "$@"
}

{
  echo "$gpu"
  nvidia-smi
  "$python" -c 'import sys, torch; print("Python", sys.version, "PyTorch", torch.__version__)'
} >>"$log" 2>&1
echo "GPU: $gpu"

if ! usable >>"$log" 2>&1; then
  capability=$(echo "$gpu" | cut -d, -f2 | tr -d ' .')
  part build 200 "$log" sh -c 'cmake -S plugins -B "$1" -G Ninja -DMSSTS_OUTPUT="$2" -DMSSTS_PYTHON="$3" \
    -DMSSTS_CUDA_ARCHITECTURES="$4" -DMSSTS_FETCH_HEADERS=OFF && cmake --build "$1" --target mssts_cuda mssts_cpu' \
    build "$work/build" "$work/lib" "$python" "$capability"
  export MSSTS_LIBRARIES="$work/lib"
  usable >>"$log" 2>&1 || fail "no CUDA kernels for this GPU, and none could be built; see the end of $log"
fi
library=${MSSTS_LIBRARIES:-$root/mssts/lib}/libmssts_cuda.so

encoder="--workload encoder_r50_360x640_t5"
benchmark kernels_encoder_fp16 70 $encoder --dtype float16
# Correct before fast: the tests.
with_gpu=$(grep -lE 'mark\.gpu' tests/test_*.py | grep -v test_tensorrt)
part tests 150 "$out/tests.log" "$python" -m pytest -m gpu --require-gpu --continue-on-collection-errors \
  -p no:cacheprovider $with_gpu
# The same forward without the tensor cores, what the compiler's report expects, then everything else that time allows.
MSSTS_CUDA_PATH=fma benchmark kernels_encoder_fp16_fma 30 $encoder --dtype float16 --impl mssts_c grid_sample copy
part report 40 "$log" "$python" plugins/cuda/report.py "$library" --out "$out/compiler_report.json" \
  --architecture "$(echo "$gpu" | cut -d, -f2 | tr -d ' .')"
# Small calls of all kernels; each tool starts PyTorch once.
chosen="any_order or any_address or without_tensor_cores"
if sanitizer=$(command -v compute-sanitizer); then
  for tool in memcheck racecheck; do
    part "$tool" 60 "$out/tests.log" "$sanitizer" --tool $tool --error-exitcode 9 "$python" -m pytest -m gpu \
      --require-gpu -p no:cacheprovider tests/test_cuda_kernels.py -k "$chosen"
  done
else
  echo "memcheck, racecheck: left out, no compute-sanitizer on PATH or in /usr/local/cuda/bin" | tee -a "$work/parts"
fi
for direction in forward backward; do
  benchmark kernels_$direction 90 --dtype float32 float16 --direction $direction --repeats 10
done

"$python" - "$out" "$work/parts" <<'TABLE' 2>&1 | tee "$out/summary.txt"
import json, re, sys
from pathlib import Path

out, parts = Path(sys.argv[1]), Path(sys.argv[2])
print(parts.read_text().strip())
tests = out / "tests.log"
wanted = re.compile(
    r"== .* \(at most|\d+ (passed|failed|error|skipped).* in |FAILED |ERROR |=+ (ERROR|RACECHECK) SUMMARY"
)
lines = tests.read_text(errors="replace").splitlines() if tests.exists() else []
for line in [line for line in lines if wanted.match(line.strip("= ") + " ") or wanted.match(line)][:40]:
    print("tests.log:", line.strip("= ")[:150])
print(f"\n{'call':58} {'implementation':22} {'ms':>9} {'p5':>9} {'GB/s':>7}")
for path in sorted(out.glob("kernels_*.json")):
    for row in json.loads(path.read_text())["rows"]:
        call = f"{row['workload']} {row['dtype']} {row['direction']}" + (" (fma)" if "fma" in path.name else "")
        if row["wrong"]:
            print(f"{call:58} {row['impl']:22} WRONG: {row['wrong']}")
        else:
            print(f"{call:58} {row['impl']:22} {row['ms_median']:9.4f} {row['ms_p5']:9.4f} {row['gb_per_s'] or 0:7.0f}")
TABLE
! grep -qE 'FAILED|STOPPED' "$work/parts"
