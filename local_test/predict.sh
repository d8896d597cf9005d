#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: predict.sh FILE [CONTENT_TYPE]

Sends FILE to the server that serve.sh started and prints the response. Without CONTENT_TYPE, the file name
extension determines it (jpg jpeg png bmp webp tif tiff npy json jsonl csv).

  ACCEPT     the media type of the response (default: the server's default)
  PORT       the server's port on this computer (default: 8080)
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
[ -r "$file" ] && [ ! -d "$file" ] || fail "$file is not a readable file."
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
    *) fail "the extension of $file does not determine a content type; give one: predict.sh FILE CONTENT_TYPE." ;;
  esac
fi
command -v curl >/dev/null || fail 'curl is not installed; install it, or send the request from Python as demo.py does.'

answer=$(mktemp)
trap 'rm -f -- "$answer"' EXIT
code=0
# --noproxy: a configured proxy cannot reach this computer's 127.0.0.1. 60 s: SageMaker waits no longer.
status=$(curl --silent --noproxy '*' --max-time 60 --output "$answer" --write-out '%{http_code}' \
  --header "Content-Type: $type" ${ACCEPT:+--header "Accept: $ACCEPT"} \
  --data-binary "@$file" "http://127.0.0.1:$PORT/invocations") || code=$?
case $code in
  0) ;;
  7) fail "nothing listens on port $PORT; start serve.sh first, or set PORT." ;;
  28) fail "the server on port $PORT did not answer within 60 seconds." ;;
  *) fail "curl could not send the request to port $PORT; its exit code is $code." ;;
esac
if [ "$status" -ge 400 ]; then
  { echo "predict.sh: the server answered with status $status:" && cat -- "$answer" && echo; } >&2
  exit 1
fi
cat -- "$answer"
echo
