#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: sbom.sh IMAGE FILE

Writes to FILE, as CycloneDX JSON, what is installed in IMAGE: Debian's packages (by debsbom) and Python's (by
cyclonedx-py), read from the image's own package databases. `make sbom` calls it with both tools on PATH.
TEXT
}

fail() {
  echo "sbom.sh: $1" >&2
  exit 1
}

case "${1-}" in
  -h | --help) usage && exit ;;
  -*) usage >&2 && exit 2 ;;
esac
[ $# -eq 2 ] || { usage >&2 && exit 2; }
image=$1
file=$2
for tool in docker debsbom cyclonedx-py; do
  command -v "$tool" >/dev/null || fail "$tool is not on PATH; 'make sbom' installs what it needs, but Docker."
done
docker image inspect "$image" >/dev/null 2>&1 || fail "the Docker engine has no image $image; build it first."

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
mkdir "$work/image"
# shellcheck disable=SC2016 # it is the image's shell that expands them
docker run --rm --network none "$image" bash -c '
  cd / && tar --create --dereference var/lib/dpkg/status etc/os-release opt/venv/lib/python3*/site-packages/*.dist-info
' | tar --extract --directory "$work/image" || fail "the package databases of $image cannot be read."

# cyclonedx-py asks an interpreter for its path, and reads what lies there itself.
packages=$(echo "$work"/image/opt/venv/lib/python3*/site-packages)
printf '#!/bin/sh\necho '"'"'["%s"]'"'"'\n' "$packages" >"$work/python"
chmod +x "$work/python"
printf '[project]\nname = "python-packages"\nversion = "0"\n' >"$work/pyproject.toml" # the merge wants a root
cyclonedx-py environment --spec-version 1.6 --pyproject "$work/pyproject.toml" -o "$work/python.cdx.json" "$work/python"

debsbom generate --sbom-type cdx --cdx-schema-version 1.6 --root "$work/image" --out "$work/debian"

version=$(docker image inspect --format '{{index .Config.Labels "org.opencontainers.image.version"}}' "$image")
PYTHONWARNINGS=ignore debsbom merge --sbom-type cdx --cdx-schema-version 1.6 --distro-name "$image" --distro-version "${version:-unknown}" \
    --out "$work/merged" "$work/debian.cdx.json" "$work/python.cdx.json"
cat "$work/merged.cdx.json" >"$file"
