#!/bin/bash
# Behind `make image`: target/image/reflinkd.tar, the image of packaging/kubernetes/daemonset.yaml.

. "$(dirname "$0")/lib.sh"

triple=$(uname -m)-unknown-linux-musl
find_cargo
need_static "$triple"
cd "$top"
run "$cargo" build --release --locked --target "$triple" --bin reflinkd
mkdir -p "$target/image"
python3 -B packaging/kubernetes/image.py "$target/$triple/release/reflinkd" reflinkd:latest "$target/image/reflinkd.tar"
note "$target/image/reflinkd.tar"
give_back
