#!/usr/bin/env bash
# Start NDIF on this machine's CPU, run the remote suite against it, and stop everything.
#
#   remote/up.sh ENVIRONMENT MODEL
#
# ENVIRONMENT: a virtual environment with requirements.txt of this folder. MODEL: a model folder.
# Ray listens on every interface whatever it is told, so all of it runs in a network namespace that
# has nothing but a loopback device, and in a process namespace that ends with this script.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ "${LWLAB_NDIF_INSIDE:-}" != 1 ]; then
  for tool in unshare redis-server; do
    command -v "$tool" >/dev/null || { echo "up.sh needs $tool" >&2; exit 2; }
  done
  environment="$(realpath "${1:?an environment: remote/up.sh ENVIRONMENT MODEL}")"
  model="$(realpath "${2:?a model folder: remote/up.sh ENVIRONMENT MODEL}")"
  rooted=(); [ "$(id -u)" = 0 ] || rooted=(--user --map-root-user)
  exec env LWLAB_NDIF_INSIDE=1 unshare "${rooted[@]}" --net --pid --fork --kill-child --mount-proc \
    "$here/up.sh" "$environment" "$model"
fi

bin="$1/bin" model="$2"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# The namespace's loopback device is down at first, and `ip` is not everywhere.
"$bin/python" - <<'PY'
import fcntl, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
flags, = struct.unpack("16xh", fcntl.ioctl(s, 0x8913, struct.pack("16sh", b"lo", 0))[:18])
fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", flags | 1))
PY
interfaces="$(ls /sys/class/net 2>/dev/null | tr '\n' ' ')"
"$bin/python" -c 'import socket, sys; sys.exit([n for _, n in socket.if_nameindex()] != ["lo"])' ||
  { echo "this is not a namespace with only a loopback device ($interfaces)" >&2; exit 2; }

export PATH="$bin:$PATH" PYTHONPATH="$here" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 GRPC_ENABLE_FORK_SUPPORT=0
export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local NDIF_RAY_ADDRESS=ray://127.0.0.1:10001
export NDIF_CONTROLLER_IMPORT_PATH=cpu_server.Controller NDIF_MODEL_IMPORT_PATH=cpu_server.Actor
export NDIF_DEFAULT_DTYPE=float32 LWLAB_NDIF_FOLDERS="$model" NDIF_HOME="$work/ndif"

until_up() {  # until_up NAME SECONDS COMMAND...
  local name="$1" left="$2"; shift 2
  until "$@" >/dev/null 2>&1; do
    left=$((left - 1))
    if [ "$left" -le 0 ]; then echo "$name did not come up:" >&2; tail -n 30 "$work/$name.log" >&2; exit 1; fi
    sleep 1
  done
  echo "$name is up"
}
port() { python -c "import socket; socket.create_connection(('127.0.0.1', $1), 1)"; }

redis-server --bind 127.0.0.1 --port 6379 --save "" >"$work/redis.log" 2>&1 &
until_up redis 20 port 6379
moto_server -H 127.0.0.1 -p 9000 >"$work/store.log" 2>&1 &
until_up store 60 port 9000
ray start --head --node-ip-address=127.0.0.1 --port=6385 --num-gpus=1 --num-cpus=4 \
  --include-dashboard=true --dashboard-host=127.0.0.1 --ray-client-server-port=10001 \
  --resources="$(python "$here/cpu_server.py")" --temp-dir="$work/ray" >"$work/ray.log" 2>&1
until_up ray 60 port 10001
RAY_ADDRESS=127.0.0.1:6385 python -m ndif.services.ray.deployments.controller.controller >"$work/controller.log" 2>&1
gunicorn --config python:ndif.services.api.gunicorn_conf ndif.services.api.app:app >"$work/api.log" 2>&1 &
until_up api 120 port 8001

status=0
PYTHONPATH="$(dirname "$here")" python "$here/suite.py" "$model" http://127.0.0.1:8001 || status=$?
if [ "$status" != 0 ]; then
  for log in "$work"/*.log "$work"/ray/session_latest/logs/worker-*.err; do
    [ -s "$log" ] && { echo "== $log" >&2; tail -n 15 "$log" >&2; }
  done
fi
exit "$status"
