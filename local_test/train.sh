#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: train.sh [IMAGE]

Trains as SageMaker would: with IMAGE in a container of it, without IMAGE as a plain process of this tree.
The model comes to TEST_DIR/model, and the reason of a failure to TEST_DIR/output/failure.

  TEST_DIR   the miniature /opt/ml (default: test_dir beside this script)
  GPUS       with IMAGE: the GPUs the container gets, for example all (default: none)
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
[ -d "$TEST_DIR/input" ] || fail "TEST_DIR is $TEST_DIR, but there is no $TEST_DIR/input with config and data."
TEST_DIR=$(CDPATH='' cd -- "$TEST_DIR" && pwd)
if [ "$TEST_DIR" = "$here/test_dir" ] && [ ! -d "$TEST_DIR/input/data" ]; then
  fail "there is nothing to train on in $TEST_DIR/input/data; 'make sample-data' writes handwritten digits there."
fi
mkdir -p "$TEST_DIR/model" "$TEST_DIR/output"

if [ -z "$image" ]; then
  python=$here/../.venv/bin/python
  if [ ! -x "$python" ]; then
    python=$(command -v python3) || fail "there is no python3; install it, then run 'make environment'."
    echo "train.sh: there is no .venv, so python3 runs it; 'make environment' makes one with all it needs." >&2
  fi
  SAGEMAKER_BASE_DIR=$TEST_DIR exec "$python" "$here/../program/train"
fi

command -v docker >/dev/null || fail 'docker is not installed; without IMAGE a plain process trains.'
docker version >/dev/null 2>&1 || fail "the Docker engine does not answer; see what 'docker version' says."

# In the background, so that a signal sent to this script alone reaches the container too.
signalled=
trap 'signalled=yes; [ -n "${!:-}" ] || exit 143; kill -TERM "$!" 2>/dev/null || true' INT TERM
docker run --rm --env-file "$here/settings.env" ${GPUS:+--gpus "$GPUS"} -v "$TEST_DIR:/opt/ml" "$image" train &
container=$!
status=0
wait "$container" || status=$?
while [ -n "$signalled" ]; do # the signal cut the waiting short; the container saves its work now
  signalled=
  code=0
  wait "$container" || code=$?
  [ "$code" -eq 127 ] || status=$code # 127: it had been waited for already
done

# As on the platform, root wrote the files; here they are to belong to whom the folder belongs to.
docker run --rm -v "$TEST_DIR:/opt/ml" --entrypoint chown "$image" \
  -R --reference=/opt/ml /opt/ml/model /opt/ml/output || echo "train.sh: the new files belong to root." >&2
exit "$status"
