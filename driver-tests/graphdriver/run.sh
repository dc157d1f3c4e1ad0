#!/bin/bash
# Behind `make test-graphdriver`: Docker's own conformance suite of graph drivers, and more, through the proxy code of dockerd
# 20.10 and 26.1, against the socket of a fresh `reflinkd serve` on each ground; before that the same tests against Docker's
# own drivers, so that what they expect is what Docker does.
#
# DOCKER="bookworm" and GROUND="simple xfs" choose some. Docker's code and the Go to build it with are Debian's packages,
# unpacked below target/graphdriver and kept; every ground is a loop device there, and is gone afterwards.

. "$(dirname "$0")/../tools/lib.sh"

here=$top/driver-tests/graphdriver
work=$target/graphdriver
mnt=$work/mnt
dockers=${DOCKER:-bookworm trixie}
grounds=${GROUND:-overlay2 vfs simple full none xfs}

need_root "the graph drivers' test" test-graphdriver
find_cargo
need_compiler
need_packages btrfs-progs xfsprogs util-linux python3
cd "$top"
build_debug
reflinkd() { "$target/debug/reflinkd" --root "$mnt/store" --no-tend "$@"; }

# Docker's package, what it imports, and Go; then what only one of the two has.
common=(golang-github-containerd-containerd-dev golang-github-containerd-continuity-dev golang-github-docker-docker-dev
    golang-github-docker-go-connections-dev golang-github-docker-go-units-dev golang-github-google-go-cmp-dev
    golang-github-gotestyourself-gotest.tools-dev golang-github-moby-locker-dev golang-github-moby-sys-dev
    golang-github-opencontainers-selinux-dev golang-github-pkg-errors-dev golang-github-sirupsen-logrus-dev
    golang-github-vbatts-tar-split-dev golang-golang-x-net-dev golang-golang-x-sys-dev)
packages_bookworm=(golang-1.19-go golang-1.19-src golang-github-opencontainers-go-digest-dev
    golang-github-opencontainers-image-spec-dev golang-github-opencontainers-runc-dev)
packages_trixie=(golang-1.24-go golang-1.24-src golang-github-cespare-xxhash-dev golang-github-containerd-log-dev
    golang-github-klauspost-compress-dev golang-github-moby-patternmatcher-dev golang-golang-x-sync-dev)

