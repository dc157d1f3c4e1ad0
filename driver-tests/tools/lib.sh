# Sourced by the scripts behind `make demo`, `make test` and `make bench`: what a fresh
# Debian machine must have before they can work. It never hides a missing piece: either it
# installs it, saying so, or it ends with the command that does.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$top/target}
# cargo takes a relative CARGO_TARGET_DIR from where it runs, which is always $top here.
case $target in /*) ;; *) target=$top/$target ;; esac

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
note() { printf '   %s\n' "$*"; }
# Show a command as the user would type it, then run it.
run() {
    printf '\033[36m$ %s\033[0m\n' "$*"
    "$@"
}
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf 'hint: %s\n' "$line" >&2; done
    exit 1
}
# Without a terminal, no colours.
if [ ! -t 1 ]; then
    step() { printf '\n== %s\n' "$*"; }
    run() {
        printf '$ %s\n' "$*"
        "$@"
    }
fi

need_root() {
    [ "$(id -u)" = 0 ] && return
    die "$1 needs root (it makes loop devices, mounts and subvolumes)" "run it with sudo: sudo make $2"
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# need_packages NAME...: install those of the Debian packages that are missing.
need_packages() {
    local missing=()
    for package; do installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "these are missing here, and there is no apt-get to install them: ${missing[*]}" \
            "install what holds these programs with your own package manager"
    step "Install Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    local install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
    local log=$target/apt.log
    mkdir -p "$target"
    # A fresh machine has no package lists, an old one has stale ones: both fail at once here.
    if ! "${install[@]}" >"$log" 2>&1; then
        note "first try failed (no lists, or old ones): apt-get update"
        apt-get update -qq >>"$log" 2>&1 || die "apt-get update failed: $(tail -n 3 "$log")" "the whole output: $log"
        "${install[@]}" >>"$log" 2>&1 || die "apt-get install failed: $(tail -n 3 "$log")" "the whole output: $log"
    fi
}

# need_daemons NAME...: the same for packages with services, which stay off: who needs one starts it himself, on a
# data root of his own. policy-rc.d keeps the install from starting them, disabling keeps the next boot from it.
need_daemons() {
    local fresh=() units=() policy=/usr/sbin/policy-rc.d mine=
    for package; do installed "$package" || fresh+=("$package"); done
    [ ${#fresh[@]} -gt 0 ] || return 0
    # containerd comes with docker.io.
    installed docker.io || units+=(docker.service docker.socket)
    installed containerd || units+=(containerd.service)
    if [ ! -e "$policy" ]; then
        mine=1
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    need_packages "${fresh[@]}"
    if [ -n "$mine" ]; then
        rm -f "$policy"
        trap - EXIT
    fi
    [ -d /run/systemd/system ] || return 0
    # Those of packages that still aren't here are unknown to it.
    for unit in "${units[@]}"; do systemctl disable --quiet "$unit" 2>/dev/null || true; done
    note "their services are installed but disabled"
}

# A C compiler: SQLite and zstd are built from source.
need_compiler() { command -v cc >/dev/null || need_packages gcc libc6-dev; }

# need_static TRIPLE: a toolchain that links programs for it which need no library where they run.
need_static() {
    local missing=()
    for package in gcc libc6-dev musl-tools python3; do installed "$package" || missing+=("$package"); done
    if [ ${#missing[@]} -gt 0 ]; then
        [ "$(id -u)" = 0 ] || die "these are missing here: ${missing[*]}" "sudo apt-get install ${missing[*]}"
        need_packages "${missing[@]}"
    fi
    if ! [ -d "$(rustc --print target-libdir --target "$1")" ]; then
        command -v rustup >/dev/null ||
            die "this toolchain can't link statically: it has no target $1" "get one by rustup (https://rustup.rs)"
        run rustup target add "$1"
    fi
}

version_at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# Sets $cargo to one that is new enough for Cargo.toml, or ends with how to get it.
find_cargo() {
    local wanted found version candidates=() home= curl=
    wanted=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$top/Cargo.toml")
    # sudo's PATH lacks the invoking user's rustup.
    [ -z "${SUDO_USER:-}" ] || home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    candidates=("${CARGO:-}" "$(command -v cargo || true)" "${home:+$home/.cargo/bin/cargo}" "$HOME/.cargo/bin/cargo")
    found=
    for candidate in "${candidates[@]}"; do
        [ -n "$candidate" ] && [ -x "$candidate" ] || continue
        # The toolchain stays the user's; registry and caches of a root build stay root's.
        local env=()
        if [ -n "$home" ] && [ "$candidate" = "$home/.cargo/bin/cargo" ]; then env=(RUSTUP_HOME="$home/.rustup"); fi
        version=$(cd "$top" && env "${env[@]}" "$candidate" --version 2>/dev/null | cut -d' ' -f2) || continue
        found="${found:+$found, }$version ($candidate)"
        if [ -n "$version" ] && version_at_least "$wanted" "$version"; then
            cargo=$candidate
            [ ${#env[@]} -eq 0 ] || export "${env[@]}"
            PATH=$(dirname "$cargo"):$PATH
            export PATH
            return
        fi
    done
    local how=()
    # Debian 12's own cargo is 1.63's, but its updates carry a current one as cargo-web.
    if command -v apt-cache >/dev/null; then
        version=$(apt-cache policy cargo-web 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9.]*\).*/\1/p')
        if [ -n "$version" ] && version_at_least "$wanted" "$version"; then
            how+=("sudo apt-get install cargo-web rust-web-clippy rustfmt-web    # Debian's cargo $version")
        elif [ -z "$version" ] && grep -q '^VERSION_CODENAME=bookworm' /etc/os-release 2>/dev/null; then
            how+=("sudo apt-get update && sudo apt-get install cargo-web rust-web-clippy rustfmt-web    # from bookworm-security")
        fi
    fi
    command -v curl >/dev/null || curl="sudo apt-get install curl ca-certificates && "
    how+=("${curl:-}curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile default")
    die "cargo $wanted or newer is needed; found: ${found:-none}" "get one by either of these, then run this again:" "${how[@]}"
}

# Tells one store at a path from a later one at the same path: it derives from Btrfs's UUID.
filesystem_id() { stat --file-system --format=%i "$1" 2>/dev/null; }

# After a build by sudo, the user's own cargo must still be able to write below target/.
give_back() {
    [ -n "${SUDO_UID:-}" ] || return 0
    local dir
    for dir in "$target" "$target/debug" "$target/release"; do
        [ -d "$dir" ] || continue
        if [ "$dir" = "$target" ]; then
            chown "$SUDO_UID:$SUDO_GID" "$dir"
        else
            chown -R "$SUDO_UID:$SUDO_GID" "$dir"
        fi
    done
}

# Build target/debug/reflinkd. With an example, as its features are those of the tests then: nothing is compiled twice.
build_debug() {
    step "Build"
    run "$cargo" build --locked --bins --example reflinkd-verbs
    give_back
}

# Sets $programs to what gives a script in driver-tests/load btrfs-progs whose `check` can be believed.
find_btrfs_check() {
    programs=()
    # Debian 12's `btrfs check` doesn't open a filesystem with simple quotas; Debian 13's (6.14) finds relations of quota groups
    # broken as soon as the quota tree has two leaves.
    version_at_least 7 "$(btrfs --version | sed -n 's/^btrfs-progs v//p')" && return
    step "Unpack sid's btrfs-progs"
    programs=(--programs "$(python3 -B "$top/driver-tests/graphdriver/fetch.py" "$target/programs" sid btrfs-progs libc6)")
}
