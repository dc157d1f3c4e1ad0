#!/bin/bash
# Behind `make proto`. That the code is what the protos give is one of the tests.

. "$(dirname "$0")/lib.sh"

find_cargo
cd "$top"
export REFLINKD_WRITE_API=1
run "$cargo" test --locked --manifest-path driver-tests/proto/Cargo.toml
give_back
