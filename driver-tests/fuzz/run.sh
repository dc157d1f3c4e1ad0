#!/bin/bash
# Behind `make fuzz`: build the targets, and run each for its share of MINUTES with one thread. What they find new is
# kept below target/fuzz/; an input that fails a target ends this with status 1 and belongs into corpus/, with the remedy.

. "$(dirname "$0")/../tools/lib.sh"

need_root "fuzzing" fuzz
find_cargo
need_compiler
command -v c++ >/dev/null || need_packages g++
"$cargo" fuzz --version >/dev/null 2>&1 || die "cargo-fuzz is missing" "cargo install cargo-fuzz"

read -ra targets <<<"${TARGETS:-tar unpack recipe pax decompress archive docker index manifest config reference}"
seconds=$((${MINUTES:-20} * 60 / ${#targets[@]}))
fuzz=$top/driver-tests/fuzz
found=$target/fuzz
export CARGO_TARGET_DIR=$target/fuzz/build
host=$("$(dirname "$cargo")/rustc" -vV | sed -n 's/^host: //p')

run "$cargo" fuzz build --fuzz-dir "$fuzz" --sanitizer none --target "$host"
run "$cargo" run --quiet --manifest-path "$fuzz/Cargo.toml" --example seeds -- "$found/corpus"
mkdir -p "$found/artifacts"

status=0
for name in "${targets[@]}"; do
    step "$name, $seconds s"
    run nice -n 15 "$CARGO_TARGET_DIR/$host/release/$name" "$found/corpus/$name" "$fuzz/corpus/$name" \
        -max_total_time="$seconds" -max_len=8192 -timeout=30 -rss_limit_mb=1024 \
        -artifact_prefix="$found/artifacts/$name-" -print_final_stats=1 -verbosity=0 || status=1
done
give_back
[ "$status" = 0 ] || die "a target failed: its input is in $found/artifacts"
