#!/usr/bin/env bash
# A visit to a machine with an NVIDIA GPU, in three parts of at most eight minutes that each stand alone:
#
#   kernels   the tests that need a GPU, then times of the ops, cold and warm, forward and backward
#   counters  NVIDIA's profiler (ncu) on each kernel, then the memory, race, synchronisation and initialisation checkers
#   engines   frames per second of whole engines, one clip at once and eight
#
#     bench/gpu_session.sh FOLDER [PART]…      # all three if none is named
#
# A part writes at most eight files into FOLDER/PART, each as soon as it is known. A step that fails is named at the end
# (exit code 1) and stops nothing. Nothing is installed, nor needs this package be: any Python with a CUDA build of
# PyTorch, NumPy, onnx and pytest will do, and CMake, Ninja and nvcc where mssts/lib has no library for this GPU. The step
# `masks` and the part `engines` need pycocotools and rlemasklib too: unpacked wheels on PYTHONPATH are enough.
#
#   PYTHON             the interpreter (python3)
#   STOCK              a checkout of Deformable-DETR, whose kernel is built and measured as well
#   STEPS              "name name": these steps alone
#   SECONDS_OF_PART    480
#   MSSTS_COMMIT       the commit, where .git did not come along
#   FPS_ARGUMENTS      further words for `mssts bench fps`, as "--runners tensorrt --precision fp16"
#   SECONDS_OF_FPS     230, for each number of clips at once
#   DRY_RUN            1: everything on the processor and as small as it can be, to try this script
set -u -o pipefail

fail() { echo "gpu_session: error: $*" >&2; exit 2; }

[ $# -ge 1 ] || fail "expected the folder for the results, and the parts to run (kernels, counters, engines)"
root=$(cd "$(dirname "$0")/.." && pwd) || exit 2
mkdir -p "$1" && results=$(cd "$1" && pwd) || fail "cannot make the folder $1"
shift
[ $# -gt 0 ] || set -- kernels counters engines
for part in "$@"; do
  case "$part" in kernels | counters | engines) ;; *) fail "no part $part; expected kernels, counters or engines" ;; esac
done
python=$(command -v "${PYTHON:-python3}") || fail "no ${PYTHON:-python3} on PATH; set PYTHON"
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") || exit 2
command -v nvidia-smi >/dev/null || fail "no nvidia-smi, so no NVIDIA driver: run this on a machine with an NVIDIA GPU"
gpu=$(nvidia-smi --query-gpu=name,compute_cap,driver_version,clocks.sm,clocks.max.sm --format=csv,noheader 2>/dev/null | head -1)
case "$gpu" in *,*) ;; *) fail "nvidia-smi finds no GPU: $(nvidia-smi 2>&1 | head -1)" ;; esac
cd "$root" || exit 2
dry=${DRY_RUN:-}
device=cuda
[ -n "$dry" ] && device=cpu
[ -n "$dry" ] || "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
  fail "$python has no PyTorch that finds the GPU; set PYTHON to one with a CUDA build of torch"

work=$(mktemp -d) || exit 2
clocks=
stock_pid=
stop() {
  [ -n "$clocks" ] && kill "$clocks" 2>/dev/null
  [ -n "$stock_pid" ] && kill "$stock_pid" 2>/dev/null
  rm -rf "$work"
}
trap stop EXIT
if [ -z "${MSSTS_COMMIT:-}" ]; then
  MSSTS_COMMIT=$(git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown)
fi
export MSSTS_COMMIT PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH="$PATH:/usr/local/cuda/bin"
# Ninja and CMake of an environment lie beside its interpreter, on no PATH unless it was activated.
PATH="$PATH:$(dirname "$python")"
export PYTHONPATH="$root:$root/tests${PYTHONPATH:+:$PYTHONPATH}"
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

