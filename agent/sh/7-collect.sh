
# ---- files to the master ----
#
# A process of its own, as following is. `find` lists, awk matches and sorts out what is sent; a file goes out in frames,
# each of which is read into a file first, because a frame's length stands before it.

if command -v sha256sum >/dev/null; then
    hash() { sha256sum; }
elif command -v shasum >/dev/null; then
    hash() { shasum -a 256; }
elif command -v sha256 >/dev/null; then
    hash() { sha256; }
elif command -v openssl >/dev/null; then
    hash() { openssl dgst -sha256 -r; }
elif cksum -a sha256 </dev/null >/dev/null 2>&1; then
    hash() { cksum -a sha256; }
else
    hash() { false; }
fi

# Works in the folder $1, and removes it when it is done; the folder $2 is that of the collection before, if there was one.
collect() {
    trap : PIPE
    lost() { exit; }
    work=$1 errand=$1
    while [ "$2" ] && [ -d "$2" ]; do
        pause 0.05
        is_wanted && kill -0 $$ 2>/dev/null || exit
    done
    files=0 sum=0 skipped= skipped_count=0 unlisted=0
    from=$(absolute "$m_dir")
    if ! cd -P -- "$from" 2>/dev/null; then
        refuse collect "cannot list $from: there is no such folder"
    elif ! (hash </dev/null >/dev/null 2>&1); then
        refuse collect 'this guest has no program for SHA-256'
    else
        eval "set -- $m_globs"
        if [ $# -gt 1000 ]; then
            refuse collect "there are $# globs, at most 1000 are allowed"
        elif ! list "$@" >"$work/list" 2>"$work/complaint"; then
            read -r why <"$work/complaint"
            refuse collect "${why:-cannot list $from}"
        else
            while IFS= read -r line; do
                kind=${line%% *} path=${line#* }
                offer
            done <"$work/list"
            [ $unlisted -gt 0 ] &&
                skipped="$skipped,{\"path\":\"\",\"why\":\"$unlisted more were skipped and are not listed\"}"
            send "{\"type\":\"collected\",\"files\":$files,\"bytes\":$sum,\"skipped\":[${skipped#,}]}"
        fi
    fi
    rm -rf -- "$work"
    exit
}

# Prints what matches one of the globs: a kind, and the path. A path is sorted folder by folder, names in byte order.
list() {
    [ $# -gt 0 ] || return 0
    for glob; do
        put "$glob" | tr '\n' '\001'
        echo
    done >"$work/globs"
    {
        find . -type f 2>"$work/unlisted" | sed 's/^/f /'
        find . ! -type f ! -type d 2>/dev/null | sed 's/^/o /'
        if [ -s "$work/unlisted" ]; then
            find . -type d ! -exec test -r {} -a -x {} \; -print 2>/dev/null | sed 's/^/d /'
        fi
    } | awk "$awk_globs" "$work/globs" - >"$work/matching" || return
    [ -s "$work/complaint" ] && return 1
    tr '/' '\001' <"$work/matching" | sort -k 2 | tr '\001' '/'
}

# Globs become regular expressions: * and ? stay in a folder, ** crosses folders, [...] and {a,b} work.
awk_globs='
function refuse(why) { print why | "cat >&2"; close("cat >&2"); failed = 1; exit 1 }
function expression(glob,    i, c, out, depth, set, start) {
    out = "^"
    for (i = 1; i <= length(glob); i++) {
        c = substr(glob, i, 1)
        if (c == "*") {
            start = i == 1 || substr(glob, i - 1, 1) ~ /[\/{,]/
            if (start && substr(glob, i, 3) == "**/") { out = out "(.*/)?"; i += 2 }
            else if (start && substr(glob, i, 2) == "**" && substr(glob, i + 2, 1) ~ /^[},]?$/) { out = out ".*"; i++ }
            else { out = out "[^/]*"; while (substr(glob, i + 1, 1) == "*") i++ }
        }
        else if (c == "?") out = out "[^/]"
        else if (c == "[") {
            set = "["; i++
            c = substr(glob, i, 1)
            if (c == "!" || c == "^") { set = "[^/"; i++ }
            start = i
            while (i <= length(glob) && ((c = substr(glob, i, 1)) != "]" || i == start)) { set = set c; i++ }
            if (i > length(glob)) refuse("the glob " glob " has a [ without its ]")
            # In a bracket expression of POSIX a ] stands first, and a backslash is dear: it is left to be itself.
            gsub(/\\/, "\\\\", set)
            out = out set "]"
        }
        else if (c == "{") { depth++; out = out "(" }
        else if (c == "}" && depth) { depth--; out = out ")" }
        else if (c == "," && depth) out = out "|"
        else if (c == "\\") { i++; out = out literal(substr(glob, i, 1)) }
        else out = out literal(c)
    }
    if (depth) refuse("the glob " glob " has a { without its }")
    return out "$"
}
function literal(c) { return c ~ /[A-Za-z0-9_\/ -]/ || c > "~" ? c : "[" (c == "^" ? "\\^" : c == "\\" ? "\\\\" : c) "]" }
function show(    p, i) {
    if (entry == "") return
    path = substr(entry, 5); kind = substr(entry, 1, 1)
    entry = ""
    if (kind == "d") { print "d", path; return }
    for (i = 1; i <= globs; i++) if (path ~ wanted[i]) { print broken ? "n" : kind, path; return }
}
NR == FNR { gsub(/\001/, "\n"); wanted[++globs] = expression($0); next }
# A name may hold a line feed: what does not look like the beginning of an entry is the rest of the one before.
/^[fod] \.\// { show(); entry = $0; broken = 0; next }
/^[fod] \.$/ { next }
{ broken = 1; entry = entry "?" substr($0, 3) }
END { if (!failed) show() }
'

# Sends the file at $path, or keeps in mind why not.
offer() {
    case $kind in
        d)
            skip 'cannot list the folder'
            return
            ;;
        n)
            skip 'its name holds a line feed'
            return
            ;;
        o)
            if [ -h "./$path" ]; then skip 'it is a symbolic link'; else skip 'it is no regular file'; fi
            return
            ;;
    esac
    json_string "$path"
    case $quoted in
        *"$replacement"*)
            case $path in
                *"$replacement"*) ;;
                *)
                    skip 'its name is not UTF-8'
                    return
                    ;;
            esac
            ;;
    esac
    if [ -h "./$path" ] || [ ! -f "./$path" ]; then
        skip 'it is no regular file'
        return
    fi
    # The size stands in the fifth field, and reading it reads nothing of the file.
    set -- $(ls -lnd -- "./$path" 2>/dev/null)
    size=${5-}
    if ! is_number "$size" || ! { true <"./$path"; } 2>/dev/null; then
        skip 'cannot open it'
    elif [ $files -ge "$m_max_files" ]; then
        skip "over the limit of $m_max_files files"
    elif [ "$size" -gt $((m_max_bytes - sum)) ]; then
        skip "over the limit of $m_max_bytes bytes in all, with $size bytes"
    else
        send_file
    fi
}

