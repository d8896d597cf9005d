#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: engine.sh [stop]

Makes sure that a Docker engine is running. If none is, the script starts one in a session of its own; if Docker
is not installed, it installs docker.io first (Debian and Ubuntu, as root). If an engine is running already, the
script changes nothing. `engine.sh stop` stops the engine that the script started, and no other.

  ENGINE_LOG      the log file of the engine (default: /var/log/tandem-dockerd.log)
  ENGINE_SECONDS  the time limit for starting or stopping the engine (default: 60)
TEXT
}

fail() {
  echo "engine.sh: $1" >&2
  exit 1
}

answers() {
  timeout 20 docker info >/dev/null 2>&1
}

ENGINE_LOG=${ENGINE_LOG:-/var/log/tandem-dockerd.log}
ENGINE_SECONDS=${ENGINE_SECONDS:-60}
started=/run/tandem-dockerd.pid # written only by this script; dockerd's own PID file may be that of another engine

stop() {
  [ -r "$started" ] || { echo 'engine.sh: there is no engine that this script started.' >&2 && return; }
  local pid
  pid=$(cat "$started")
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
    kill -TERM "$pid"
    timeout "$ENGINE_SECONDS" tail --pid="$pid" -f /dev/null || fail "dockerd ($pid) did not stop within $ENGINE_SECONDS s."
  fi
  rm -f "$started"
}

case "${1-}" in
  '') ;;
  stop) stop && exit ;;
  -h | --help) usage && exit ;;
  *) usage >&2 && exit 2 ;;
esac

command -v docker >/dev/null && answers && exit
[ "$(id -u)" -eq 0 ] || fail "no Docker engine answers, and only root can start one; run 'docker info' to see why."
if ! command -v dockerd >/dev/null || ! command -v docker >/dev/null; then
  command -v apt-get >/dev/null || fail 'there is no dockerd and no apt-get to install it with; install Docker.'
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends docker.io iptables ca-certificates >/dev/null
  answers && exit # the package may have started it
fi

setsid nohup dockerd >>"$ENGINE_LOG" 2>&1 </dev/null &
pid=$!
deadline=$((SECONDS + ENGINE_SECONDS))
until answers; do
  kill -0 "$pid" 2>/dev/null || fail "dockerd exited at once; the end of $ENGINE_LOG: $(tail -n 3 "$ENGINE_LOG")"
  [ "$SECONDS" -lt "$deadline" ] || { kill "$pid" && fail "dockerd did not answer within $ENGINE_SECONDS s; see $ENGINE_LOG."; }
  sleep 0.2
done
echo "$pid" >"$started"
echo "engine.sh: started dockerd ($pid); its log is $ENGINE_LOG" >&2
