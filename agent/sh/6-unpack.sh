
# ---- archives and files from the master ----
#
# Data goes into a file as it comes: an archive into the connection's folder, a file beside its name. $reception says what
# is being received: unpack, write, dropped (it failed, and the rest of its data is dropped), or nothing.

begin_unpack() {
    abort_reception
    into=$(absolute "$m_dir")
    if ! mkdir -p -- "$into" 2>/dev/null; then
        fail_reception unpack "cannot create $into"
        return
    fi
    into=$(cd -P -- "$into" && pwd -P)
    case $into in
        '' | /) why="$into is the root of the file system: it is not emptied" ;;
        *) why= ;;
    esac
    for kept in "$state" "$self"; do
        case $kept/ in
            "$into"/*) why="$into holds the agent itself: it is not emptied" ;;
        esac
    done
    if [ "$why" ]; then
        fail_reception unpack "$why"
    elif { true >"$mine/archive"; } 2>/dev/null; then
        reception=unpack received=$mine/archive
    else
        fail_reception unpack "cannot write into the agent's state folder"
    fi
}

begin_write() {
    abort_reception
    target=$(absolute "$m_path") size=0
    folder=${target%/*}
    received=$folder/.vivarium-${target##*/}
    if [ -d "$target" ] || [ "${target##*/}" = '' ]; then
        fail_reception write "cannot write $target: it is a folder"
    elif ! mkdir -p -- "$folder" 2>/dev/null; then
        fail_reception write "cannot create $folder"
    elif { true >"$received"; } 2>/dev/null; then
        reception=write executable=$m_executable
    else
        fail_reception write "cannot write $target"
    fi
}

absolute() {
    case $1 in
        /*) put "$1" ;;
        *) put "$home/$1" ;;
    esac
}

fail_reception() {
    [ "$reception" = write ] && rm -f -- "$received"
    reception=dropped
    refuse "$1" "$2"
}

# What was unfinished is given up.
abort_reception() {
    case $reception in
        unpack | write)
            rm -f -- "$received"
            refuse $reception 'the data was cut off'
            ;;
    esac
    reception=
}

# Takes a data frame of $1 bytes.
receive() {
    case $reception in
        dropped) exactly "$1" >/dev/null ;;
        *)
            size=$((size + $1))
            exactly "$1" | { cat >>"$received" || { cat >/dev/null; false; }; } 2>/dev/null ||
                fail_reception $reception "cannot write $received: the disk may be full"
            ;;
    esac
}

end_reception() {
    case $reception in
        unpack)
            if why=$(unpack 2>&1); then
                send "{\"type\":\"unpacked\",\"entries\":$why}"
            else
                refuse unpack "cannot unpack into $into: $why"
            fi
            rm -f -- "$received"
            ;;
        write)
            mode=a-x
            [ "$executable" = true ] && mode=a+x
            if chmod "$mode" "$received" 2>/dev/null && mv -f -- "$received" "$target" 2>/dev/null; then
                send "{\"type\":\"written\",\"bytes\":$size}"
            else
                rm -f -- "$received"
                refuse write "cannot write $target"
            fi
            ;;
        dropped) ;;
        *) refuse end_of_data 'no data was announced' ;;
    esac
    reception=
}

# Lists the archive, refuses what would leave the folder, empties the folder and unpacks; prints how many entries there were.
unpack() {
    names=$mine/names kinds=$mine/kinds complaint=$mine/complaint
    if ! tar -tf "$received" >"$names" 2>"$complaint" || ! tar -tvf "$received" >"$kinds" 2>>"$complaint"; then
        first_line "$complaint" 'it is no whole tar archive'
        return 1
    fi
    # Some say so and take away what leads out.
    if grep -i 'removing leading' "$complaint" >/dev/null; then
        put 'a path leads out of the folder'
        return 1
    fi
    entries=$(awk "$awk_archive" "$names" "$kinds") || {
        put "$entries"
        return 1
    }
    empty "$into" || {
        put 'the folder cannot be emptied'
        return 1
    }
    # With the archive's modes and times, without its owners.
    if ! (cd -P -- "$into" && tar -xpof "$received" 2>"$complaint"); then
        first_line "$complaint" 'tar fails'
        return 1
    fi
    put "$entries"
}

first_line() {
    read -r line <"$1"
    put "${line:-$2}"
}

# Removes everything in a folder; links are not followed. Read-only folders need a second try.
empty() {
    remove_entries "$1" && return
    find "$1" -type d ! -perm -700 -exec chmod u+rwx {} \; 2>/dev/null
    remove_entries "$1"
}

remove_entries() {
    (cd -P -- "$1" && find . ! -name . -prune -exec rm -rf -- {} + 2>/dev/null)
}

# Reads the names, then the lines with kinds; prints the number of entries, or why the archive is refused. A name with a
# line feed only makes more be refused.
awk_archive='
function refuse(why) { print why; refused = 1; exit 1 }
function plain(path) {
    gsub(/\/\.\//, "/", path); gsub(/\/\/+/, "/", path); sub(/^(\.\/)+/, "", path); sub(/\/+$/, "", path)
    return path
}
function leads_out(path) { return path ~ /^\// || path ~ /(^|\/)\.\.(\/|$)/ }
function through_link(path,    i, n, part, above) {
    n = split(path, part, "/")
    for (i = 1; i < n; i++) { above = above part[i]; if (above in link) return 1; above = above "/" }
    return 0
}
NR == FNR {
    if (leads_out($0)) refuse($0 " leads out of the folder")
    name[++names] = plain($0); next
}
{
    kind = substr($0, 1, 1); path = name[++kinds]
    if (kind !~ /[-dlh]/) refuse(path " is of a kind that is not unpacked")
    if (through_link(path)) refuse(path " leads out of the folder")
    if (kind != "l" && match($0, /( -> | link to )/)) {
        target = $0
        while (match(target, /( -> | link to )/)) {
            target = substr(target, RSTART + RLENGTH)
            if (leads_out(target) || through_link(plain(target))) refuse(path " leads out of the folder")
        }
    }
    if (kind == "l") link[path] = 1; else if (kind == "d" && (path in link)) refuse(path " leads out of the folder"); else delete link[path]
}
END {
    if (refused) exit 1
    if (names != kinds) { print "its list cannot be read"; exit 1 }
    print names + 0
}
'