# What the figures of a file are of.
whence() {
  echo "$gpu; commit $MSSTS_COMMIT"
  sha256sum "${MSSTS_LIBRARIES:-$root/mssts/lib}"/*.so 2>/dev/null
}

# step NAME SECONDS LOG COMMAND…: runs it for at most so long, and no longer than what is left. Its outcome is kept.
step() {
  local name=$1 limit=$2 to=$3 began=$SECONDS code=0
  local left=$((end - SECONDS))
  shift 3
  if [ -n "${STEPS:-}" ]; then
    case " $STEPS " in *" $name "*) ;; *) return 0 ;; esac
  fi
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$limit" -lt 5 ]; then
    echo "$name: LEFT OUT, no time was left" | tee -a "$steps"
    return 1
  fi
  [ -s "$to" ] || whence >"$to"
  echo "== $name (at most $limit s): $*" >>"$to"
  timeout -k 5 "$limit" "$@" >>"$to" 2>&1 || code=$?
  local outcome="done"
  [ $code -ne 0 ] && outcome="FAILED with $code"
  [ $code -eq 124 ] && outcome="STOPPED by its limit"
  echo "$name: $outcome after $((SECONDS - began)) s" | tee -a "$steps"
  return $code
}

usable() {
  "$python" -c 'import sys
from mssts.kernels import library
found = library(sys.argv[1])
print(found.path, found.reason)
sys.exit(bool(found.reason))' "$device"
}

# The kernels for this GPU: those of mssts/lib, or built here once for all parts.
have_kernels() {
  usable >>"$log" 2>&1 && return 0
  [ -n "$dry" ] && return 1
  local capability
  capability=$(echo "$gpu" | cut -d, -f2 | tr -d ' .')
  STEPS='' step build 200 "$log" sh -c 'cmake -S plugins -B "$1" -G Ninja -DMSSTS_OUTPUT="$2" -DMSSTS_PYTHON="$3" \
    -DMSSTS_CUDA_ARCHITECTURES="$4" -DMSSTS_FETCH_HEADERS=OFF && cmake --build "$1" --target mssts_cuda mssts_cpu' \
    build "$work/build" "$work/lib" "$python" "$capability"
  export MSSTS_LIBRARIES="$work/lib"
  usable >>"$log" 2>&1
}

# The other implementation of the op, built beside the tests of ours.
start_stock() {
  [ -n "${STOCK:-}" ] || return 0
  mkdir -p "$work/stock"
  export PYTHONPATH="$PYTHONPATH:$work/stock"
  timeout -k 5 240 "$python" -m mssts.bench.kernels.stock_extension "$STOCK" "$work/stock" >"$work/stock.log" 2>&1 &
  stock_pid=$!
}
wait_for_stock() {
  [ -n "$stock_pid" ] || return 0
  if wait "$stock_pid"; then echo "stock: done" | tee -a "$steps"; else echo "stock: FAILED" | tee -a "$steps"; fi
  cat "$work/stock.log" >>"$log"
  stock_pid=
}

bench() { # NAME SECONDS WHAT ARGUMENT…
  local name=$1 seconds=$2 what=$3
  shift 3
  step "$name" "$seconds" "$log" "$python" -m mssts.bench "$what" --out "$out/$name.json" "$@"
}

encoder=encoder_r50_360x640_t5
temporal=temporal_inter_r50_360x640_t5
few=(--repeats 20)
if [ -n "$dry" ]; then
  encoder=decoder_tiny_144x256_t6 temporal=temporal_inter_tiny_144x256_t6
  few=(--repeats 1 --impl mssts copy)
fi

run_kernels() {
  start_stock
  # Correct before fast. The GPU tests of the other folders need what a bare machine has not: ONNX Runtime for CUDA,
  # TensorRT, an installed package.
  step tests 150 "$out/tests.log" "$python" -m pytest -m gpu --require-gpu --continue-on-collection-errors \
    -p no:cacheprovider tests/plugins/test_cuda_kernels.py tests/plugins/test_cuda_encoder.py tests/ops
  # Masks that the GPU encodes, to the byte those of the processor.
  step masks 40 "$out/tests.log" "$python" -m pytest -m gpu --require-gpu -p no:cacheprovider \
    tests/plugins/test_mask_rle.py
  wait_for_stock
  bench encoder 110 kernels --device $device --no-memory --workload $encoder --dtype float16 bfloat16 float32 \
    --direction forward backward "${few[@]}"
  bench encoder_warm 40 kernels --device $device --no-memory --warm --workload $encoder --dtype float16 float32 \
    "${few[@]}"
  MSSTS_CUDA_PATH=fma bench encoder_fma 30 kernels --device $device --no-memory --workload $encoder --dtype float16 \
    --repeats 20 --impl mssts_c copy
  bench others 110 kernels --device $device --no-memory --dtype float16 --direction forward backward --workload \
    $temporal ${temporal/inter/intra} ${encoder/encoder/decoder} "${few[@]}"
}

sections=(SpeedOfLight MemoryWorkloadAnalysis MemoryWorkloadAnalysis_Tables SchedulerStats WarpStateStats InstructionStats)
metrics=l1tex__data_pipe_lsu_wavefronts_mem_lg.sum,l1tex__data_pipe_lsu_wavefronts_mem_shared.sum
metrics=$metrics,l1tex__data_bank_conflicts_pipe_lsu_mem_global_op_ld.sum
metrics=$metrics,l1tex__t_sectors_pipe_lsu_mem_global_op_ld_lookup_hit.sum
metrics=$metrics,l1tex__t_sectors_pipe_lsu_mem_global_op_ld_lookup_miss.sum
metrics=$metrics,l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum,lts__t_sectors_srcunit_tex.sum
metrics=$metrics,lts__t_sectors_op_red.sum,smsp__inst_executed_pipe_tensor.sum,smsp__issue_active.sum

profile() { # NAME KERNEL WORKLOAD IMPLEMENTATION DIRECTION
  local flags=()
  for section in "${sections[@]}"; do flags+=(--section "$section"); done
  step "$1" 40 "$out/ncu.txt" ncu --clock-control none --launch-skip 8 --launch-count 1 -k "regex:$2" "${flags[@]}" \
    --metrics "$metrics" "$python" -m mssts.bench kernels --device $device --no-memory --workload "$3" --dtype float16 \
    --impl "$4" --direction "$5" --repeats 1 --out "$work/$1.json"
}

run_counters() {
  if command -v ncu >/dev/null; then
    start_stock
    profile ncu_forward deform_forward_tensor $encoder mssts_c forward
    profile ncu_backward deform_backward $encoder mssts backward
    profile ncu_temporal temporal_attn_forward $temporal mssts_c forward
    if [ -n "$stock_pid" ]; then
      wait_for_stock
      profile ncu_stock ms_deformable_im2col $encoder deformable_detr_core forward
    fi
  else
    echo "ncu: LEFT OUT, not on PATH or in /usr/local/cuda/bin" | tee -a "$steps"
  fi
  # With PyTorch's own allocator a tool sees one large block, and no access beyond a tensor. Few, small calls: each tool
  # starts PyTorch once and is slow.
  local tool chosen="any_order or any_address or without_tensor_cores or (an_encoder and float16)"
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck initcheck; do
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 step $tool 75 "$out/$tool.log" compute-sanitizer --tool $tool \
        --error-exitcode 9 "$python" -m pytest -m gpu --require-gpu -p no:cacheprovider \
        tests/plugins/test_cuda_kernels.py tests/plugins/test_cuda_encoder.py -k "$chosen"
    done
  else
    echo "memcheck, racecheck, synccheck, initcheck: LEFT OUT, no compute-sanitizer" | tee -a "$steps"
  fi
}

run_engines() {
  local batch words=(--runners "pytorch-cuda,pytorch-compiled-cuda" --precision "fp16,bf16,tf32" --repeats 50)
  if [ -n "$dry" ]; then
    words=(--runners pytorch --preset tiny --size 64x64 --frames 1 --repeats 1 --threads 1
      --scopes "model,pipeline")
  fi
  for batch in 1 8; do
    # shellcheck disable=SC2086
    bench fps_batch$batch "${SECONDS_OF_FPS:-230}" fps --batch $batch --no-memory --cache "${CACHE:-$work/exports}" \
      "${words[@]}" ${FPS_ARGUMENTS:-}
  done
}

bad=0
for part in "$@"; do
  end=$((SECONDS + ${SECONDS_OF_PART:-480}))
  out="$results/$part" log="$results/$part/session.log" steps="$work/$part.steps"
  rm -rf "$out"
  mkdir -p "$out"
  {
    echo "$gpu"
    echo "commit $MSSTS_COMMIT"
    nvidia-smi
    "$python" -c 'import sys, torch; print("Python", sys.version, "PyTorch", torch.__version__)'
  } >"$log" 2>&1
  echo "GPU: $gpu; part $part"
  nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu --format=csv \
    -lms 500 >"$out/clocks.csv" 2>/dev/null &
  clocks=$!
  if have_kernels; then
    whence >>"$log"
    "run_$part"
  else
    echo "kernels for this GPU: FAILED, there are none and none could be built; see session.log" | tee -a "$steps"
  fi
  kill "$clocks" 2>/dev/null
  wait "$clocks" 2>/dev/null
  clocks=
  {
    echo "$gpu; commit $MSSTS_COMMIT"
    "$python" "$root/bench/gpu_summary.py" "$out" "$steps" 2>&1
  } | tee "$out/summary.txt"
  grep -qsE 'FAILED|STOPPED' "$steps" && bad=1
done
exit $bad
