# Shared by the scripts that build guest kernels and root file systems.
# shellcheck shell=bash
#
# Each of them prints one line on standard output, the directory with the
# result, which is named by a hash of all that went in and never changes
# afterwards; progress goes to standard error and details to a log file.

CACHE=${COFFERDAM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cofferdam}
MIRROR=${COFFERDAM_DEBIAN_MIRROR:-http://deb.debian.org/debian}
SELF=$(basename "$(dirname "$0")")/$(basename "$0")

say() { printf '%s: %s\n' "$SELF" "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# usage_of SCRIPT: its leading comment is its help.
usage_of() { sed -n '2,/^$/ { s/^# \{0,1\}//; p }' "$1"; }

# need COMMAND[=PACKAGE]...
need() {
    local item packages=()
    for item; do
        command -v "${item%=*}" >/dev/null || packages+=("${item#*=}")
    done
    [ ${#packages[@]} -eq 0 ] ||
        die "missing tools; install them by: apt-get install ${packages[*]} (or run resources/setup)"
}

# step WHAT COMMAND...: one line of progress; output goes to $LOG, of which the
# end is shown if the command fails.
step() {
    local what=$1 start=$SECONDS status=0
    shift
    printf '%s: %s' "$SELF" "$what" >&2
    printf '\n=== %s\n' "$what" >>"$LOG"
    # In a subshell of its own so that `set -e` still holds inside functions.
    set +e
    (
        set -e
        "$@"
    ) >>"$LOG" 2>&1
    status=$?
    set -e
    if [ $status -ne 0 ]; then
        printf ' FAILED\n' >&2
        tail -n 20 "$LOG" >&2
        die "$what failed; all of it is in $LOG"
    elif [ $((SECONDS - start)) -ge 2 ]; then
        printf ' (%d s)\n' $((SECONDS - start)) >&2
    else
        printf '\n' >&2
    fi
}

# hash_of FILE...: names what is made from them; `-` is standard input.
hash_of() { cat "$@" | sha256sum | cut -c 1-16; }

# reuse DIRECTORY: a finished one is printed, and that is all.
reuse() {
    [ -d "$1" ] || return 0
    printf '%s\n' "$1"
    exit 0
}

# begin KIND: one build of a kind at a time; what is built in $WORK appears under
# its final name at once or not at all.
begin() {
    mkdir -p "$CACHE/$1"
    exec 9>"$CACHE/$1/lock"
    flock -n 9 || {
        say "waiting for another build of $1"
        flock 9
    }
    LOG=$CACHE/$1/${0##*/}.log
    : >"$LOG"
    # What a killed build left; the lock says that none is running.
    rm -rf "$CACHE/$1"/work.*
    WORK=$(mktemp -d "$CACHE/$1/work.XXXXXX")
    trap 'rm -rf "$WORK"' EXIT
}

# publish DIRECTORY: $WORK/out becomes it.
publish() {
    mv -T "$WORK/out" "$1"
    printf '%s\n' "$1"
}

# --- Debian packages, without touching this machine's apt sources -----------------

# apt_use SUITE...: the suites that private_apt sees; needs $WORK.
apt_use() {
    local suite mirror
    mkdir -p "$WORK/apt/lists/partial" "$WORK/apt/archives/partial"
    for suite; do
        mirror=$MIRROR
        [[ $suite != *-security ]] || mirror=$MIRROR-security
        printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$mirror" "$suite"
    done >"$WORK/apt/sources.list"
    private_apt apt-get update
}

private_apt() {
    local tool=$1
    shift
    "$tool" -o Dir::Etc::SourceList="$WORK/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$WORK/apt/lists" -o Dir::Cache="$WORK/apt" \
        -o APT::Sandbox::User= "$@"
}

# newest PACKAGE: its candidate's version, or nothing.
newest() {
    private_apt apt-cache policy "$1" | sed -n 's/^ *Candidate: //p' | grep -vx '(none)' || true
}

# fetch PACKAGE VERSION DIRECTORY SUITE...: unless it is there already; older
# ones go.
fetch() {
    local package=$1 version=$2 directory=$3
    shift 3
    # apt writes the colon of an epoch as %3a.
    ! compgen -G "$directory/${package}_${version//:/%3a}_*.deb" >/dev/null || return 0
    [ -d "$WORK/apt" ] || apt_use "$@"
    mkdir -p "$directory"
    cd "$directory"
    rm -f "$package"_*.deb
    private_apt apt-get download "$package=$version"
}
