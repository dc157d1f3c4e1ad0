#!/bin/bash
# build-image.sh OUT.tar: a real nginx image out of Debian packages, as an OCI archive.
#
# Three layers (base system, nginx, page and configuration) and a step for each thing that
# only configures (ENV, LABEL, EXPOSE, ...), which adds a history entry and no layer. Made
# without a container engine: mmdebstrap, chroot and umoci. The packages come from where this
# machine's apt takes its own Debian from. OUT is kept: while this script and the suite stay
# the same, a second call does nothing.
#
# Every mount is made in a mount namespace of its own, so that none can be left behind.

. "$(dirname "$0")/../tools/lib.sh"

out=${1:?usage: build-image.sh OUT.tar}
name=docker.io/library/nginx:latest
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
here=$(cd "$(dirname "$0")" && pwd)
key=$(sha256sum <"$0" | cut -c1-16)-$suite

if [ -f "$out" ] && [ "$(cat "$out.key" 2>/dev/null)" = "$key" ]; then
    note "the image is cached: $out"
    exit 0
fi
need_root "building the demo image" demo
need_packages mmdebstrap umoci python3 ca-certificates

# Where this machine's apt gets Debian from: "deb URI SUITE COMPONENT" lines. Third parties'
# repositories, and other origins with the same suite names, stay out of the image.
debian_sources() {
    apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|deb $(REPO_URI) $(CODENAME) $(COMPONENT)' \
        'Created-By: Packages' 2>/dev/null |
        sed -n "s/^Debian|$suite\(-updates\|-security\)\?|//p" | sort -u | grep -v '^$' || true
}
sources=${DEMO_SOURCES:-$(debian_sources)}
if [ -z "$sources" ]; then
    apt-get update -qq
    sources=$(debian_sources)
fi
[ -n "$sources" ] || die "this machine's apt knows no Debian repository to build the image from" \
    "set DEMO_SOURCES='deb URI SUITE main' (one or more lines)"
# A proxy or a relaxed date check of this machine must hold for the image's apt too.
apt_options=()
while IFS= read -r option; do apt_options+=("$option"); done < <(
    apt-config dump | sed -n 's/^\(Acquire::\(https\?::Proxy\|Check-[A-Za-z-]*\)\) "\(.\+\)";$/\1=\3/p')

work=$(dirname "$out")/image-work
layout=$work/layout
bundle=$work/bundle
root=$bundle/rootfs
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
log=$work/log
quietly() { "$@" >"$log" 2>&1 || { cat "$log" >&2; die "building the demo image: this failed: $*"; }; }

# inside COMMAND...: run it in the image's root, with /proc, /dev and the host's resolver.
inside() {
    unshare --mount --pid --fork --kill-child --propagation private -- bash -euc '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount -t tmpfs tmpfs "$root/tmp"
        for device in null zero full random urandom; do
            [ -e "$root/dev/$device" ] || continue
            mount --bind "/dev/$device" "$root/dev/$device"
        done
        mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive \
            chroot "$root" "$@"' - "$root" "$@"
}
# layer TEXT: what changed in the root since the last one becomes a layer.
layer() {
    quietly umoci repack --image "$layout:latest" --refresh-bundle --history.created_by "$1" \
        --history.author "" "$bundle"
}
# configure TEXT OPTION...: a step that adds a line of history and no layer.
configure() {
    local text=$1
    shift
    quietly umoci config --image "$layout:latest" --history.created_by "$text" --history.author "" "$@"
}

quietly umoci init --layout "$layout"
quietly umoci new --image "$layout:latest"
quietly umoci unpack --image "$layout:latest" "$bundle"

note "layer 1: a minimal Debian $suite (mmdebstrap)"
printf '%s\n' "$sources" >"$work/sources.list"
quietly mmdebstrap --mode=root --variant=minbase --format=directory \
    "${apt_options[@]/#/--aptopt=}" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"' \
    --customize-hook='printf "#!/bin/sh\nexit 101\n" >"$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d"' \
    --customize-hook=': >"$1/etc/resolv.conf"; echo debian >"$1/etc/hostname"' \
    "$suite" "$root" - <"$work/sources.list"
layer "mmdebstrap --variant=minbase $suite"
configure '/bin/sh -c #(nop)  CMD ["bash"]' --config.cmd bash

configure '/bin/sh -c #(nop)  LABEL org.opencontainers.image.title=nginx' \
    --config.label org.opencontainers.image.title=nginx
configure '/bin/sh -c #(nop)  ENV NGINX_LISTEN=127.0.0.1:8080' \
    --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    --config.env NGINX_LISTEN=127.0.0.1:8080

# umoci repacks onto the image that the bundle came from: without a new bundle the steps
# above would be lost.
rm -rf "$bundle"
quietly umoci unpack --image "$layout:latest" "$bundle"

note "layer 2: nginx, by apt in a chroot"
quietly inside apt-get update "${apt_options[@]/#/-o}"
quietly inside apt-get install -y --no-install-recommends "${apt_options[@]/#/-o}" nginx
quietly inside sh -c 'apt-get clean; rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt/* /var/log/dpkg.log \
    /var/log/alternatives.log /var/cache/debconf/*-old /var/lib/dpkg/*-old'
layer '/bin/sh -c apt-get update && apt-get install -y --no-install-recommends nginx && rm -rf /var/lib/apt/lists/*'

note "layer 3: a page and its configuration"
mkdir -p "$root/srv/www"
cat >"$root/srv/www/index.html" <<'PAGE'
<!doctype html>
<title>reflinkd</title>
<h1>Served out of a snapshot</h1>
<p>This page is one layer of an image; the container that serves it is a snapshot of it.</p>
PAGE
cat >"$root/etc/nginx/nginx.conf" <<'CONF'
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr notice;
events { worker_connections 64; }
http {
    include /etc/nginx/mime.types;
    access_log /dev/stdout combined;
    server {
        include /run/nginx-listen.conf;
        root /srv/www;
    }
}
CONF
# nginx reads no environment in its configuration: the entry point writes that one line.
cat >"$root/usr/local/bin/serve" <<'SERVE'
#!/bin/sh
set -e
echo "listen ${NGINX_LISTEN:?};" >/run/nginx-listen.conf
exec "$@"
SERVE
chmod 755 "$root/usr/local/bin/serve"
layer '/bin/sh -c #(nop) COPY dir:www /srv/www, nginx.conf /etc/nginx/nginx.conf, serve /usr/local/bin/serve'

configure '/bin/sh -c #(nop)  EXPOSE 8080' --config.exposedports 8080/tcp
configure '/bin/sh -c #(nop)  STOPSIGNAL SIGQUIT' --config.stopsignal SIGQUIT
configure '/bin/sh -c #(nop)  ENTRYPOINT ["serve"]' --config.entrypoint serve
configure '/bin/sh -c #(nop)  CMD ["nginx" "-g" "daemon off;"]' \
    --config.cmd nginx --config.cmd -g --config.cmd 'daemon off;'

quietly umoci gc --layout "$layout"
python3 "$here/check.py" name "$layout" "$name"
python3 "$here/check.py" image "$layout"
# Only now does the archive take its place: a call cut short leaves no half of it.
tar -C "$layout" --sort=name -cf "$out.new" .
mv "$out.new" "$out"
echo "$key" >"$out.key"
