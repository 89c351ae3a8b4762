#!/bin/sh
# Makes the image that compose.yaml names for Redis out of Debian's packages, for a
# Docker daemon that can pull nothing. Needs root and debootstrap, on Debian or its kin.
#
#   sh internal/testserver/docker-image.sh [MIRROR]
set -eu
cd "$(dirname "$0")/../.."

image=$(sed -n 's/^ *image: *\(redis:.*\)/\1/p' compose.yaml)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

# The name promises bookworm. redis-server is all that a test runs in it, and sh.
debootstrap --variant=minbase --include=redis-server bookworm "$root" "$@"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*

tar --directory "$root" --create --numeric-owner --one-file-system . |
	docker import --change 'WORKDIR /data' --change 'CMD ["redis-server"]' - "$image"
docker run --rm --network none "$image" redis-server --version
