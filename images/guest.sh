# What every Unix guest gets while it is sealed. Runs as root in the guest, in whatever /bin/sh it has; before it stand
# USER_KEY, HOST_KEY and HOST_KEY_PUBLIC, behind it the system's own part, which sets `console` first.
# shellcheck shell=sh disable=SC2154  # set before and behind this part
set -eu
umask 022

say() {
    echo "vivarium: $*" >"$console"
}

# Whatever ends this script, a person who reads the console knows how it ended.
ended() {
    if [ "$1" -eq 0 ]; then
        say sealed
    else
        say "failed: a command of the seal script ended with $1"
    fi
    sync
    power_off
}
trap 'ended $?' EXIT

# Repeats a command that needs the network, which may not be up yet.
patiently() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ "$tries" -lt 10 ] || return 1
        sleep 6
    done
}

# The one host key that the master pins, and the key that logs in. $1: the home folder.
write_keys() {
    rm -f /etc/ssh/ssh_host_*
    printf '%s\n' "$HOST_KEY" >/etc/ssh/ssh_host_ed25519_key
    printf '%s\n' "$HOST_KEY_PUBLIC" >/etc/ssh/ssh_host_ed25519_key.pub
    chmod 600 /etc/ssh/ssh_host_ed25519_key
    mkdir -p "$1/.ssh" "$1/work"
    printf '%s\n' "$USER_KEY" >"$1/.ssh/authorized_keys"
    chmod 700 "$1/.ssh"
    chmod 600 "$1/.ssh/authorized_keys"
    chown -R "build:$(id -g build)" "$1"
}

# $1: "UsePAM no" where the system's sshd knows it.
write_sshd_config() {
    cat >/etc/ssh/sshd_config <<CONFIG
HostKey /etc/ssh/ssh_host_ed25519_key
AllowUsers build
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
${1:-}
UseDNS no
X11Forwarding no
PrintMotd no
PrintLastLog no
# Vivarium holds one connection per VM and opens its channels in it; many at once must not be turned away.
MaxSessions 100
MaxStartups 100
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
CONFIG
}

# The network of a closed VM, which is always the same.
write_names() {
    printf 'nameserver 10.0.2.3\n' >/etc/resolv.conf
    printf '127.0.0.1 localhost build\n::1 localhost\n' >/etc/hosts
}

# Prints a script that tells the console once sshd listens, and only then. $1: a command that says so by its outcome.
ready_commands() {
    cat <<READY
tries=0
until $1 >/dev/null 2>&1 || [ \$tries -ge 600 ]; do
    tries=\$((tries + 1))
    sleep 0.2 2>/dev/null || sleep 1
done
if $1 >/dev/null 2>&1; then
    echo "vivarium: sshd listens" >$console
fi
READY
}
