#!/bin/bash
# Behind `make image`: target/image/reflinkd.tar, the image of packaging/kubernetes/daemonset.yaml.

. "$(dirname "$0")/lib.sh"

triple=$(uname -m)-unknown-linux-musl
find_cargo
need_static "$triple"
cd "$top"
run "$cargo" build --release --locked --target "$triple" --bin reflinkd
mkdir -p "$target/image"
# Four fifths are line numbers for a debugger.
run strip --strip-debug -o "$target/image/reflinkd" "$target/$triple/release/reflinkd"
python3 -B packaging/kubernetes/image.py "$target/image/reflinkd" reflinkd:latest "$target/image/reflinkd.tar"
note "$target/image/reflinkd.tar"
give_back
