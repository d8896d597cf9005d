#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: serve.sh [IMAGE]

Serves the trained model as SageMaker does, until Ctrl-C. With IMAGE, it runs a container in which the model
is read-only. Without IMAGE, it runs this tree's program/serve. Send requests with `predict.sh FILE`.

  TEST_DIR   the folder to use as /opt/ml, with model/ in it (default: test_dir beside this script)
  PORT       the port on this computer (default: 8080)
  GPUS       with IMAGE: the GPUs for the container, for example all (default: none)
TEXT
}

fail() {
  echo "serve.sh: $1" >&2
  exit 1
}

case "${1-}" in
  -h | --help) usage && exit ;;
  -*) usage >&2 && exit 2 ;;
esac
[ $# -le 1 ] || { usage >&2 && exit 2; }

image=${1-}
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
TEST_DIR=${TEST_DIR:-$here/test_dir}
PORT=${PORT:-8080}
[ -d "$TEST_DIR/model" ] || fail "there is no $TEST_DIR/model; run train.sh first."
TEST_DIR=$(CDPATH='' cd -- "$TEST_DIR" && pwd)

if [ -z "$image" ]; then
  python=$here/../.venv/bin/python
  if [ ! -x "$python" ]; then
    python=$(command -v python3) || fail "there is no python3; install it, then run 'make environment'."
    echo "serve.sh: there is no .venv, so python3 is used; 'make environment' creates a .venv with all requirements." >&2
  fi
  SAGEMAKER_BASE_DIR=$TEST_DIR SAGEMAKER_BIND_TO_PORT=$PORT exec "$python" "$here/../program/serve"
fi

command -v docker >/dev/null || fail 'docker is not installed; install it, or run serve.sh without IMAGE.'
docker version >/dev/null 2>&1 || fail "the Docker engine does not answer; run 'docker version' to see why."
exec docker run --rm --env-file "$here/settings.env" ${GPUS:+--gpus "$GPUS"} -v "$TEST_DIR/model:/opt/ml/model:ro" -p "$PORT:8080" "$image" serve
