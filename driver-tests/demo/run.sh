#!/bin/bash
# Behind `make demo`: from a fresh Debian machine to five containers of a real nginx image,
# with the commands shown as they would be typed. It checks what it shows, ends with status 1
# where a number is off, and leaves the pool and the image for you to go on with.
#
#   REFLINKD_ROOT   the store to use (/var/lib/reflinkd)
#   DEMO_PORT       where nginx listens on loopback (8080)
#   DEMO_BINARY     a reflinkd to use in place of building one

. "$(dirname "$0")/../tools/lib.sh"

here=$(cd "$(dirname "$0")" && pwd)
root=${REFLINKD_ROOT:-/var/lib/reflinkd}
port=${DEMO_PORT:-8080}
work=$target/demo
archive=$work/nginx.tar
bundle=$work/bundle
runc_id=reflinkd-demo
declare -A megabytes=([web1]=10 [web2]=20 [web3]=30 [web4]=40 [web5]=50)
names=(web1 web2 web3 web4 web5)
# The containers that this run or one cut short made: only these are ever removed here.
made=$work/containers

need_root "the demo" demo
[ -n "${DEMO_BINARY:-}" ] || find_cargo
need_packages runc mmdebstrap umoci curl python3 ca-certificates
need_compiler
mkdir -p "$work"

if [ -n "${DEMO_BINARY:-}" ]; then
    PATH=$(cd "$(dirname "$DEMO_BINARY")" && pwd):$PATH
else
    step "Build the release binary"
    cd "$top"
    run "$cargo" build --release --locked
    give_back
    PATH=$target/release:$PATH
fi
PATH_HINT=${PATH%%:*}
export PATH
hash -r

nginx_state() { runc state "$runc_id" 2>/dev/null | python3 "$here/check.py" status; }
stop_nginx() {
    runc state "$runc_id" >/dev/null 2>&1 || return 0
    runc delete --force "$runc_id" >/dev/null 2>&1 || true
}
remove_made() {
    local name
    [ -f "$made" ] || return 0
    while IFS= read -r name; do reflinkd rm -f "$name" >/dev/null 2>&1 || true; done <"$made"
    rm -f "$made"
}
finish() {
    local status=$?
    trap - EXIT
    stop_nginx
    remove_made
    rm -rf "$bundle" "$work"/*.json
    [ "$status" = 0 ] || printf '\nthe demo failed (status %s); its containers are removed, pool and image are kept\n' "$status" >&2
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP
stop_nginx

if [ -e "$root.pool" ] || [ -n "$(ls -A "$root" 2>/dev/null)" ]; then
    step "The store at $root is there already"
    run reflinkd info
    remove_made
else
    step "Make the store: a pool file with Btrfs in it, on a loop device, with simple quotas"
    run reflinkd init
    printf '%s\n%s\n' "$root" "$(filesystem_id "$root")" >"$work/made-pool"
    python3 "$here/check.py" used "$root" >"$work/used-when-empty"
fi

step "A real nginx image, built from Debian packages"
"$here/build-image.sh" "$archive"

step "Load it: three layers; the steps that only configure add none"
run reflinkd load -i "$archive"
run reflinkd history nginx

images=$(reflinkd df --format json | python3 "$here/check.py" total)
used_before=$(python3 "$here/check.py" used "$root")

step "Make five containers: each is a snapshot of the image's top layer"
for name in "${names[@]}"; do
    run reflinkd create --image nginx "$name"
    # After, not before: a name that is taken is somebody else's container.
    echo "$name" >>"$made"
done
run reflinkd ps -s

step "Run nginx out of web1, with runc"
rm -rf "$bundle"
run reflinkd bundle web1 "$bundle" --network host
if ! python3 "$here/check.py" free "$port"; then
    port=$(python3 "$here/check.py" port)
    note "the port is taken here: nginx gets $port"
fi
if [ "$port" != 8080 ]; then run sed -i "s/NGINX_LISTEN=127.0.0.1:8080/NGINX_LISTEN=127.0.0.1:$port/" "$bundle/config.json"; fi
printf '$ runc run --detach --bundle %s %s\n' "$bundle" "$runc_id"
runc run --detach --bundle "$bundle" "$runc_id" </dev/null >"$work/nginx.log" 2>&1 ||
    die "runc couldn't start nginx: $(tail -n 5 "$work/nginx.log")"
printf '$ curl http://127.0.0.1:%s/\n' "$port"
page=
for _ in $(seq 100); do
    page=$(curl -fsS --noproxy '*' "http://127.0.0.1:$port/" 2>/dev/null) && break
    [ "$(nginx_state)" = running ] || break
    sleep 0.1
done
[ -n "$page" ] || die "nginx ($(nginx_state)) didn't answer on 127.0.0.1:$port: $(tail -n 5 "$work/nginx.log")"
printf '%s\n' "$page"
[ "$page" = "$(cat "$(reflinkd mount web1)/srv/www/index.html")" ] || die "that is not the page of web1"
case $page in *"Served out of a snapshot"*) ;; *) die "that is not the page of the image" ;; esac
run runc kill "$runc_id" QUIT
for _ in $(seq 100); do
    [ "$(nginx_state)" = stopped ] && break
    sleep 0.1
done
run runc delete "$runc_id"

step "Write 10 to 50 MB into each of the five"
for name in "${names[@]}"; do
    printf '$ head -c %s000000 /dev/urandom >"$(reflinkd mount %s)/test.log"\n' "${megabytes[$name]}" "$name"
    head -c "${megabytes[$name]}000000" /dev/urandom >"$(reflinkd mount "$name")/test.log"
done

step "Who uses what: SIZE is a container's own, VIRTUAL is its image and SIZE"
run reflinkd ps -s
run reflinkd df
reflinkd ps -s --format json >"$work/ps.json"
reflinkd df --format json >"$work/df.json"
used_full=$(python3 "$here/check.py" used "$root")
written=()
for name in "${names[@]}"; do written+=("$name=${megabytes[$name]}000000"); done
if [ -f "$work/used-when-empty" ] &&
    [ "$(cat "$work/made-pool" 2>/dev/null)" = "$root"$'\n'"$(filesystem_id "$root")" ]; then
    # From an empty store on: the image counts, once.
    base=0 growth=$((used_full - $(cat "$work/used-when-empty")))
else
    base=$images growth=$((used_full - used_before))
fi
python3 "$here/check.py" table "$work/ps.json" "$work/df.json" "$base" "$growth" "${written[@]}"

step "Remove all five: the space comes back"
run reflinkd rm "${names[@]}"
rm -f "$made"
run reflinkd gc
run reflinkd df
python3 "$here/check.py" back "$root" "$used_before" "$used_full"

step "Done; the pool and the image are yours to play with"
printf '   %s\n' \
    "export PATH=$PATH_HINT:\$PATH${REFLINKD_ROOT:+ REFLINKD_ROOT=$REFLINKD_ROOT}" \
    "reflinkd create --image nginx mine && reflinkd mount mine" \
    "reflinkd ps -s; reflinkd layers; reflinkd df -v" \
    "reflinkd destroy --yes     # all of it away: containers, image, pool file, loop device"
