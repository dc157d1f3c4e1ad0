#!/bin/bash
# Behind `make vmtest` and `make vm-lock`: what the virtual machines are made of, then vmtest.py.
#
#   K        kernels of vm-images/matrix.toml, or all; without it the matrix's default
#   FS       its cells; without it all
#   run.sh lock    asks Debian for the present packages, and writes vm-images/packages.lock

. "$(dirname "$0")/../tools/lib.sh"

here=$(cd "$(dirname "$0")" && pwd)
triple=x86_64-unknown-linux-musl
[ "$(uname -m)" = x86_64 ] || die "the kernels and QEMU of vm-images/ are for x86-64"
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ||
    die "there are no keys here to check Debian's packages with" "apt-get install debian-archive-keyring"
mkdir -p "$target"
if [ "${1:-}" = lock ]; then exec python3 -B "$here/vmtest.py" --target "$target" --lock; fi

find_cargo
missing=()
for package in gcc libc6-dev musl-tools python3; do installed "$package" || missing+=("$package"); done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || die "these are missing here: ${missing[*]}" "sudo apt-get install ${missing[*]}"
    need_packages "${missing[@]}"
fi
if ! [ -d "$(rustc --print target-libdir --target "$triple")" ]; then
    command -v rustup >/dev/null ||
        die "this toolchain can't link statically: it has no target $triple" "get one by rustup (https://rustup.rs)"
    run rustup target add "$triple"
fi

status=0
python3 -B "$here/vmtest.py" --target "$target" --cargo "$cargo" --kernels "${K:-}" --cells "${FS:-}" || status=$?
give_back
exit "$status"
