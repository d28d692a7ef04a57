# What the recipes share. Sourced by images/*/recipe with bash; images/build sets the environment:
#   NAME      the image          OUT   the folder to fill (platform.toml and the keys are there already)
#   WORK      a scratch folder   PROGRESS   the file descriptor for the lines that a person sees
# Standard output and standard error go to a log that is shown only if the recipe fails.
# shellcheck shell=bash disable=SC2153  # NAME and the others come from images/build
set -euo pipefail
umask 022

suite=bookworm
architecture=amd64
# Every time stamp that would otherwise be the time of the build: the day Debian 12 came out.
export SOURCE_DATE_EPOCH=1686355200

steps=0 # a recipe sets how many it has
step_number=0
step() {
    step_number=$((step_number + 1))
    echo "$NAME: $step_number/$steps $*" >&"$PROGRESS"
    echo "== $*"
}

# Ends the recipe with a sentence that says all there is to say; images/build then shows no log.
fail() {
    echo "$NAME: $*" >&"$PROGRESS"
    exit 3
}

require() {
    local tool missing=()
    for tool; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    ((${#missing[@]} == 0)) || fail "not installed: ${missing[*]}; run config/prepare-host first."
    [[ $(uname -m) == x86_64 ]] || fail "this recipe builds amd64 images and needs an amd64 machine; this one is $(uname -m)."
    [[ -f /usr/share/keyrings/debian-archive-keyring.gpg ]] ||
        fail "Debian's keys are missing (package debian-archive-keyring); run config/prepare-host first."
}

# The mirror this machine uses for Debian, or Debian's public one when it is not a Debian machine.
# $1: codename suffix ("" or "-security"), $2: the path below the public mirror
mirror() {
    local id codename uri=
    # shellcheck disable=SC1091
    id=$(. /etc/os-release && echo "${ID-}")
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
    if [[ $id == debian && -n $codename ]]; then
        # shellcheck disable=SC2016  # apt's own placeholders
        uri=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
            awk -v release="$codename$1" '$1 == release && $2 !~ /^(cdrom|file):/ && !n++ { print $2 }')
    fi
    echo "${uri:-http://deb.debian.org/$2/}"
}

# Writes $WORK/sources.list and $WORK/apt.conf: Debian's packages, independent of this machine's own selection,
# but by its mirror, its proxy and its other network settings.
debian_sources() {
    local signed='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
    cat >"$WORK/sources.list" <<LIST
deb $signed $(mirror '' debian) $suite main
deb $signed $(mirror -updates debian) $suite-updates main
deb $signed $(mirror -security debian-security) $suite-security main
LIST
    apt-config dump |
        grep -E '^Acquire::(http|https|ForceIPv4|ForceIPv6|Retries|Check-Valid-Until|Check-Date)\b' \
            >"$WORK/apt.conf" || true
    echo 'Acquire::Languages "none";' >>"$WORK/apt.conf"
}

# Runs an apt program on a package database of its own: needs no privileges and leaves the machine's alone.
private_apt() {
    local state=$WORK/apt
    if [[ ! -d $state ]]; then
        mkdir -p "$state/lists/partial" "$state/archives/partial" "$state/log"
        : >"$state/status"
        cat "$WORK/apt.conf" - >"$state/apt.conf" <<CONF
Dir::State "$state";
Dir::State::lists "$state/lists";
Dir::State::status "$state/status";
Dir::Cache "$state";
Dir::Log "$state/log";
Dir::Etc::SourceList "$WORK/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
APT::Sandbox::User "";
CONF
        APT_CONFIG=$state/apt.conf apt-get -q update
    fi
    local program=$1
    shift
    APT_CONFIG=$state/apt.conf "$program" -q "$@"
}

# Unpacks the named packages, without what they depend on, into the folder $1.
# Their names and versions are kept in $OUT/packages.txt.
unpack_packages() {
    local tree=$1 package
    shift
    mkdir -p "$tree" "$WORK/packages"
    (cd "$WORK/packages" && private_apt apt-get download "$@")
    for package in "$WORK"/packages/*.deb; do
        dpkg-deb --extract "$package" "$tree"
        # shellcheck disable=SC2016  # dpkg-deb's own placeholders
        dpkg-deb --show --showformat '${Package} ${Version}\n' "$package" >>"$OUT/packages.txt"
        rm "$package"
    done
    LC_ALL=C sort -u -o "$OUT/packages.txt" "$OUT/packages.txt"
}

# The name of the package that holds the current kernel for virtual machines.
kernel_package() {
    private_apt apt-cache depends linux-image-cloud-$architecture |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ && !n++ { print $2 }'
}

# Turns the compressed kernel $1 into the plain ELF file $2, which QEMU starts directly (PVH): the guest does
# not spend its first half second unpacking itself.
unpack_kernel() {
    local offset
    for offset in $(LC_ALL=C grep -obUaP '\x02\x21\x4c\x18' "$1" | cut -d: -f1); do # LZ4's signature
        tail -c "+$((offset + 1))" "$1" | lz4 -dcq >"$2" 2>/dev/null || true
        if [[ $(head -c 4 "$2" | tail -c 3) == ELF ]]; then
            return
        fi
    done
    fail "the kernel is not compressed the way this recipe knows (LZ4)."
}

# Copies the modules named in $3… from the tree $1 to the folder $2.
copy_modules() {
    local tree=$1 to=$2 module file
    shift 2
    mkdir -p "$to"
    for module; do
        file=$(find "$tree/lib/modules" -name "$module.ko")
        [[ -n $file ]] || fail "the kernel has no module $module."
        cp "$file" "$to/"
    done
}

# Runs a program of the tree $1 on this machine, with the tree's own libraries: $2 the name it is called by, $3 its path.
run_from_tree() {
    local tree=$1 name=$2 program=$3
    shift 3
    "$tree/lib64/ld-linux-x86-64.so.2" --argv0 "$name" \
        --library-path "$tree/lib/x86_64-linux-gnu:$tree/usr/lib/x86_64-linux-gnu" "$tree/$program" "$@"
}

# Packs the tree $1 (or only its part $5), all of it owned by $3:$4, onto the end of the initramfs $2. An initramfs
# may be several archives in a row, which is how trees of two owners are packed without being root.
append_initramfs() {
    (
        cd "$1"
        find . -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
        find "${5:-.}" ! -path . -print0 | LC_ALL=C sort -z |
            cpio --null --create --format=newc --reproducible --quiet -R "+$3:+$4"
    ) >>"$2"
}

# Installs Debian with the packages $2… into the tar file $1. The package scripts run in a chroot: as root, in a
# user namespace for others, and by sudo where namespaces are not to be had.
install_debian() {
    local tar=$1 include
    shift
    include=$(IFS=, && echo "$*")
    local options=(--variant=minbase --include="$include" --format=tar
        --aptopt="$WORK/apt.conf" --aptopt='APT::Install-Recommends "false"'
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*'
        --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/lintian/*'
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright')
    if ((EUID == 0)); then
        mmdebstrap --mode=root "${options[@]}" "$suite" - "$WORK/sources.list" >"$tar"
    elif grep -q "^$(id -un):" /etc/subuid &&
        TMPDIR=/tmp mmdebstrap --mode=unshare "${options[@]}" "$suite" - "$WORK/sources.list" >"$tar"; then
        :
    elif sudo -n true 2>/dev/null; then
        echo "user namespaces are not to be had here; going on with sudo"
        # shellcheck disable=SC2024  # the file is to be this user's
        sudo -n env SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" mmdebstrap --mode=root "${options[@]}" "$suite" - "$WORK/sources.list" >"$tar"
    else
        fail "Debian's packages cannot be installed: this user has neither a user namespace with subordinate ids (packages uidmap, an entry in /etc/subuid) nor sudo without a password."
    fi
}

# Runs a command as root, or for others as if: fakeroot remembers who owns which file.
with_owners() {
    if ((EUID == 0)); then
        "$@"
    else
        fakeroot -- "$@"
    fi
}
