# What recipes share whose system comes as a file from its vendor. Sourced after lib.sh, by a link in the recipe's folder.
#
#   newest      the latest release in a vendor's list        fetch    a file, resumed, its hash compared
#   seal_script what a guest does to itself, once            machine  the QEMU that the system is installed in
#   place_disk  the finished image                           boots_again  the look at it that every build ends with
#
# DOWNLOADS, from images/build, is a folder that outlives a failed build: what is fetched is not fetched twice.
# shellcheck shell=bash disable=SC2153,SC2154  # NAME and the others come from images/build and lib.sh
shopt -s inherit_errexit # a sentence said in $(…) is the last one

# The programs that a recipe calls.
needs() {
    local tool missing=()
    for tool; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    ((${#missing[@]} == 0)) ||
        fail "not built: ${missing[*]} not installed; run config/prepare-host --recipes first."
    [[ $(uname -m) == x86_64 ]] || fail "not built: this recipe makes x86_64 images on an x86_64 machine; this one is $(uname -m)."
}

# For failures that want the end of the console beside the sentence: images/build shows the log's end unless the code is 3.
give_up() {
    echo "not built: $*"
    exit 1
}

# Over TLS alone, wherever the vendor's servers point.
get() {
    curl --fail --silent --show-error --location --proto =https --retry 5 --retry-delay 3 --connect-timeout 30 "$@"
}

# The names in the page $1 that match $2 (extended, the whole name), one a line, oldest version first.
names() {
    local page
    page=$(get "$1") || fail "not built: $1 cannot be read; a network that reaches it is needed."
    grep -oE 'href="[^"]+"' <<<"$page" | sed 's/^href="//; s/"$//; s|/$||; s|.*/||' | grep -xE "$2" | sort -Vu || true
}

# The latest of them.
newest() {
    local name
    name=$(names "$1" "$2" | tail -n 1)
    [[ -n $name ]] || fail "not built: nothing in $1 is called $2; the vendor may have rearranged its files."
    echo "$name"
}

# The hash of the file $2 in the list $1: "HASH  NAME", "HASH *NAME" or "SHA256 (NAME) = HASH", or the hash alone.
hash_of() {
    awk -v name="$2" '
        NF == 1 && $1 ~ /^[0-9a-fA-F]+$/ && length($1) >= 32 { print $1; exit }
        { file = $2; sub(/^\*/, "", file); sub(/^\.\//, "", file) }
        file == name && $1 ~ /^[0-9a-fA-F]+$/ { print $1; exit }
        $1 ~ /^(MD5|SHA256|SHA512)$/ && $2 == "(" name ")" && $3 == "=" { print $4; exit }
    ' "$1" | tr 'A-F' 'a-f'
}

# What is told of the origin, in $OUT/source.txt.
told() {
    echo "$*" >>"$OUT/source.txt"
}

fetched=()
forget_downloads() {
    # What was built has no use for its parts any more; after a failure they are the start of the next try.
    if (($1 == 0)); then
        rm -f "${fetched[@]}"
        rmdir "$DOWNLOADS" 2>/dev/null || true
    fi
}
trap 'forget_downloads $?' EXIT

# Fetches $1 or takes the file of that name, and prints where it is. $2: what it must hash to; the length tells which hash.
fetch() {
    local url=$1 wanted=$2 file tool found outcome=0
    case ${#wanted} in
        32) tool=md5sum ;;
        64) tool=sha256sum ;;
        128) tool=sha512sum ;;
        *) fail "not built: no hash is known for $url; its vendor's list does not have it." ;;
    esac
    if [[ $url != https://* ]]; then
        [[ -f $url ]] || fail "not built: there is no file $url."
        file=$url
    else
        mkdir -p "$DOWNLOADS"
        file=${url##*/}
        file=$DOWNLOADS/${file//[^A-Za-z0-9._-]/_}
        # Left by a build that failed: whole, or the beginning of what is wanted, or something else by now.
        if [[ -f $file ]] && ! "$tool" --check --status <<<"$wanted  $file"; then
            get --continue-at - --output "$file" "$url" || outcome=$?
            case $outcome in
                # Also a server that does not go on in the middle (33), or has nothing there (22).
                0 | 22 | 33) "$tool" --check --status <<<"$wanted  $file" || rm -f "$file" ;;
                *) fail "not built: $url was not fetched to its end; a network that reaches it is needed." ;;
            esac
        fi
        [[ -f $file ]] || get --output "$file" "$url" ||
            fail "not built: $url was not fetched; a network that reaches it is needed."
    fi
    found=$("$tool" "$file" | cut -d' ' -f1)
    if [[ $found != "$wanted" ]]; then
        [[ $url != https://* ]] || rm -f "$file"
        fail "not built: $url is not what was meant: its ${tool%sum} is $found, not $wanted."
    fi
    told "$url ${tool%sum} $wanted"
    echo "$file"
}

# Called by the recipe for each: a function in $(…) cannot remember.
keep_track() {
    case $1 in
        "$DOWNLOADS"/*) fetched+=("$1") ;;
    esac
}

# Writes the version that was found into the platform's file.
tell_version() {
    sed -i "s/^os_version = .*/os_version = \"$1\"/" "$OUT/platform.toml"
    told "version $1"
}

# The beginning of a script for the guest: its keys, then what all Unix guests share, then the recipe's own part $1.
# The host key is in the image anyway, and nowhere else but beside it.
seal_script() {
    echo '#!/bin/sh'
    printf "USER_KEY='%s'\nHOST_KEY='%s'\nHOST_KEY_PUBLIC='%s'\n" \
        "$(cat "$OUT/ssh_key.pub")" "$(cat "$OUT/ssh_host_key")" "$(cat "$OUT/ssh_host_key.pub")"
    cat guest.sh "$1"
}

# The volume $1 from which a cloud image takes the script $2 and runs it as root at the end of its first boot.
make_seed() {
    mkdir -p "$WORK/seed"
    cp "$2" "$WORK/seed/user-data"
    printf 'instance-id: %s\nlocal-hostname: build\n' "$NAME" >"$WORK/seed/meta-data"
    make_iso "$1" cidata "$WORK/seed"
}

# The ISO image $1, labelled $2, with what is in the folder $3.
make_iso() {
    xorriso -as mkisofs -quiet -output "$1" -volid "$2" -joliet -rational-rock "$3"
}

# The folder $2 as the raw disk $1: a tar archive, which every Unix can read from a disk without any file system.
make_tar_disk() {
    tar --create --owner 0 --group 0 --format ustar --file "$1" --directory "$2" .
    truncate -s %1M "$1"
}

# The machine in which a system is installed: as the master's, but with a way out and a display that nobody sees.
# A recipe may set MACHINE (pc, q35) and MEMORY (MiB) before.
# $1: more for its user network
plain_machine() {
    # shellcheck disable=SC2054  # QEMU separates its properties by commas
    machine=(-machine "${MACHINE:-pc},accel=$accelerators" -cpu max -smp 2 -m "${MEMORY:-2048}"
        -no-user-config -nodefaults -display none
        -netdev "user,id=n0,ipv6=off${1:-}" -device virtio-net-pci,netdev=n0,romfile=
        -object rng-random,id=r0,filename=/dev/urandom -device virtio-rng-pci,rng=r0)
}
# The device alone proves nothing: where the processor lacks the extension, a guest hangs with it.
if [[ -w /dev/kvm ]] && grep -qEm1 '^flags.* (vmx|svm)( |$)' /proc/cpuinfo; then
    accelerators=kvm:tcg
else
    accelerators=tcg
fi
plain_machine

# One disk: its number, its file, its format, its bus (virtio-blk, virtio-scsi, cd), and its turn at the boot, if it has one.
disk() {
    local turn=${5:+,bootindex=$5} access=cache=unsafe,discard=unmap
    [[ $4 != cd ]] || access=readonly=on
    machine+=(-drive "if=none,id=d$1,file=$2,format=$3,$access")
    case $4 in
        virtio-blk) machine+=(-device "virtio-blk-pci,drive=d$1$turn") ;;
        virtio-scsi) machine+=(-device "virtio-scsi-pci,id=s$1" -device "scsi-hd,bus=s$1.0,drive=d$1$turn") ;;
        # SATA, as q35 has it, is one bus for each.
        cd) [[ ${MACHINE:-pc} != q35 ]] || turn+=,bus=ide.$1
            machine+=(-device "ide-cd,drive=d$1$turn") ;;
    esac
}

# What a person looks at first: the last lines of a console, without what moves the cursor.
show_end() {
    tail -n 20 "$1" | tr -d '\r' | sed 's/\x1b\[[0-9;?]*[A-Za-z]//g' | tr -cd '[:print:]\n\t'
    echo
}

# Runs the machine until the guest powers it off. $1: minutes until it is given up; $2: file for the console.
run_machine() {
    local minutes=$1 console=$2 outcome=0
    shift 2
    # The console's end tells a person what a failed build was doing.
    timeout --foreground --kill-after=10 "${minutes}m" qemu-system-x86_64 "${machine[@]}" -monitor none \
        -serial "file:$console" "$@" </dev/null || outcome=$?
    if ((outcome != 0)); then
        show_end "$console"
        give_up "the machine was not done within $minutes minutes, or QEMU gave up ($outcome); the end of its console is above."
    fi
}

# The guest says so when all went well, and nothing else does.
was_sealed() {
    grep -aq 'vivarium: sealed' "$1" || {
        show_end "$1"
        give_up "the guest did not finish its own part; the end of its console is above."
    }
}

# The finished disk: compressed, and told to the master by its hash.
place_disk() {
    qemu-img convert -c -O qcow2 -o compression_type=zstd "$1" "$OUT/disk.qcow2"
    seal_disk
}

seal_disk() {
    local hash
    hash=$(sha256sum "$OUT/disk.qcow2" | cut -d' ' -f1)
    sed -i "s/^path = \"disk.qcow2\"/&\nsha256 = \"$hash\"/" "$OUT/platform.toml"
    told "built $(date -u +%FT%TZ)"
}

# Boots the disk $1 (its format $2, its bus $3) as the master will, closed network and no display, and waits for $4 on the
# console, $5 minutes at most; more arguments are QEMU's. Then `in_guest` runs commands there as the platform's user.
boot_to_ready() {
    local disk=$1 format=$2 bus=$3 marker=$4 minutes=$5 tries=0 console=$WORK/ready.log
    shift 5
    port=$((20000 + RANDOM % 20000))
    plain_machine ",restrict=on,hostfwd=tcp:127.0.0.1:$port-:22"
    disk 0 "$disk" "$format" "$bus"
    : >"$console"
    qemu-system-x86_64 "${machine[@]}" -monitor none -serial "file:$console" "$@" </dev/null &
    qemu=$!
    until grep -aqF "$marker" "$console"; do
        if ((tries++ >= minutes * 60)) || ! kill -0 "$qemu" 2>/dev/null; then
            kill "$qemu" 2>/dev/null || true
            show_end "$console"
            give_up "the machine did not say \"$marker\" within $minutes minutes; the end of its console is above."
        fi
        sleep 1
    done
    echo "[127.0.0.1]:$port $(cut -d' ' -f1,2 "$OUT/ssh_host_key.pub")" >"$WORK/known_hosts"
}

in_guest() {
    local user
    user=$(sed -n 's/^user = "\(.*\)"/\1/p' "$OUT/platform.toml")
    ssh -F none -p "$port" -i "$OUT/ssh_key" -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=300 \
        -o UserKnownHostsFile="$WORK/known_hosts" -o StrictHostKeyChecking=yes "$user@127.0.0.1" "$@" </dev/null
}

# Every build ends with one boot of the finished image, on an overlay as the master's: whether it says that it is ready,
# and lets its user in by the keys. $1: its bus; $2: what it says; $3: minutes; more: QEMU's.
boots_again() {
    local bus=$1 marker=$2 minutes=$3 outcome=0
    shift 3
    qemu-img create -q -f qcow2 -b "$OUT/disk.qcow2" -F qcow2 "$WORK/again.qcow2"
    boot_to_ready "$WORK/again.qcow2" qcow2 "$bus" "$marker" "$minutes" -no-reboot "$@"
    in_guest "exit 0" || outcome=$?
    kill "$qemu" 2>/dev/null || true
    wait "$qemu" 2>/dev/null || true
    ((outcome == 0)) || give_up "the finished image said that it was ready, but its user could not log in with the key, as told above."
}
