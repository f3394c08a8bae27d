#!/usr/bin/env bash
# Installs the real servers that the tests need, and says what it installs. Idempotent: a second run downloads nothing.
#
#   redis-server                      apt, only if missing
#   chromium                          apt, only if missing
#   nginx, haproxy, caddy             apt, only if missing
#   prometheus, -alertmanager         apt, only if missing (with promtool and amtool)
#   CrowdSec                          apt's package, unpacked into $QUERYWARDEN_CACHE: its own set-up wants the network
#   Apache Kafka broker               examples/install-kafka.sh, which `make up` shares
#
# Without root and without sudo nothing is installed by apt: what is missing is named and the tests that need it are
# skipped (with CI=true: this script fails). QUERYWARDEN_TEST_KAFKA and QUERYWARDEN_TEST_REDIS name running servers instead.
set -euo pipefail

CACHE="${QUERYWARDEN_CACHE:-$HOME/.cache/querywarden}"
missing=()
fresh_lists=""

say() { printf 'install-servers: %s\n' "$*"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"; else return 77; fi
}

apt_install() { # package, what for
    if ! command -v apt-get >/dev/null; then missing+=("$1 ($2): no apt-get here; install it by hand"); return; fi
    if ! as_root true; then missing+=("$1 ($2): needs root: apt-get install -y --no-install-recommends $1"); return; fi
    say "installing $1 with apt ($2)"
    if [ -z "$fresh_lists" ]; then as_root apt-get -qq -o DPkg::Lock::Timeout=300 update || true; fresh_lists=yes; fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$1" >/dev/null \
        || missing+=("$1 ($2): apt-get failed")
}

if [ -n "${QUERYWARDEN_TEST_REDIS:-}" ]; then say "Redis: using the running server of QUERYWARDEN_TEST_REDIS"
elif command -v redis-server >/dev/null; then say "Redis: $(redis-server --version | cut -d' ' -f3) is here"
else apt_install redis-server "the Redis server of the tests"; fi

if [ -n "${QUERYWARDEN_TEST_CHROMIUM:-}" ]; then say "Chromium: using $QUERYWARDEN_TEST_CHROMIUM"
elif [ -x /usr/bin/chromium ]; then say "Chromium: /usr/bin/chromium is here"
else apt_install chromium "the browser that the dashboard's tests look with"; fi

if [ -n "${QUERYWARDEN_TEST_KAFKA:-}" ]; then say "Kafka: using the running broker of QUERYWARDEN_TEST_KAFKA"
else "$(dirname "$0")/../examples/install-kafka.sh" || missing+=("Apache Kafka (see above)")
fi

# ------------------------------------------------------------------------------------------------------------- gateways
for gateway in nginx haproxy caddy; do
    if PATH="$PATH:/usr/sbin" command -v "$gateway" >/dev/null; then say "$gateway is here"
    else apt_install "$gateway" "the gateway $gateway of the tests"; fi
done

CROWDSEC="$CACHE/crowdsec-1.4.6"
if command -v crowdsec >/dev/null || [ -x "$CROWDSEC/usr/bin/crowdsec" ]; then say "CrowdSec is here"
elif ! command -v apt-get >/dev/null; then missing+=("crowdsec: no apt-get here; install it by hand")
else
    say "unpacking CrowdSec into $CROWDSEC"
    unpacking="$(mktemp -d "${TMPDIR:-/tmp}/querywarden-crowdsec.XXXXXX")"
    if (cd "$unpacking" && apt-get -qq -o APT::Sandbox::User=root download crowdsec && dpkg -x crowdsec_*.deb files) >/dev/null 2>&1; then
        mkdir -p "$CACHE"
        rm -rf "$CROWDSEC"
        mv "$unpacking/files" "$CROWDSEC"
    else
        missing+=("crowdsec: apt-get download failed")
    fi
    rm -rf "$unpacking"
fi

for monitor in prometheus prometheus-alertmanager; do
    if command -v "$monitor" >/dev/null; then say "$monitor is here"
    else apt_install "$monitor" "the $monitor of the tests"; fi
done

if [ "${#missing[@]}" -gt 0 ]; then
    for what in "${missing[@]}"; do say "MISSING $what" >&2; done
    if [ "${CI:-}" = true ]; then exit 1; fi
    say "tests that need what is missing will be skipped" >&2
fi
