#!/bin/bash
# Behind `make build`: the release binary, with everything that its crates need to compile.

. "$(dirname "$0")/lib.sh"

find_cargo
if [ "$(id -u)" = 0 ]; then
    need_compiler
elif ! command -v cc >/dev/null; then
    die "no C compiler (SQLite and zstd are built from source)" "sudo apt-get install gcc libc6-dev"
fi
cd "$top"
run "$cargo" build --release --locked
give_back
