#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: compose.sh

Makes sure that Docker Compose, which the SDK's local mode needs, is installed. If it is not, the script installs
docker-compose (Debian and Ubuntu, as root).
TEXT
}

fail() {
  echo "compose.sh: $1" >&2
  exit 1
}

case "${1-}" in
  '') ;;
  -h | --help) usage && exit ;;
  *) usage >&2 && exit 2 ;;
esac

# Version 2 of the SDK looks for the same, in this order: the plugin, with "v2" in its output, then the command.
found() {
  case "$(docker compose version 2>/dev/null)" in *v2*) return ;; esac
  command -v docker-compose >/dev/null
}

found && exit
[ "$(id -u)" -eq 0 ] || fail "there is no docker-compose, and only root can install it."
command -v apt-get >/dev/null || fail 'there is no docker-compose and no apt-get to install it with; install Docker Compose.'
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends docker-compose >/dev/null
found || fail "docker-compose was installed, but neither 'docker compose' v2 nor docker-compose answers."
