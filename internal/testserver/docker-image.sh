#!/bin/sh
# Makes an image with all servers out of Debian's packages, and what servers.sh puts into
# the cache, and gives it the names of all images in compose.yaml: for a Docker daemon that
# can pull nothing. Needs root and debootstrap, on Debian or its kin, and takes a gigabyte.
#
#   sh internal/testserver/docker-image.sh [MIRROR]
set -eu
cd "$(dirname "$0")/../.."

cache=${LOCK_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lock-testserver}
root=$(mktemp -d)
trap 'umount "$root/proc" 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT

sh internal/testserver/servers.sh cache
debootstrap --variant=minbase bookworm "$root" "$@"
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
for conf in /etc/apt/apt.conf.d/*proxy*; do
	if [ -f "$conf" ]; then cp "$conf" "$root/etc/apt/apt.conf.d/"; fi
done
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # start nothing in here
chmod +x "$root/usr/sbin/policy-rc.d"
chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
	redis-server postgresql pgbouncer nginx-light zookeeper libslf4j-java default-jre-headless >/dev/null
umount "$root/proc"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/lib/postgresql/*/main

# Where the images of these two have them. An older version may be in the cache as well.
newest() { printf '%s\n' "$@" | sort -V | tail -n 1; }
install -D "$(newest "$cache"/etcd-v*)/etcd" "$root/usr/local/bin/etcd"
mkdir -p "$root/home/dynamodblocal"
cp -r "$(newest "$cache"/dynamodb-*)"/DynamoDBLocal* "$root/home/dynamodblocal/"

images=$(sed -n 's/^ *image: *//p' compose.yaml)
first=
for image in $images; do
	if [ -z "$first" ]; then
		first=$image
		tar --directory "$root" --create --numeric-owner --one-file-system . |
			docker import --change 'WORKDIR /data' \
				--change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/15/bin' \
				- "$image"
	else
		docker tag "$first" "$image"
	fi
done
docker run --rm --network none "$first" redis-server --version
