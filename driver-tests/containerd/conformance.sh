#!/bin/bash
# Build the binary that holds a snapshotter to containerd's own suite, and more: conformance.sh WORK. It is WORK/conformance.test.

. "$(dirname "$0")/../tools/lib.sh"

here=$top/driver-tests/containerd
work=$1
mkdir -p "$work"
need_compiler
unpacked=$(python3 -B "$here/debs.py" "$work" suite)
source=$unpacked/usr/share/gocode/src
stamp=$(cat "$here/conformance.sh" "$here"/go/*_test.go | sha256sum)
[ "$(cat "$work/conformance.stamp" 2>/dev/null)" != "$stamp $unpacked" ] || [ ! -x "$work/conformance.test" ] || exit 0
rm -rf "$source/snapshotter"
mkdir "$source/snapshotter"
cp "$here"/go/*_test.go "$source/snapshotter"
ln -sfn . "$source/gotest.tools/v3"
# Left out there for the sake of overlayfs on some kernels.
sed -i '/t\.Skip("rename test still fails/d' "$source/github.com/containerd/containerd/snapshots/testsuite/issues.go"
cd "$source/snapshotter"
GOROOT=$(echo "$unpacked"/usr/lib/go-*)
export GOROOT GOPATH=$unpacked/usr/share/gocode GOCACHE=$work/gocache
export GO111MODULE=off GOFLAGS= GOTOOLCHAIN=local CGO_CFLAGS="-g -O2 -I$unpacked/usr/include"
unformatted=$("$GOROOT/bin/gofmt" -l "$here/go")
[ -z "$unformatted" ] || die "not as gofmt writes it: $unformatted"
"$GOROOT/bin/go" vet .
"$GOROOT/bin/go" test -c -o "$work/conformance.test" .
echo "$stamp $unpacked" >"$work/conformance.stamp"
