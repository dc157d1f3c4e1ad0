#!/bin/bash
# Build what is written in Go: build.sh WORK [suite|cri|bench]. WORK/conformance.test holds a snapshotter to containerd's own suite, and
# more; WORK/cri.client is a client of CRI, WORK/bench.client what `make bench-containerd` asks containerd with.

. "$(dirname "$0")/../tools/lib.sh"

here=$top/driver-tests/containerd
work=$1
mkdir -p "$work"
need_compiler

# environment SUITE: what Go of the unpacked packages needs.
environment() {
    GOROOT=$(echo "$unpacked"/usr/lib/go-*)
    export GOROOT GOPATH=$unpacked/usr/share/gocode GOCACHE=$work/gocache-$1
    export GO111MODULE=off GOFLAGS= GOTOOLCHAIN=local CGO_CFLAGS="-g -O2 -I$unpacked/usr/include"
    local unformatted
    unformatted=$("$GOROOT/bin/gofmt" -l "$here/$1")
    [ -z "$unformatted" ] || die "not as gofmt writes it: $unformatted"
}

# fresh NAME DIRECTORY: whether WORK/NAME has been built of these sources and packages.
fresh() {
    stamp="$(cat "$here/build.sh" "$here/$2"/*.go | sha256sum) $unpacked"
    [ -x "$work/$1" ] && [ "$(cat "$work/$1.stamp" 2>/dev/null)" = "$stamp" ]
}

conformance() {
    unpacked=$(python3 -B "$here/debs.py" "$work" suite)
    ! fresh conformance.test go || return 0
    local source=$unpacked/usr/share/gocode/src
    rm -rf "$source/snapshotter"
    mkdir "$source/snapshotter"
    cp "$here"/go/*_test.go "$source/snapshotter"
    ln -sfn . "$source/gotest.tools/v3"
    # Left out there for the sake of overlayfs on some kernels.
    sed -i '/t\.Skip("rename test still fails/d' "$source/github.com/containerd/containerd/snapshots/testsuite/issues.go"
    cd "$source/snapshotter"
    environment go
    "$GOROOT/bin/go" vet .
    "$GOROOT/bin/go" test -c -o "$work/conformance.test" .
    echo "$stamp" >"$work/conformance.test.stamp"
}

client() {
    unpacked=$(python3 -B "$here/debs.py" "$work" cri)
    ! fresh cri.client cri || return 0
    local source=$unpacked/usr/share/gocode/src
    rm -rf "$source/criclient"
    mkdir "$source/criclient"
    cp "$here"/cri/*.go "$source/criclient"
    cd "$source/criclient"
    environment cri
    export CGO_ENABLED=0
    "$GOROOT/bin/go" vet .
    "$GOROOT/bin/go" build -o "$work/cri.client" .
    echo "$stamp" >"$work/cri.client.stamp"
}

timed() {
    unpacked=$(python3 -B "$here/debs.py" "$work" suite)
    ! fresh bench.client bench || return 0
    local source=$unpacked/usr/share/gocode/src
    rm -rf "$source/benchclient"
    mkdir "$source/benchclient"
    cp "$here"/bench/*.go "$source/benchclient"
    cd "$source/benchclient"
    environment bench
    export CGO_ENABLED=0
    "$GOROOT/bin/go" vet .
    "$GOROOT/bin/go" build -o "$work/bench.client" .
    echo "$stamp" >"$work/bench.client.stamp"
}

case ${2:-all} in
suite) conformance ;;
cri) client ;;
bench) timed ;;
all)
    (conformance)
    client
    ;;
esac