replacement=$(printf '\357\277\275')

skip() {
    json_string "$path"
    item="{\"path\":$quoted,\"why\":\"$1\"}"
    if [ $skipped_count -ge 1000 ] || [ $((${#skipped} + ${#item})) -gt 131072 ]; then
        unlisted=$((unlisted + 1))
    else
        skipped="$skipped,$item" skipped_count=$((skipped_count + 1))
    fi
}

send_file() {
    executable=false
    [ -x "./$path" ] && executable=true
    send "{\"type\":\"file\",\"path\":$quoted,\"size\":$size,\"executable\":$executable}"
    rm -f "$work/hashed"
    mkfifo "$work/hashed"
    hash <"$work/hashed" >"$work/hash" &
    hasher=$!
    left=$size
    {
        exec 6>"$work/hashed"
        while [ "$left" -gt 0 ]; do
            wanted=$max_frame
            [ $wanted -le "$left" ] || wanted=$left
            exactly $wanted <&5 >"$work/piece"
            count=$(($(wc -c <"$work/piece")))
            [ $count -gt 0 ] || break
            cat "$work/piece" >&6
            take_turn
            frame_head $count 2 || { end_turn; exit; }
            cat "$work/piece"
            end_turn
            left=$((left - count))
        done
        exec 6>&-
    } 5<"./$path" 2>/dev/null
    wait $hasher
    # The programs put different words around it.
    for digest in $(cat "$work/hash"); do
        [ ${#digest} -eq 64 ] && break
    done
    send "{\"type\":\"end_of_file\",\"sha256\":\"$digest\"}"
    if [ "$left" -eq 0 ]; then
        files=$((files + 1)) sum=$((sum + size))
    else
        skip "it shrank from $size to $((size - left)) bytes while it was sent, or cannot be read to its end"
    fi
}
