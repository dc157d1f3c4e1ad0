#!/bin/bash
# Behind `make proto` and, with `check`, `make test-proto`: that the code is what the protos give.

. "$(dirname "$0")/lib.sh"

find_cargo
cd "$top"
[ "${1:-}" = check ] || export REFLINKD_WRITE_API=1
run "$cargo" test --locked --manifest-path driver-tests/proto/Cargo.toml
give_back
