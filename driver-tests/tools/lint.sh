#!/bin/bash
# Behind `make lint`.

. "$(dirname "$0")/lib.sh"

find_cargo
for tool in fmt clippy; do
    "$cargo" "$tool" --version >/dev/null 2>&1 ||
        die "cargo $tool is missing" "rustup component add rustfmt clippy, or: sudo apt-get install rustfmt-web rust-web-clippy"
done
if [ "$(id -u)" = 0 ]; then need_compiler; fi
cd "$top"
run "$cargo" fmt --all --check
run "$cargo" clippy --locked --all-targets -- -D warnings
# What only virtual machines run isn't among all targets.
run "$cargo" clippy --locked --test conformance_vm --test e2e_vm --test changes_vm -- -D warnings
give_back
