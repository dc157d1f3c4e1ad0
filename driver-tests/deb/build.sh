#!/bin/bash
# Behind `make deb`: the release binary, its manual pages and completions, the units, as a Debian package.

. "$(dirname "$0")/../tools/lib.sh"

version=3.8.0
find_cargo
need_compiler
need_packages dpkg-dev xz-utils
cd "$top"
tools=$target/tools
if [ "$("$tools/bin/cargo-deb" --version 2>/dev/null)" != "cargo-deb $version" ]; then
    step "Build cargo-deb $version"
    CARGO_TARGET_DIR=$tools/build run "$cargo" install --quiet --locked --force --root "$tools" --version "$version" cargo-deb
    rm -rf "$tools/build"
fi
run "$cargo" build --release --locked --bins
made=$target/deb
rm -rf "$made"
mkdir -p "$made/man" "$made/completions"
binary=$target/release/reflinkd
"$binary" man "$made/man"
"$binary" completions bash >"$made/completions/reflinkd"
"$binary" completions zsh >"$made/completions/_reflinkd"
"$binary" completions fish >"$made/completions/reflinkd.fish"
rm -f "$target"/debian/*.deb
PATH=$tools/bin:$PATH run "$cargo" deb --no-build --locked
give_back
note "$(ls "$target"/debian/*.deb)"
