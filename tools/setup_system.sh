#!/usr/bin/env bash
# Installs the Debian packages that sandboxrt needs; with --test also those of its tests and benchmarks.
# Runs as root or through sudo, any number of times. Starts no service and leaves none enabled that was not there before.
# --list prints their names and installs nothing.
set -euo pipefail

# What each is for: the OCI runtime; images; disks; id maps of unprivileged users; the two C programs; virtual environments.
packages=(crun skopeo umoci e2fsprogs uidmap gcc libc6-dev python3-venv ca-certificates)
# The other runtimes; a registry; what to compare with; test images; what tests look at the host and into sandboxes with; a
# browser; what to reach through tunnels; machines of other kernels.
test_packages=(runc runsc docker-registry podman mmdebstrap musl-tools iproute2 procps redis-server
    chromium chromium-driver postgresql openssh-server qemu-system-x86)
services=(docker-registry redis-server postgresql ssh)

say() { echo "setup: $*"; }
fail() { echo "setup: error: $*" >&2; exit 1; }

list=
for argument in "$@"; do
    case "$argument" in
        --test) packages+=("${test_packages[@]}") ;;
        --list) list=yes ;;
        *) fail "unknown argument '$argument'; usage: $0 [--list] [--test]" ;;
    esac
done
if [ -n "$list" ]; then
    printf '%s\n' "${packages[@]}"
    exit 0
fi

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
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ ! -e "$policy" ]; then
    trap 'rm -f "$log"; "${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi

apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }
quietly() { "$@" >"$log" 2>&1 || { cat "$log" >&2; return 1; }; }
say "fetching the package lists"
# A list that cannot be fetched is a mere warning to apt: it goes on with the lists of another day, or with none. The
# packages may be found all the same; if not, the lists are why.
stale=
if ! quietly apt --error-on=any update; then
    stale=yes
    say "not all lists could be fetched (see above): is there a network? Going on with those that are here"
fi
say "downloading and unpacking"
if ! quietly apt install --yes --no-install-recommends "${missing[@]}"; then
    [ -z "$stale" ] || fail "${missing[*]} could not be installed because this machine's package sources cannot be \
reached: connect it to a network, or point /etc/apt/sources.list to a mirror, and run this again"
    fail "${missing[*]} could not be installed: see above"
fi

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