# build SUITE: make $work/SUITE.test.
build() {
    local -n packages=packages_$1
    local unpacked source
    unpacked=$(python3 -B "$here/fetch.py" "$work" "$1" "${common[@]}" "${packages[@]}")
    source=$unpacked/usr/share/gocode/src
    rm -rf "$source/graphdriver" "$source/github.com/docker/docker/plugin/v2"
    mkdir "$source/graphdriver"
    cp "$here"/*_test.go "$source/graphdriver"
    cp -r "$here/shims/." "$source/github.com/docker/docker"
    ln -sfn . "$source/gotest.tools/v3"
    local tags=()
    [ "$1" = bookworm ] || tags=(-tags docker26)
    (
        cd "$source/graphdriver"
        GOROOT=$(echo "$unpacked"/usr/lib/go-*)
        export GOROOT GOPATH=$unpacked/usr/share/gocode GOCACHE=$work/gocache-$1
        export GO111MODULE=off CGO_ENABLED=0 GOFLAGS= GOTOOLCHAIN=local
        local unformatted
        unformatted=$("$GOROOT/bin/gofmt" -l "$here")
        [ -z "$unformatted" ] || die "not as gofmt writes it: $unformatted"
        "$GOROOT/bin/go" vet "${tags[@]}" .
        "$GOROOT/bin/go" test -c "${tags[@]}" -o "$work/$1.test" .
    )
}
mkdir -p "$work" "$mnt"
for docker in $dockers; do
    [ -n "$(declare -p "packages_$docker" 2>/dev/null)" ] || die "no packages are known for DOCKER=$docker" "bookworm or trixie"
    step "Docker's proxy and suite of Debian $docker"
    build "$docker"
done

short=$(mktemp -d /run/rfd.XXXXXX)
pid_file=$work/serve.pid
rm -f "$pid_file"
# Whether it ended in time, and by itself. The tests may have put another server in the place of ours, which is no child to wait for.
stop() {
    [ -s "$pid_file" ] || return 0
    local pid
    pid=$(cat "$pid_file")
    rm -f "$pid_file"
    kill "$pid" 2>/dev/null || return
    for _ in $(seq 250); do
        case $(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null) in '' | Z) return 0 ;; esac
        sleep 0.1
    done
    kill -9 "$pid"
    return 1
}
unmount() {
    for _ in $(seq 50); do
        awk -v below="$mnt/" 'index($2, below) == 1 { print $2 }' /proc/mounts | tac |
            while read -r at; do umount "$at" 2>/dev/null || true; done
        ! mountpoint -q "$mnt" || umount "$mnt" 2>/dev/null || true
        mountpoint -q "$mnt" || return 0
        sleep 0.2
    done
}
finish() {
    local status=$?
    trap - EXIT
    stop || true
    unmount
    rm -rf "$short" "$work/disk"
    exit "$status"
}
trap finish EXIT

# ground NAME: mount one, with a store on it where reflinkd is what is tested.
ground() {
    rm -f "$work/disk"
    truncate -s 4G "$work/disk"
    case $1 in
        xfs | overlay2 | vfs) mkfs.xfs -q -m reflink=1 "$work/disk" ;;
        *) mkfs.btrfs -q -m single "$work/disk" >/dev/null ;;
    esac
    mount -o loop "$work/disk" "$mnt"
    mkdir "$mnt/tmp"
    case $1 in
        overlay2 | vfs) return ;;
        simple | full)
            reflinkd init >/dev/null
            reflinkd quota enable "--$1" --yes >/dev/null 2>&1
            ;;
        none | xfs) reflinkd init >/dev/null ;;
        *) die "there is no GROUND=$1" "simple, full, none, xfs; overlay2 and vfs are Docker's own drivers" ;;
    esac
}

# What starts the server, here and in the tests.
printf '#!/bin/sh\nexec "%s" --root "%s" --no-tend serve --docker "%s" >>"%s" 2>&1\n' \
    "$target/debug/reflinkd" "$mnt/store" "$short/reflinkd.sock" "$work/serve.log" >"$work/serve"
chmod 755 "$work/serve"
serve() {
    : >"$work/serve.log"
    "$work/serve" &
    echo $! >"$pid_file"
    # A test kills it; the shell needn't tell.
    disown
    for _ in $(seq 150); do
        [ ! -S "$short/reflinkd.sock" ] || return 0
        kill -0 "$(cat "$pid_file")" 2>/dev/null || die "serve ended: $(tail -n 3 "$work/serve.log")"
        sleep 0.1
    done
    die "serve makes no socket: $(tail -n 3 "$work/serve.log")"
}

results=$work/results
: >"$results"
record() { echo "$column $1 $2" >>"$results"; }

# Everything was removed: the store holds no tree, the filesystem no subvolume but the store's own.
nothing_left() {
    reflinkd gc >/dev/null || return
    [ -z "$(ls "$mnt/store/snapshots")" ] || return
    [ "$(stat -f -c %T "$mnt")" != btrfs ] || [ "$(btrfs subvolume list "$mnt" | wc -l)" = "$subvolumes" ]
}

# on GROUND DOCKER: run all tests there.
on() {
    column=$1/$2
    step "$1, Docker of Debian $2"
    ground "$1"
    local environment=(TMPDIR="$mnt/tmp" REFLINKD_LIMITS=refused) log=$work/$1-$2.log status=0
    case $1 in
        overlay2 | vfs) environment+=(GRAPHDRIVER="$1") ;;
        *)
            [ "$1" != simple ] && [ "$1" != full ] || environment+=(REFLINKD_LIMITS=held)
            [ "$(stat -f -c %T "$mnt")" != btrfs ] || subvolumes=$(btrfs subvolume list "$mnt" | wc -l)
            serve
            environment+=(REFLINKD_SOCKET="$short/reflinkd.sock" REFLINKD_SERVE="$work/serve" REFLINKD_PIDFILE="$pid_file")
            ;;
    esac
    env "${environment[@]}" "$work/$2.test" -test.v -test.timeout 10m >"$log" 2>&1 || status=$?
    sed -n 's,^ *--- \(PASS\|FAIL\|SKIP\): TestDriver/\([^ ]*\) .*,'"$column"' \2 \1,p' "$log" >>"$results"
    if [ -s "$pid_file" ]; then
        if stop && [ ! -e "$short/reflinkd.sock" ]; then record ServeEnds PASS; else record ServeEnds FAIL; fi
        if nothing_left; then record NothingLeft PASS; else record NothingLeft FAIL; fi
        cp "$work/serve.log" "$work/$1-$2-serve.log"
    fi
    note "$(grep -c -- '--- PASS: TestDriver/' "$log") of $(grep -c -- '--- [A-Z]*: TestDriver/' "$log") tests pass; $log"
    if [ "$status" != 0 ]; then
        # What each test that failed has said; all of it after a panic.
        awk '/^=== RUN/ { name = $3 } { said[name] = said[name] $0 "\n" }
            $2 == "FAIL:" && $3 ~ "/" { failed[$3] = 1 } END { for (name in failed) printf "%s", said[name] }' "$log" >&2
        ! grep -q '^panic:' "$log" || sed -n '/^panic:/,$p' "$log" | head -n 40 >&2
        record Binary FAIL
    fi
    unmount
}
for docker in $dockers; do
    for ground in $grounds; do on "$ground" "$docker"; done
done

step "Ground by test; - is what Docker's own drivers don't do"
order=$(sed -n 's/^\t{"\([A-Za-z0-9]*\)", .*/\1/p' "$here/suite_test.go")
awk -v order="$order" '
    BEGIN { rows = split(order, names, "\n"); for (r = 1; r <= rows; r++) row[names[r]] = r }
    { if (!($1 in seen)) { seen[$1] = ++columns; head[columns] = $1 }
      if (!($2 in row)) { row[$2] = ++rows; names[rows] = $2 }
      result[$1, $2] = $3; if ($3 != "PASS") bad++ }
    END {
        printf "%-28s", ""; for (c = 1; c <= columns; c++) { split(head[c], part, "/"); printf " %-9s", part[1] } print ""
        printf "%-28s", ""; for (c = 1; c <= columns; c++) printf " %-9s", head[c] ~ /trixie/ ? "26.1" : "20.10"; print ""
        for (r = 1; r <= rows; r++) {
            printf "%-28s", names[r]
            for (c = 1; c <= columns; c++) {
                s = tolower(result[head[c], names[r]])
                if (s == "") { s = "-"; if (head[c] !~ /^(overlay2|vfs)/ && names[r] != "Binary") { s = "MISSING"; bad++ } }
                printf " %-9s", s
            }
            print ""
        }
        exit bad > 0 }' "$results"
