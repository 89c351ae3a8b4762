#!/bin/sh
# Sees to it that the tests find their servers: with Docker where a daemon has or can
# pull the images, else with programs, which on Debian and its kin are installed. It
# changes nothing where all is there.
set -eu
cd "$(dirname "$0")/../.."
GO=${GO:-go}

have() { command -v "$1" >/dev/null 2>&1; }

# The image of a service in compose.yaml.
image() { sed -n "/^  $1:/,/image:/s/^ *image: *//p" compose.yaml; }

docker_has() {
	[ "${LOCK_TEST_SERVERS:-}" != native ] && have docker && docker info >/dev/null 2>&1 &&
		{ docker image inspect "$1" >/dev/null 2>&1 || docker pull --quiet "$1"; }
}

apt_install() {
	echo "servers: installing $*"
	sudo=
	if [ "$(id -u)" != 0 ]; then sudo=sudo; fi
	$sudo apt-get update -qq
	$sudo env DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq --yes --no-install-recommends "$@" >/dev/null
}

# The race detector needs a C compiler.
need_compiler() {
	if have "$($GO env CC)"; then return; fi
	if ! have apt-get; then
		echo "servers: the race detector needs a C compiler: install gcc or clang" >&2
		exit 1
	fi
	apt_install gcc libc6-dev
}

need_redis() {
	if have redis-server || docker_has "$(image redis)"; then return; fi
	if ! have apt-get; then
		echo "servers: no Redis to test with: install redis-server 7 (brew install redis," \
			"dnf install redis), or start Docker" >&2
		exit 1
	fi
	apt_install redis-server
	# Debian starts a server with the package. The tests run their own.
	if [ -d /run/systemd/system ]; then
		$sudo systemctl disable --now redis-server
	else
		$sudo service redis-server stop >/dev/null 2>&1 || true
	fi
}

need_compiler
need_redis
