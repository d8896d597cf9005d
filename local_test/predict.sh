#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: predict.sh FILE [CONTENT_TYPE]

Sends FILE to the server that serve.sh started and prints its answer. CONTENT_TYPE follows from the name's
ending (jpg jpeg png bmp webp tif tiff npy json jsonl csv) unless it is given.

  ACCEPT     the media type of the answer (default: the server's)
  PORT       the server's port on this machine (default: 8080)
TEXT
}

fail() {
  echo "predict.sh: $1" >&2
  exit 1
}

case "${1-}" in
  -h | --help) usage && exit ;;
  -*) usage >&2 && exit 2 ;;
esac
[ $# -eq 1 ] || [ $# -eq 2 ] || { usage >&2 && exit 2; }

file=$1
type=${2-}
PORT=${PORT:-8080}
[ -r "$file" ] && [ ! -d "$file" ] || fail "$file is not a file that can be read."
if [ -z "$type" ]; then
  case "$(printf %s "$file" | tr '[:upper:]' '[:lower:]')" in
    *.jpg | *.jpeg) type=image/jpeg ;;
    *.png) type=image/png ;;
    *.bmp) type=image/bmp ;;
    *.webp) type=image/webp ;;
    *.tif | *.tiff) type=image/tiff ;;
    *.npy) type=application/x-npy ;;
    *.json) type=application/json ;;
    *.jsonl) type=application/jsonlines ;;
    *.csv) type=text/csv ;;
    *) fail "the ending of $file tells no content type; give one: predict.sh FILE CONTENT_TYPE." ;;
  esac
fi
command -v curl >/dev/null || fail 'curl is not installed; install it, or ask from Python as demo.py does.'

answer=$(mktemp)
trap 'rm -f -- "$answer"' EXIT
code=0
# No proxy: a company's proxy does not know this machine's 127.0.0.1. 60 s: no longer does the platform wait.
status=$(curl --silent --noproxy '*' --max-time 60 --output "$answer" --write-out '%{http_code}' \
  --header "Content-Type: $type" ${ACCEPT:+--header "Accept: $ACCEPT"} \
  --data-binary "@$file" "http://127.0.0.1:$PORT/invocations") || code=$?
case $code in
  0) ;;
  7) fail "nothing listens on port $PORT; start serve.sh first, or set PORT." ;;
  28) fail "the server on port $PORT gave no answer in 60 seconds." ;;
  *) fail "curl could not ask the server on port $PORT; its exit code is $code." ;;
esac
if [ "$status" -ge 400 ]; then
  { echo "predict.sh: the server answered $status:" && cat -- "$answer" && echo; } >&2
  exit 1
fi
cat -- "$answer"
echo
