#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: base_image.sh [IMAGE]

Makes sure that the Docker engine has IMAGE (default: debian:bookworm-slim), to use as a base image. If IMAGE
cannot be pulled, the script builds it with debootstrap, as root, from the Debian mirror of this computer's APT.
It copies this computer's certificate authorities and pip.conf into the image, because the images built on it
need them to reach the package indexes.

  PULL_SECONDS  the time limit for pulling the image (default: 120)
TEXT
}

fail() {
  echo "base_image.sh: $1" >&2
  exit 1
}

case "${1-}" in
  -h | --help) usage && exit ;;
  -*) usage >&2 && exit 2 ;;
esac

image=${1:-debian:bookworm-slim}
docker image inspect "$image" >/dev/null 2>&1 && exit
timeout "${PULL_SECONDS:-120}" docker pull --quiet "$image" >/dev/null 2>&1 && exit

case "$image" in
  debian:*-slim) suite=${image#debian:} && suite=${suite%-slim} ;;
  *) fail "$image can neither be found nor pulled, and this script can build only debian:SUITE-slim." ;;
esac
[ "$(id -u)" -eq 0 ] || fail "$image can neither be found nor pulled, and only root can build it."
if ! command -v debootstrap >/dev/null; then
  command -v apt-get >/dev/null || fail "$image can neither be found nor pulled; install debootstrap to build it."
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends debootstrap debian-archive-keyring >/dev/null
fi

# The mirrors of this computer's APT, or Debian's own if this computer runs something else, such as Ubuntu.
mirror_of() {
  # shellcheck disable=SC2016 # APT expands them
  apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(LABEL)' 2>/dev/null |
    awk -v name="$1" -v label="$2" '$2 == name && $3 == label && !found++ { print $1 }'
}
mirror=$(mirror_of "$suite" Debian)
mirror=${mirror:-http://deb.debian.org/debian/}
security=$(mirror_of "$suite-security" Debian-Security)
security=${security:-http://deb.debian.org/debian-security/}

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
root=$work/root
log=$work/log

run() {
  DEBIAN_FRONTEND=noninteractive "$@" >>"$log" 2>&1 || fail "'$*' failed: $(tail -n 5 "$log")"
}

chmod 755 "$work" # APT reads it as another user
run debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$mirror"

printf 'deb %s %s main\n' "$mirror" "$suite" "$mirror" "$suite-updates" "$security" "$suite-security" \
  >"$root/etc/apt/sources.list"
find /usr/local/share/ca-certificates -name '*.crt' -exec cp -L -t "$root/usr/local/share/ca-certificates" {} + 2>/dev/null || true
run chroot "$root" update-ca-certificates
[ ! -r /etc/pip.conf ] || cp -L /etc/pip.conf "$root/etc/pip.conf"

# The official slim image leaves these files out too.
run chroot "$root" apt-get --quiet update
run chroot "$root" apt-get --quiet --yes upgrade
run chroot "$root" apt-get clean
cat >"$root/etc/dpkg/dpkg.cfg.d/slim" <<'TEXT'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
TEXT
find "$root/usr/share/doc" -type f ! -name copyright -delete
find "$root/usr/share/doc" -type l -delete
find "$root/usr/share/doc" -type d -empty -delete
rm -rf "$root"/usr/share/{info,locale,man}/* "$root"/var/lib/apt/lists/* "$root"/var/cache/{apt,debconf}/* \
  "$root"/var/cache/ldconfig/* "$root"/var/log/* "$root"/tmp/* "$root"/etc/resolv.conf "$root"/etc/hostname

tar --directory "$root" --create . | docker import --change 'CMD ["bash"]' \
  --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
  --change "LABEL org.opencontainers.image.description=\"Debian $suite, built by debootstrap\"" - "$image" >/dev/null
echo "base_image.sh: built $image from $mirror" >&2
