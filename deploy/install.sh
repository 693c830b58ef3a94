#!/usr/bin/env bash
# Installs what `make WHAT` needs and this machine lacks, saying what and why: on Debian and Ubuntu with
# apt-get; elsewhere it says what to install. Usage: deploy/install.sh demo|run|build|test|lint|bench
set -euo pipefail

what="${1:?usage: deploy/install.sh demo|run|build|test|lint|bench}"
pg_oldest=15
packages=()
reasons=()

# need PACKAGE WHY
need() {
    packages+=("$1")
    reasons+=("$2")
}

have() { command -v "$1" >/dev/null 2>&1; }

# Compiling: librdkafka is built from source, which takes a C and C++ compiler, cmake and these headers.
check_build() {
    if ! have cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        echo "cargo is installed but not on PATH. Run: . \"${CARGO_HOME:-$HOME/.cargo}/env\"" >&2
        exit 1
    fi
    if ! have cargo; then
        echo "Rust is not installed: see https://rustup.rs, then run this again." >&2
        exit 1
    fi
    { have cc && have c++ && have make; } || need build-essential "C and C++ compilers, for librdkafka and jemalloc"
    have cmake || need cmake "builds librdkafka"
    have pkg-config || need pkg-config "finds C libraries"
    header curl/curl.h || need libcurl4-openssl-dev "headers, for librdkafka"
    header zlib.h || need zlib1g-dev "headers, for librdkafka"
}

header() {
    local dir
    for dir in /usr/include /usr/include/*-linux-gnu* /usr/local/include /opt/homebrew/include; do
        [ -e "$dir/$1" ] && return 0
    done
    return 1
}

# Running: Kafka wants Java and, for fetching it, Maven; Postgres comes from the system.
check_stack() {
    java_17 || need openjdk-17-jre-headless "Java 17 or later, runs Kafka"
    have mvn || kafka_fetched || need maven "fetches Kafka, once"
    postgres_new_enough || need postgresql "the Postgres server, $pg_oldest or later"
}

java_17() {
    local java="${JAVA_HOME:+$JAVA_HOME/bin/}java" major
    have "$java" || return 1
    major="$("$java" -version 2>&1 | sed -n 's/.* version "\(1\.\)\{0,1\}\([0-9]*\).*/\2/p' | head -n 1)"
    [ "${major:-0}" -ge 17 ]
}

# The same folder that src/stack/jars.rs makes.
kafka_fetched() {
    local version
    version="$(sed -n 's|.*<version>\(.*\)</version>.*|\1|p' "$(dirname "$0")/kafka/pom.xml" | head -n 1)"
    if [ -n "${TIDELOG_CACHE_DIR:-}" ]; then
        [ -d "$TIDELOG_CACHE_DIR/kafka-$version" ]
    else
        [ -d "${XDG_CACHE_HOME:-${HOME:-}/.cache}/tidelog/kafka-$version" ]
    fi
}

# The same places that src/stack/postgres.rs looks in.
postgres_new_enough() {
    local dir major dirs=(/usr/lib/postgresql/*/bin)
    have pg_config && dirs+=("$(pg_config --bindir)")
    have postgres && dirs+=("$(dirname "$(command -v postgres)")")
    for dir in "${dirs[@]}"; do
        [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] || continue
        major="$("$dir/postgres" --version | sed -n 's/.*(PostgreSQL) \([0-9]*\).*/\1/p')"
        [ "${major:-0}" -ge "$pg_oldest" ] && return 0
    done
    return 1
}

check_build
case "$what" in
    build | lint) ;;
    run | bench) check_stack ;;
    demo | test)
        check_stack
        have curl || need curl "posts batches"
        have kcat || need kcat "reads topics as an analyst would"
        ;;
    *)
        echo "deploy/install.sh: no such target: $what" >&2
        exit 1
        ;;
esac

[ "${#packages[@]}" -eq 0 ] && exit 0

echo "\`make $what\` needs what is not installed here:"
for i in "${!packages[@]}"; do
    printf '  %-26s %s\n' "${packages[$i]}" "${reasons[$i]}"
done

if ! have apt-get; then
    echo "There is no apt-get here to install them with (the names above are Debian's):" >&2
    echo "install them your system's way, then run this again." >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! have sudo; then
        echo "Installing takes root, and there is no sudo here. As root, run:" >&2
        echo "  apt-get install ${packages[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "$@"; }

echo "Installing them with apt-get."
apt update -q

if [[ " ${packages[*]} " == *" postgresql "* ]]; then
    # Better now than after everything else is in.
    major="$(apt-cache policy postgresql | sed -n 's/.*Candidate: \([0-9]*\).*/\1/p')"
    if [ "${major:-0}" -lt "$pg_oldest" ]; then
        echo "This system's packages have Postgres ${major:-nowhere}, and $pg_oldest or later is needed (Ubuntu 22.04," >&2
        echo "for one, has 14). Add the PostgreSQL project's own packages, then run this again:" >&2
        echo "  https://www.postgresql.org/download/linux/" >&2
        exit 1
    fi
    # The package would start a server for the whole system on port 5432. Tidelog runs a private one, so
    # that is switched off, unless this machine has its own opinion already.
    conf=/etc/postgresql-common/createcluster.conf
    if [ ! -e "$conf" ]; then
        echo "Telling the package not to start a Postgres of its own ($conf)."
        "${as_root[@]}" mkdir -p "$(dirname "$conf")"
        echo "create_main_cluster = false" | "${as_root[@]}" tee "$conf" >/dev/null
    fi
fi
if [[ " ${packages[*]} " == *" openjdk-17-jre-headless "* ]] &&
    ! apt-cache policy openjdk-17-jre-headless | grep -q 'Candidate: [0-9]'; then
    # Newer systems have newer ones only.
    packages=("${packages[@]/openjdk-17-jre-headless/default-jre-headless}")
fi

# The conffile switch: our createcluster.conf stays, without a question.
apt install -y -q --no-install-recommends -o Dpkg::Options::=--force-confold "${packages[@]}"
