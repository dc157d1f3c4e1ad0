#!/bin/sh
# Makes empty.zst again: the live blocks of an empty filesystem of Debian 12's mkfs.btrfs (btrfs-progs 6.2).
#
# Contents, before compression: the superblock (4096 bytes), then each tree node (16384 bytes; its address is
# in its own header). Nothing else of an empty filesystem matters: old copies of nodes are left out.
#
# Features are named one by one, so that other progs' defaults can't creep in; kernel 5.10 mounts all of them.
# Run by hand on Debian 12 as any user: sh src/backend/btrfs/template/regenerate.sh
set -eu
cd "$(dirname "$0")"
image=$(mktemp ./image.XXXXXX)
trap 'rm -f "$image"' EXIT
truncate -s 128M "$image"
mkfs.btrfs --quiet --metadata single --data single --nodesize 16384 --sectorsize 4096 --csum crc32c \
    --features extref,skinny-metadata,no-holes --runtime-features free-space-tree "$image" >/dev/null

# The nodes are read at their logical address: true only while every chunk lies at its own address.
btrfs inspect-internal dump-tree --tree chunk "$image" | awk '
    /CHUNK_ITEM/ { gsub(/\)/, "", $6); logical = $6 }
    /stripe 0 devid/ { chunks++; if ($NF != logical) { print "chunk " logical " lies at " $NF; bad = 1 } }
    END { exit bad || chunks != 3 }'
{
    dd if="$image" iflag=skip_bytes,fullblock skip=65536 bs=4096 count=1 status=none
    btrfs inspect-internal dump-tree "$image" | sed -n 's/^leaf \([0-9]*\) items .*/\1/p' | sort -n |
        while read -r address; do
            dd if="$image" iflag=skip_bytes,fullblock skip="$address" bs=16384 count=1 status=none
        done
} | zstd --quiet --force -19 --no-check -o empty.zst
ls -l empty.zst
