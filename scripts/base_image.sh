#!/usr/bin/env bash
# Make an image from Debian's packages, where no registry of images can be reached. Needs root, mmdebstrap and podman.
#
#     bash scripts/base_image.sh                     python:3.11-slim
#     bash scripts/base_image.sh IMAGE PACKAGE...    another one, with these packages
#
# The packages come from where this machine's own packages come from. Where the image is there, or can be pulled, nothing is made.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=docker.io/library/python:3.11-slim
image="${1:-$python}"
packages=("${@:2}")
[ "$image" != "$python" ] || packages=(python3.11-venv ca-certificates)
[ -d /run/systemd/system ] || export CONTAINERS_CONF="${CONTAINERS_CONF:-$PWD/deploy/containers.conf}"
if podman image exists "$image"; then exit 0; fi
if timeout 60 podman pull --quiet "$image" 2>/dev/null; then exit 0; fi

sources=(/etc/apt/sources.list.d/debian.sources)
[ -f "${sources[0]}" ] || sources=(/etc/apt/sources.list)
work="$(mktemp --directory)"
trap 'rm -rf "$work"' EXIT
# Without manuals and translations, as the image of Docker Hub is.
without=(--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*'
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright')
# shellcheck disable=SC2016 # mmdebstrap fills in $1
mmdebstrap --quiet --mode=root --variant=minbase "${without[@]}" --include="$(IFS=,; echo "${packages[*]}")" \
    --customize-hook='[ ! -e "$1/usr/bin/python3.11" ] || ln -s ../../bin/python3.11 "$1/usr/local/bin/python"' bookworm "$work/base.tar" "${sources[@]}"
podman import --quiet --change 'CMD ["python"]' --change 'ENV LANG=C.UTF-8' "$work/base.tar" "$image"
