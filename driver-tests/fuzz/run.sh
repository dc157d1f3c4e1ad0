#!/bin/bash
# Behind `make fuzz`: build the targets, and run each for its share of MINUTES with one thread. What they find new is
# kept below target/fuzz/; an input that fails a target ends this with status 1 and belongs into corpus/, with the remedy.

. "$(dirname "$0")/../tools/lib.sh"

need_root "fuzzing" fuzz
find_cargo
need_compiler
command -v c++ >/dev/null || need_packages g++

read -ra targets <<<"${TARGETS:-tar unpack recipe pax decompress archive docker index manifest config reference http plugin http2 snapshotter}"
seconds=$((${MINUTES:-20} * 60 / ${#targets[@]}))
fuzz=$top/driver-tests/fuzz
found=$target/fuzz
export CARGO_TARGET_DIR=$target/fuzz/build
host=$("$(dirname "$cargo")/rustc" -vV | sed -n 's/^host: //p')

# Coverage without a sanitizer: the compiler that is here will do. With --target build scripts have none of it.
flags=(--cfg=fuzzing -Cdebug-assertions -Coverflow-checks -Cpasses=sancov-module)
for way in level=4 inline-8bit-counters pc-table trace-compares stack-depth; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$way")
done
step "Build"
# The versions that everything else has.
cp "$top/Cargo.lock" "$fuzz/Cargo.lock"
RUSTFLAGS=${flags[*]} run "$cargo" build --quiet --release --manifest-path "$fuzz/Cargo.toml" --target "$host" --bin target
run "$cargo" run --quiet --manifest-path "$fuzz/Cargo.toml" --example seeds -- "$found/corpus"
mkdir -p "$found/artifacts"

status=0
for name in "${targets[@]}"; do
    step "$name, $seconds s"
    FUZZ_TARGET=$name run nice -n 15 "$CARGO_TARGET_DIR/$host/release/target" "$found/corpus/$name" "$fuzz/corpus/$name" \
        -max_total_time="$seconds" -max_len=8192 -timeout=30 -rss_limit_mb=1024 \
        -artifact_prefix="$found/artifacts/$name-" -print_final_stats=1 -verbosity=0 || status=1
done
give_back
[ "$status" = 0 ] || die "a target failed: its input is in $found/artifacts"
