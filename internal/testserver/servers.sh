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
case ${LOCK_TEST_CACHE:-/} in
/*) ;;
*)
	echo "servers: LOCK_TEST_CACHE is $LOCK_TEST_CACHE: must be absolute" >&2
	exit 1
	;;
esac

have() { command -v "$1" >/dev/null 2>&1; }

# at_least VERSION PROGRAM ARG…: whether the program tells that version, or a higher one.
at_least() {
	least=$1
	shift
	have "$1" || return 1
	version=$("$@" 2>&1 | sed -nE 's/.*(v=|version "|\) )([0-9]+).*/\2/p' | head -n 1)
	[ "${version:-0}" -ge "$least" ]
}

# limited SECONDS COMMAND…
limited() {
	have timeout || shift
	if have timeout; then timeout "$@"; else "$@"; fi
}

# The image of a service in compose.yaml.
image() { sed -n "/^  $1:/,/image:/s/^ *image: *//p" compose.yaml; }

# A daemon whose host network is this machine's, as findDaemon in docker.go has it, and that
# has or can pull the image.
docker_has() {
	if [ "${LOCK_TEST_SERVERS:-}" = native ] || ! have docker; then return 1; fi
	case $(limited 30 docker info --format '{{.Name}} {{.SecurityOptions}}' 2>/dev/null) in
	*name=rootless* | *name=userns*) return 1 ;;
	"$(uname -n) "*) ;;
	*) return 1 ;;
	esac
	limited 30 docker image inspect "$1" >/dev/null 2>&1 || limited 600 docker pull --quiet "$1"
}

sudo=
if [ "$(id -u)" != 0 ]; then sudo=sudo; fi

# want WHAT SERVICE PACKAGE…: what is missing, and Debian's packages that have it. SERVICE is what
# they start, or "".
packages='' services='' missing=''
want() {
	missing="$missing
  $1"
	services="$services $2"
	shift 2
	packages="$packages $*"
}

apt() {
	$sudo env DEBIAN_FRONTEND=noninteractive \
		apt-get -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300 -qq "$@"
}

# install the packages that are wanted, or say what to install.
install() {
	if [ -z "$packages" ]; then return; fi
	if ! have apt-get || { [ -n "$sudo" ] && ! have sudo; }; then
		echo "servers: missing:$missing" >&2
		exit 1
	fi
	echo "servers: installing$packages"
	apt update
	# shellcheck disable=SC2086 # a list
	apt install --yes --no-install-recommends $packages >/dev/null
	for service in $services; do turn_off "$service"; done
	packages='' services='' missing=''
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

# The race detector needs a C compiler, and its headers.
need_compiler() {
	# shellcheck disable=SC2046 # CC may have arguments
	if echo '#include <stdlib.h>' | $($GO env CC) -x c -fsyntax-only - 2>/dev/null; then return; fi
	want "a C compiler for the race detector: gcc or clang" "" gcc libc6-dev
}

# What docs/service.md uses, whose commands a test runs.
need_curl() {
	if have curl && have jq; then return; fi
	want "curl and jq" "" curl jq
}

# What tries the alerts of contrib/otellock.
need_promtool() {
	if have promtool; then return; fi
	want "promtool, which comes with Prometheus" prometheus prometheus
}

need_redis() {
	if at_least 7 redis-server --version || docker_has "$(image redis)"; then return; fi
	want "redis-server 7 (brew install redis, dnf install redis), or Docker" redis-server redis-server
}

need_postgres() {
	for postgres in /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres postgres; do
		if at_least 15 "$postgres" --version; then return; fi
	done
	if docker_has "$(image postgres)"; then return; fi
	want "PostgreSQL 15 or newer (brew install postgresql), or Docker" postgresql postgresql
}

need_pgbouncer() {
	if have pgbouncer || [ -x /usr/sbin/pgbouncer ] || docker_has "$(image pgbouncer)"; then return; fi
	want "PgBouncer (brew install pgbouncer), or Docker" pgbouncer pgbouncer
}

need_nginx() {
	if have nginx || [ -x /usr/sbin/nginx ] || docker_has "$(image nginx)"; then return; fi
	want "nginx, or Docker" nginx nginx-light
}

need_java() {
	for java in /usr/lib/jvm/*/bin/java java; do
		if at_least 17 "$java" -version; then return; fi
	done
	want "Java 17 or newer" "" default-jre-headless
}

need_zookeeper() {
	if docker_has "$(image zookeeper)"; then return; fi
	need_java
	if [ -f /usr/share/java/zookeeper.jar ]; then return; fi
	want "ZooKeeper 3.8, or Docker" "" zookeeper libslf4j-java
}

need_dynamodb() {
	if docker_has "$(image dynamodb)"; then return; fi
	need_java
	if [ -f "$dynamodb/DynamoDBLocal.jar" ] || have npm; then return; fi
	want "npm, to fetch DynamoDB Local, or Docker" "" npm
}

get_etcd() {
	version=$($GO -C internal/testserver/etcd list -m -f '{{.Version}}' go.etcd.io/etcd/server/v3)
	etcd=$(cache)/etcd-$version/etcd
	if [ -x "$etcd" ]; then return; fi
	echo "servers: building etcd $version"
	CGO_ENABLED=0 $GO -C internal/testserver/etcd build -trimpath -ldflags=-s -o "$etcd.$$" .
	mv "$etcd.$$" "$etcd"
}

# DynamoDB Local is Amazon's own; the npm package that brings it is Amazon's too.
dynamodb_version=2.9.30
dynamodb_sha256=3503ffac19f183407909fecdacf4db51ab1fdad1da7b2f177016670b2d80e4b9

dynamodb=$(cache)/dynamodb-$dynamodb_version

get_dynamodb() {
	if [ -f "$dynamodb/DynamoDBLocal.jar" ]; then return; fi
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
	if ! [ -f "$dynamodb/DynamoDBLocal.jar" ]; then # nobody was faster
		rm -rf "$dynamodb"
		mv "$new/package/emulator" "$dynamodb"
	fi
	rm -rf "$new"
}

sha256() {
	if have sha256sum; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

need_all() {
	need_compiler
	need_curl
	need_promtool
	need_redis
	need_postgres
	need_pgbouncer
	need_nginx
	need_zookeeper
	need_dynamodb
}

if [ "${1:-}" != cache ]; then
	need_all
	if [ -n "$packages" ]; then
		install
		need_all
	fi
	if [ -n "$packages" ]; then
		echo "servers: what was installed is too old, or incomplete. Missing:$missing" >&2
		exit 1
	fi
	docker_has "$(image etcd)" || get_etcd
	docker_has "$(image dynamodb)" || get_dynamodb
	exit
fi
get_etcd
if ! [ -f "$dynamodb/DynamoDBLocal.jar" ] && ! have npm; then
	want "npm, to fetch DynamoDB Local" "" npm
	install
fi
get_dynamodb
