#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: train.sh [IMAGE]

Trains as SageMaker does. With IMAGE, it runs a container; without IMAGE, this tree's program/train.
The model is written to TEST_DIR/model, and the reason for a failure to TEST_DIR/output/failure.

  TEST_DIR   the folder to use as /opt/ml (default: test_dir beside this script)
  GPUS       with IMAGE: the GPUs for the container, for example all (default: none)
TEXT
}

fail() {
  echo "train.sh: $1" >&2
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
[ -d "$TEST_DIR/input" ] || fail "TEST_DIR is $TEST_DIR, but there is no $TEST_DIR/input; create it, with the folders config and data."
TEST_DIR=$(CDPATH='' cd -- "$TEST_DIR" && pwd)
if [ "$TEST_DIR" = "$here/test_dir" ] && [ ! -d "$TEST_DIR/input/data" ]; then
  fail "there is no training data in $TEST_DIR/input/data; 'make sample-data' writes handwritten digits there."
fi
mkdir -p "$TEST_DIR/model" "$TEST_DIR/output"

if [ -z "$image" ]; then
  python=$here/../.venv/bin/python
  if [ ! -x "$python" ]; then
    python=$(command -v python3) || fail "there is no python3; install it, then run 'make environment'."
    echo "train.sh: there is no .venv, so python3 is used; 'make environment' creates a .venv with all requirements." >&2
  fi
  SAGEMAKER_BASE_DIR=$TEST_DIR exec "$python" "$here/../program/train"
fi

command -v docker >/dev/null || fail 'docker is not installed; install it, or run train.sh without IMAGE.'
docker version >/dev/null 2>&1 || fail "the Docker engine does not answer; run 'docker version' to see why."

# In the background, so that a signal sent only to this script is forwarded to the container.
signalled=
trap 'signalled=yes; [ -n "${!:-}" ] || exit 143; kill -TERM "$!" 2>/dev/null || true' INT TERM
docker run --rm --env-file "$here/settings.env" ${GPUS:+--gpus "$GPUS"} -v "$TEST_DIR:/opt/ml" "$image" train &
container=$!
status=0
wait "$container" || status=$?
while [ -n "$signalled" ]; do # the signal interrupted wait; the container is still saving its model
  signalled=
  code=0
  wait "$container" || code=$?
  [ "$code" -eq 127 ] || status=$code # 127: the first wait already collected the status
done

# The container ran as root, as on SageMaker; give the new files to the owner of the folder.
docker run --rm -v "$TEST_DIR:/opt/ml" --entrypoint chown "$image" \
  -R --reference=/opt/ml /opt/ml/model /opt/ml/output || echo "train.sh: cannot change the owner of the new files; it is root." >&2
exit "$status"
