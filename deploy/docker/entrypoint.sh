#!/usr/bin/env bash
# Serves the engine in $MSSTS_MODEL with Triton. Further arguments go to tritonserver.
#
#   MSSTS_MODEL       the folder that `mssts export` wrote, read-only
#   MSSTS_TARGET      tensorrt (a plan for this GPU, built at the first start), onnxruntime, or python
#   MSSTS_CACHE       where plans are kept
#   MSSTS_REPOSITORY  where the model repository is written, at every start
#   MSSTS_THREADS     cores for an engine on the processor, all by default. With the target onnxruntime it is needed where
#                     the container's processor time is limited (docker run --cpus), which that backend does not see
#   MSSTS_MAX_QUEUE   clips that may wait for the engine
#   MSSTS_PLAN_SHAPES further arguments of `mssts build-engine`: "--opt 1x5x360x640 --max 1x5x360x640"
#   MSSTS_WATCH       seconds between probes, of which three that fail end the server; for Docker, which restarts what
#                     exits, but not what is unhealthy. Kubernetes probes by itself.
#   MSSTS_DRAIN       seconds between a signal to stop, with which no more clips are let in, and the server's end; with
#                     MSSTS_WATCH. Kubernetes has its preStop for it.
set -euo pipefail

target=${MSSTS_TARGET:-tensorrt}
model=${MSSTS_MODEL:-/model}
cache=${MSSTS_CACHE:-/cache}
repository=${MSSTS_REPOSITORY:-/run/mssts/models}

if [ "$target" = tensorrt ]; then
  # A folder for each kind of GPU. The plan in it is kept as long as TensorRT, plugins and export are the same, and built
  # again otherwise. One container builds while others that share the cache wait.
  gpu=$(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader | head -n 1 | tr -cs 'A-Za-z0-9.' '-')
  plan=$cache/plan-${gpu%-}
  read -ra shapes <<<"${MSSTS_PLAN_SHAPES:-}"
  (
    flock 9
    mssts build-engine "$model" --target tensorrt --out "$plan" --reuse --timing-cache "$plan.timing" "${shapes[@]}"
  ) 9>"$plan.lock"
  model=$plan
fi

options=(--max-queue "${MSSTS_MAX_QUEUE:-2}")
if [ -n "${MSSTS_THREADS:-}" ]; then
  options+=(--threads "$MSSTS_THREADS")
fi
# While this file is there, `preprocess` sends clips to other servers. Triton itself would drop those on their way.
MSSTS_STOPPING_FILE=$(dirname "$repository")/stopping
export MSSTS_STOPPING_FILE
rm -rf "$repository" "$MSSTS_STOPPING_FILE" # of a start before this one
mssts repo build --artefact "$model" --target "$target" --out "$repository" "${options[@]}"

flags=()
plugins=$repository/engine/libmssts_tensorrt.so
if [ -e "$plugins" ]; then
  flags+=("--backend-config=tensorrt,plugins=$plugins")
fi
# What lets a client read or write outside its own request needs a key, which nobody has.
key=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
closed="model-repository,shared-memory,trace,logging:mssts=$key"
server=(tritonserver "--model-repository=$repository" --model-control-mode=none --strict-readiness=true
  --exit-on-error=true --disable-auto-complete-config --grpc-infer-allocation-pool-size=1 --allow-client-shm=false
  --grpc-http2-min-recv-ping-interval-without-data=50 # clients ask for signs of life (docs/serving.md)
  "--grpc-restricted-protocol=$closed" "--http-restricted-api=$closed" "${flags[@]}" "$@")
if [ -z "${MSSTS_WATCH:-}" ]; then
  exec "${server[@]}"
fi

"${server[@]}" &
pid=$!
(
  until mssts health 2>/dev/null; do sleep "$MSSTS_WATCH"; done # it starts
  failures=0
  while [ "$failures" -lt 3 ]; do
    sleep "$MSSTS_WATCH"
    if mssts health; then failures=0; else failures=$((failures + 1)); fi
  done
  echo "mssts-entrypoint: the server is killed, as three probes failed" >&2
  kill -KILL "$pid" # asked, it would take eleven seconds with a dead model
) &
watch=$!
# shellcheck disable=SC2329  # called by the trap
stop() {
  kill "$watch" 2>/dev/null || true # a server that ends is not ready, and must not be killed for it
  touch "$MSSTS_STOPPING_FILE"
  sleep "${MSSTS_DRAIN:-3}"
  kill -TERM "$pid"
}
trap stop TERM INT
code=0
wait "$pid" || code=$?
while kill -0 "$pid" 2>/dev/null; do # a signal for us ended the wait, not the server
  code=0
  wait "$pid" || code=$?
done
kill "$watch" 2>/dev/null || true
exit "$code"
