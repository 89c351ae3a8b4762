#!/bin/sh
# Sees to it that the tests find their servers: with Docker where a daemon has or can
# pull the images, else with programs, which on Debian and its kin are installed. Those
# that no package has, etcd and DynamoDB Local, go to LOCK_TEST_CACHE, or the folder
# lock-testserver in the user's cache. It changes nothing where all is there.
#
#   sh internal/testserver/servers.sh         all
#   sh internal/testserver/servers.sh cache   what goes to the cache, and nothing else
set -eu
cd "$(dirname "$0")/../.."
GO=${GO:-go}

have() { command -v "$1" >/dev/null 2>&1; }

# The image of a service in compose.yaml.
image() { sed -n "/^  $1:/,/image:/s/^ *image: *//p" compose.yaml; }

# A daemon whose host network is this machine's, as findImage in docker.go has it, and that
# has or can pull the image.
docker_has() {
	if [ "${LOCK_TEST_SERVERS:-}" = native ] || ! have docker; then return 1; fi
	case $(docker info --format '{{.Name}} {{.SecurityOptions}}' 2>/dev/null) in
	*name=rootless* | *name=userns*) return 1 ;;
	"$(uname -n) "*) ;;
	*) return 1 ;;
	esac
	docker image inspect "$1" >/dev/null 2>&1 || docker pull --quiet "$1"
}

sudo=
if [ "$(id -u)" != 0 ]; then sudo=sudo; fi

# install PACKAGE… -- WHAT: with apt-get, or else says what to install.
install() {
	packages=
	while [ "$1" != -- ]; do
		packages="$packages $1"
		shift
	done
	if ! have apt-get; then
		echo "servers: missing: $2" >&2
		exit 1
	fi
	echo "servers: installing$packages"
	$sudo apt-get update -qq
	# shellcheck disable=SC2086 # a list
	$sudo env DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq --yes --no-install-recommends $packages >/dev/null
}

# Debian starts some servers with their packages. The tests run their own.
turn_off() {
	if [ -d /run/systemd/system ]; then
		$sudo systemctl disable --now "$1"
	else
		$sudo service "$1" stop >/dev/null 2>&1 || true
	fi
}

# Where the tests look for what no package has: cacheDir in source.go.
cache() {
	if [ -n "${LOCK_TEST_CACHE:-}" ]; then
		echo "$LOCK_TEST_CACHE"
	elif [ "$(uname)" = Darwin ]; then
		echo "$HOME/Library/Caches/lock-testserver"
	else
		echo "${XDG_CACHE_HOME:-$HOME/.cache}/lock-testserver"
	fi
}

# The race detector needs a C compiler.
need_compiler() {
	if have "$($GO env CC)"; then return; fi
	install gcc libc6-dev -- "a C compiler for the race detector: gcc or clang"
}

# What docs/service.md uses, whose commands a test runs.
need_curl() {
	if have curl && have jq; then return; fi
	install curl jq -- "curl and jq"
}

# What tries the alerts of contrib/otellock.
need_promtool() {
	if have promtool; then return; fi
	install prometheus -- "promtool, which comes with Prometheus"
	turn_off prometheus
}

need_redis() {
	if have redis-server || docker_has "$(image redis)"; then return; fi
	install redis-server -- "redis-server 7 (brew install redis, dnf install redis), or Docker"
	turn_off redis-server
}

need_postgres() {
	if have postgres || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 ||
		docker_has "$(image postgres)"; then return; fi
	install postgresql -- "PostgreSQL 15 or newer (brew install postgresql), or Docker"
	turn_off postgresql
}

need_pgbouncer() {
	if have pgbouncer || [ -x /usr/sbin/pgbouncer ] || docker_has "$(image pgbouncer)"; then return; fi
	install pgbouncer -- "PgBouncer (brew install pgbouncer), or Docker"
	turn_off pgbouncer
}

need_nginx() {
	if have nginx || [ -x /usr/sbin/nginx ] || docker_has "$(image nginx)"; then return; fi
	install nginx-light -- "nginx, or Docker"
	turn_off nginx
}

need_java() {
	if have java; then return; fi
	install default-jre-headless -- "Java 17 or newer"
}

need_zookeeper() {
	if docker_has "$(image zookeeper)"; then return; fi
	need_java
	if [ -f /usr/share/java/zookeeper.jar ]; then return; fi
	install zookeeper libslf4j-java -- "ZooKeeper 3.8, or Docker"
}

need_etcd() {
	if docker_has "$(image etcd)"; then return; fi
	get_etcd
}

get_etcd() {
	version=$($GO -C internal/testserver/etcd list -m -f '{{.Version}}' go.etcd.io/etcd/server/v3)
	etcd=$(cache)/etcd-$version/etcd
	if [ -x "$etcd" ]; then return; fi
	echo "servers: building etcd $version"
	CGO_ENABLED=0 $GO -C internal/testserver/etcd build -trimpath -ldflags=-s -o "$etcd.new" .
	mv "$etcd.new" "$etcd"
}

# DynamoDB Local is Amazon's own; the npm package that brings it is Amazon's too.
dynamodb_version=2.9.30
dynamodb_sha256=3503ffac19f183407909fecdacf4db51ab1fdad1da7b2f177016670b2d80e4b9

need_dynamodb() {
	if docker_has "$(image dynamodb)"; then return; fi
	need_java
	get_dynamodb
}

get_dynamodb() {
	dir=$(cache)/dynamodb-$dynamodb_version
	if [ -f "$dir/DynamoDBLocal.jar" ]; then return; fi
	have npm || install npm -- "npm, to fetch DynamoDB Local, or Docker"
	echo "servers: fetching DynamoDB Local"
	mkdir -p "$(cache)"
	new=$(mktemp -d "$(cache)/new.XXXXXX")
	(
		cd "$new"
		tgz=$(npm pack --silent "amplify-dynamodb-simulator@$dynamodb_version")
		if [ "$(sha256 "$tgz")" != $dynamodb_sha256 ]; then
			echo "servers: $tgz is not the package that was pinned" >&2
			exit 1
		fi
		tar -xzf "$tgz" package/emulator
	)
	rm -rf "$dir"
	mv "$new/package/emulator" "$dir"
	rm -rf "$new"
}

sha256() {
	if have sha256sum; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

if [ "${1:-}" = cache ]; then
	get_etcd
	get_dynamodb
	exit
fi
need_compiler
need_curl
need_promtool
need_redis
need_postgres
need_pgbouncer
need_nginx
need_zookeeper
need_etcd
need_dynamodb
