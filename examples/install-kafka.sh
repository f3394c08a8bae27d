#!/usr/bin/env bash
# Fetches the Apache Kafka broker that `make up` and the tests start, and says what it does. A second run downloads nothing.
#
#   default-jre-headless, maven       apt, only if java or mvn are missing (needs root or sudo)
#   Apache Kafka broker (45 jars)     Maven Central, into $QUERYWARDEN_CACHE (default ~/.cache/querywarden)
set -euo pipefail

KAFKA_VERSION=4.3.1
CACHE="${QUERYWARDEN_CACHE:-$HOME/.cache/querywarden}"
JARS="$CACHE/kafka-$KAFKA_VERSION"

say() { printf 'install-kafka: %s\n' "$*"; }
fail() { say "MISSING $*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"; else return 77; fi
}

apt_install() { # package, what for
    command -v apt-get >/dev/null || fail "$1 ($2): no apt-get here; install it by hand"
    as_root true || fail "$1 ($2): needs root: apt-get install -y --no-install-recommends $1"
    say "installing $1 with apt ($2)"
    as_root apt-get -qq -o DPkg::Lock::Timeout=300 update || true
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$1" >/dev/null \
        || fail "$1 ($2): apt-get failed"
}

command -v java >/dev/null || apt_install default-jre-headless "runs the Kafka broker"
if [ -f "$JARS/.complete" ]; then
    say "Kafka: $KAFKA_VERSION is in $JARS"
    exit 0
fi
command -v mvn >/dev/null || apt_install maven "fetches the Kafka broker"
say "Kafka: fetching the $KAFKA_VERSION broker (44 MB) to $JARS"
mkdir -p "$CACHE"
build="$(mktemp -d "$CACHE/kafka-build.XXXXXX")"
trap 'rm -rf "$build"' EXIT
cat >"$build/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
 <groupId>querywarden</groupId><artifactId>kafka-broker</artifactId><version>1</version><packaging>pom</packaging>
 <dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA_VERSION</version></dependency></dependencies>
</project>
POM
mvn -q -B -f "$build/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$build/jars" \
    || fail "Kafka $KAFKA_VERSION: maven could not fetch it"
touch "$build/jars/.complete"
rm -rf "$JARS"
mv "$build/jars" "$JARS"
