#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: clean.sh [--cache]

Removes what the image tests left in the Docker engine: their images (tandem-test:*) and untagged older builds of
Tandem. With --cache, also removes all of BuildKit's cache, so that the next build downloads everything again.
TEXT
}

case "${1-}" in
  '' | --cache) ;;
  -h | --help) usage && exit ;;
  *) usage >&2 && exit 2 ;;
esac

label=label=com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true # the Dockerfile's own
mapfile -t images < <(docker image ls --format '{{.Repository}}:{{.Tag}}' --filter 'reference=tandem-test')
[ ${#images[@]} -eq 0 ] || docker image rm "${images[@]}" >/dev/null
docker image prune --force --filter "$label" >/dev/null
[ -z "${1-}" ] || docker builder prune --all --force | tail -n 1
