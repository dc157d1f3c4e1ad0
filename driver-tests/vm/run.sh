#!/bin/bash
# Behind `make vmtest` and its like: what the virtual machines are made of, then vmtest.py.
#
#   K        kernels of vm-images/matrix.toml; without it all
#   FS       its cells; without it all
#   LANE     its lanes; without it all, but none with FS
#   run.sh quick   one boot of what the matrix has for it
#   run.sh shell   a shell in the kernel K, with the filesystem FS at /mnt
#   run.sh lock    asks Debian for the present packages, and writes vm-images/packages.lock

. "$(dirname "$0")/../tools/lib.sh"

here=$(cd "$(dirname "$0")" && pwd)
triple=x86_64-unknown-linux-musl
[ "$(uname -m)" = x86_64 ] || die "the kernels and QEMU of vm-images/ are for x86-64"
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ||
    die "there are no keys here to check Debian's packages with" "apt-get install debian-archive-keyring"
mkdir -p "$target"
action=${1:-}
if [ "$action" = lock ]; then exec python3 -B "$here/vmtest.py" --target "$target" --lock; fi

find_cargo
if [ "$action" = quick ]; then
    for tool in cc python3; do
        command -v "$tool" >/dev/null || die "$tool is missing here" "sudo apt-get install gcc libc6-dev python3"
    done
else
    need_static "$triple"
fi

status=0
python3 -B "$here/vmtest.py" --target "$target" --cargo "$cargo" ${action:+"--$action"} \
    --kernels "${K:-}" --cells "${FS:-}" --lanes "${LANE:-}" || status=$?
give_back
exit "$status"
