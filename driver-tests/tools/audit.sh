#!/bin/bash
# Behind `make audit`: what is linked in, held to deny.toml: licences, bans and sources, of the versions in Cargo.lock. Known
# holes need RustSec's database, which is asked for by git: where it can't be had, that is said, and ADVISORIES=1 makes it a
# failure.

. "$(dirname "$0")/lib.sh"

# The last one whose form of deny.toml was looked at.
wanted=0.20.2
tools=$target/tools
deny=$tools/bin/cargo-deny

find_cargo
need_compiler
if [ "$("$deny" --version 2>/dev/null)" != "cargo-deny $wanted" ]; then
    step "Install cargo-deny $wanted below target/tools"
    run "$cargo" install --quiet --locked --root "$tools" --target-dir "$tools/build" "cargo-deny@$wanted"
    rm -rf "$tools/build"
fi
cd "$top"

step "Licences, bans, sources"
run "$deny" --locked check --hide-inclusion-graph licenses bans sources

step "Advisories"
said=$target/advisories.log
if ! timeout 120 "$deny" fetch db >"$said" 2>&1; then
    [ -z "${ADVISORIES:-}" ] || die "RustSec's database can't be had: $(grep . "$said" | tail -n 1)"
    note "NOT CHECKED: RustSec's database can't be had here: $(grep . "$said" | tail -n 1)"
    note "licences, bans and sources are as they should be; whether a hole is known of anything, nobody has looked"
    exit 0
fi
run "$deny" --locked check --disable-fetch advisories
note "licences, bans, sources and advisories are as they should be"
