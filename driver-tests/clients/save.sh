#!/bin/bash
# Behind `make test-clients`: real podman and real dockerd load what `save` wrote, a commit among it, with the same image IDs,
# run it, and what they save of it loads here with the same IDs again.
#
# Everything stands on a Btrfs of its own on a loop device below target/, and is gone afterwards, also when this fails.

. "$(dirname "$0")/../tools/lib.sh"

need_root "the clients' test" test-clients
find_cargo
need_compiler
need_daemons docker.io podman
need_packages btrfs-progs util-linux runc busybox-static python3

cd "$top"
step "Build"
run "$cargo" build --locked
give_back
work=$target/clients
mnt=$work/mnt
# podman refuses a run root of more than 50 characters.
short=$(mktemp -d /run/rfd.XXXXXX)
dockerd_pid=
finish() {
    local status=$?
    trap - EXIT
    if [ -n "$dockerd_pid" ]; then
        kill "$dockerd_pid" 2>/dev/null || true
        wait "$dockerd_pid" 2>/dev/null || true
    fi
    for _ in $(seq 50); do
        awk -v a="$short/" -v b="$mnt/" 'index($2, a) == 1 || index($2, b) == 1 { print $2 }' /proc/mounts | tac |
            while read -r at; do umount "$at" 2>/dev/null || true; done
        ! mountpoint -q "$mnt" || umount "$mnt" 2>/dev/null || true
        mountpoint -q "$mnt" || break
        sleep 0.2
    done
    rm -rf "$short" "$work/disk" "$work"/*.tar "$work/root"
    [ "$status" = 0 ] || printf '\nthe test failed (status %s)\n' "$status" >&2
    exit "$status"
}
trap finish EXIT
rm -f "$work"/*.tar
mkdir -p "$mnt"
truncate -s 4G "$work/disk"
mkfs.btrfs -q -f "$work/disk"
mount -o loop "$work/disk" "$mnt"

reflinkd() { "$target/debug/reflinkd" --root "$mnt/store" --no-tend "$@"; }
podman() {
    command /usr/bin/podman --root "$mnt/podman" --runroot "$short/p" --tmpdir "$short/t" --storage-driver vfs \
        --cgroup-manager cgroupfs --runtime runc --events-backend none "$@"
}
docker() { command /usr/bin/docker -H "unix://$short/docker.sock" "$@"; }
limits=(--ulimit nofile=1024:1024 --ulimit nproc=1000:1000)
id_of() { reflinkd inspect --type image "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["id"])'; }
same() { [ "$1" = "$2" ] || die "$3: $1 instead of $2"; }

step "An image, and a commit of a container of it"
root=$work/root
rm -rf "$root"
mkdir -p "$root"/{bin,etc,proc,sys,dev,tmp,usr/lib}
cp /bin/busybox "$root/bin/"
ln -s busybox "$root/bin/sh"
ln -s usr/lib "$root/lib"
echo old >"$root/etc/gone"
chmod 1777 "$root/tmp"
tar -C "$root" -c . | reflinkd import -c 'CMD ["/bin/sh", "-c", "cat /etc/new; test ! -e /etc/gone"]' - base >"$work/id"
reflinkd create --image base web1 >/dev/null
tree=$(reflinkd mount web1)
echo new >"$tree/etc/new"
rm "$tree/etc/gone"
ln "$tree/bin/busybox" "$tree/bin/cat"
reflinkd commit -m changed -c 'ENV A=1' web1 example.org/img:1 >/dev/null
wanted=$(id_of example.org/img:1)

step "podman $(podman --version | cut -d' ' -f3)"
for format in docker-archive oci-archive; do
    reflinkd save --format "$format" -o "$work/img.tar" example.org/img:1
    podman load -q -i "$work/img.tar"
    same "sha256:$(podman image inspect --format '{{.Id}}' example.org/img:1)" "$wanted" "podman's ID after $format"
    same "$(podman run --rm --network none "${limits[@]}" example.org/img:1)" new "what it runs after $format"
    podman save -q --format docker-archive -o "$work/back.tar" example.org/img:1
    podman rmi -f example.org/img:1 >/dev/null
    reflinkd tag example.org/img:1 kept
    reflinkd rmi example.org/img:1 >/dev/null
    reflinkd load -q -i "$work/back.tar"
    same "$(id_of example.org/img:1)" "$wanted" "our ID of what podman saved after $format"
    rm "$work/img.tar" "$work/back.tar"
    note "$format: loaded, run, saved and loaded again with the same ID"
done

step "dockerd"
/usr/sbin/dockerd --data-root "$mnt/docker" --exec-root "$short/exec" -p "$short/docker.pid" -H "unix://$short/docker.sock" \
    --storage-driver btrfs --iptables=false --bridge=none --ip-masq=false >"$work/dockerd.log" 2>&1 &
dockerd_pid=$!
for _ in $(seq 150); do
    ! docker version >/dev/null 2>&1 || break
    kill -0 "$dockerd_pid" || die "dockerd ended: $(tail -n 3 "$work/dockerd.log")"
    sleep 0.2
done
note "$(docker version --format '{{.Server.Version}}')"
reflinkd save example.org/img:1 base | docker load
same "$(docker image inspect --format '{{.Id}}' example.org/img:1)" "$wanted" "Docker's ID"
same "$(docker run --rm --network none "${limits[@]}" example.org/img:1)" new "what it runs"
docker save example.org/img:1 >"$work/back.tar"
reflinkd rmi example.org/img:1 >/dev/null
reflinkd load -q -i "$work/back.tar"
same "$(id_of example.org/img:1)" "$wanted" "our ID of what Docker saved"
reflinkd save -o "$work/again.tar" example.org/img:1
note "loaded, run, saved and loaded again with the same ID"

step "Removed again"
docker rmi -f example.org/img:1 base >/dev/null
reflinkd rm web1 >/dev/null
reflinkd rmi example.org/img:1 kept base >/dev/null
reflinkd gc >/dev/null
same "$(reflinkd layers --format json)" "[]" "layers that are left"
