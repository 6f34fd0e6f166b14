#!/usr/bin/env bash
# Installs the Debian packages that sandboxrt needs; with --test also those of its tests and benchmarks.
# Runs as root or through sudo, any number of times. Starts no service and leaves none enabled that was not there before.
set -euo pipefail

# What each is for: the OCI runtime; images; disks; id maps of unprivileged users; the two C programs; virtual environments.
packages=(crun skopeo umoci e2fsprogs uidmap gcc libc6-dev python3-venv ca-certificates)
# The other runtimes; a registry; what to compare with; test images; what tests look at the host and into sandboxes with; a
# browser; what to reach through tunnels.
test_packages=(runc runsc docker-registry podman mmdebstrap musl-tools iproute2 procps redis-server
    chromium chromium-driver postgresql openssh-server)
services=(docker-registry redis-server postgresql ssh)

say() { echo "setup: $*"; }
fail() { echo "setup: error: $*" >&2; exit 1; }

case "${1-}" in
    "") ;;
    --test) packages+=("${test_packages[@]}") ;;
    *) fail "unknown argument '$1'; usage: $0 [--test]" ;;
esac
[ $# -le 1 ] || fail "usage: $0 [--test]"

command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
    fail "this is no Debian or Ubuntu; install what corresponds to: ${packages[*]}"

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for package in "${packages[@]}"; do
    is_installed "$package" || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    say "all ${#packages[@]} packages are installed"
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "run this as root, or install sudo; missing: ${missing[*]}"
    as_root=(sudo)
fi

say "installing ${missing[*]}"
# A policy of our own keeps package scripts from starting services; one that is there already stays the administrator's.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi

apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }
log=$(mktemp)
quietly() { "$@" >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; fail "'${*:2}' failed: see above"; }; }
say "fetching the package lists"
quietly apt update
say "downloading and unpacking"
quietly apt install --yes --no-install-recommends "${missing[@]}"
rm -f "$log"

if command -v systemctl >/dev/null; then
    for service in "${services[@]}"; do
        case " ${missing[*]} " in
            *" $service "*)
                say "disabling the service $service, which nothing here needs"
                "${as_root[@]}" systemctl --quiet disable "$service" 2>/dev/null || say "it was not enabled"
                ;;
        esac
    done
fi

for package in "${missing[@]}"; do
    is_installed "$package" || fail "$package is still missing"
done
say "done: ${#missing[@]} packages installed"
