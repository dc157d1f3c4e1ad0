# Sourced by the scripts behind `make bench` and `make bench-docker`, after lib.sh: how the peers get onto a machine.

# need_daemons PACKAGE...: installs those that are missing; their own services stay off, since the benchmarks start
# the daemons themselves, on data roots of their own. policy-rc.d keeps the install from starting them, disabling keeps
# the next boot from it.
need_daemons() {
    local policy=/usr/sbin/policy-rc.d package fresh=() mine=
    for package; do installed "$package" || fresh+=("$package"); done
    [ ${#fresh[@]} -gt 0 ] || return 0
    if [ ! -e "$policy" ]; then
        mine=1
        # shellcheck disable=SC2064 # now: the variable is local
        trap "rm -f '$policy'" EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    need_packages "${fresh[@]}" runc
    [ -z "$mine" ] || rm -f "$policy"
    trap - EXIT
    if [ -d /run/systemd/system ]; then
        for package in "${fresh[@]}"; do
            case $package in
            docker.io) systemctl disable --quiet docker.service docker.socket || true ;;
            containerd) systemctl disable --quiet containerd.service || true ;;
            esac
        done
        note "their services are installed but disabled"
    fi
}
