#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: sbom.sh IMAGE FILE

Writes a CycloneDX JSON file with the packages in IMAGE: Debian packages (found by debsbom) and Python packages
(found by cyclonedx-py), read from the image's package databases. `make sbom` runs it with both tools on PATH.
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
  command -v "$tool" >/dev/null || fail "$tool is not on PATH; 'make sbom' installs everything except Docker."
done
docker image inspect "$image" >/dev/null 2>&1 || fail "the Docker engine has no image $image; build it first."

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
mkdir "$work/image"
# shellcheck disable=SC2016 # the image's shell expands them
docker run --rm --network none "$image" bash -c '
  cd / && tar --create --dereference var/lib/dpkg/status etc/os-release opt/venv/lib/python3*/site-packages/*.dist-info
' | tar --extract --directory "$work/image" || fail "the package databases of $image cannot be read."

# cyclonedx-py asks an interpreter for its sys.path and reads these folders; this script is that interpreter.
packages=$(echo "$work"/image/opt/venv/lib/python3*/site-packages)
printf '#!/bin/sh\necho '"'"'["%s"]'"'"'\n' "$packages" >"$work/python"
chmod +x "$work/python"
printf '[project]\nname = "python-packages"\nversion = "0"\n' >"$work/pyproject.toml" # merge requires a root component
cyclonedx-py environment --spec-version 1.6 --pyproject "$work/pyproject.toml" -o "$work/python.cdx.json" "$work/python"

debsbom generate --sbom-type cdx --cdx-schema-version 1.6 --root "$work/image" --out "$work/debian"

version=$(docker image inspect --format '{{index .Config.Labels "org.opencontainers.image.version"}}' "$image")
PYTHONWARNINGS=ignore debsbom merge --sbom-type cdx --cdx-schema-version 1.6 --distro-name "$image" --distro-version "${version:-unknown}" \
    --out "$work/merged" "$work/debian.cdx.json" "$work/python.cdx.json"
cat "$work/merged.cdx.json" >"$file"
