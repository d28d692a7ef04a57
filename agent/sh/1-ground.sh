#!/bin/sh
# The Vivarium agent for guests that no binary exists for: docs/protocol.md in POSIX sh.
#
#   1-ground.sh      what the other parts stand on: bytes, frames, pauses, in-place records
#   2-message.sh     the master's JSON, read by awk into shell variables
#   3-processes.sh   the process table, and the end of a command's tree
#   4-execution.sh   the supervisor of a command, its spooler, its stopper
#   5-follow.sh      spooled output to the master
#   6-unpack.sh      archives and files from the master
#   7-collect.sh     files to the master
#   8-serve.sh       one connection: frames in, requests met; and the command line
#
# The parts are joined in this order into one file. A process forks for everything that is not a shell's own, and forks
# are dear in an emulated guest: hence the built-in `read`, `[` and `printf` wherever they can do it.

# Bytes are characters, and messages are English, whatever the guest speaks; commands get the guest's own setting back.
original_lc_all=${LC_ALL-} had_lc_all=${LC_ALL+yes}
LC_ALL=C
export LC_ALL
unset CDPATH
IFS=' 	
'
set -f

agent_version=0.1.0-sh
# The output is spooled in files of this many bytes; what one read takes from a pipe at most.
segment=65536
max_frame=262144

self=$0
sh=$(command -v sh) || exit 127
setsid=$(command -v setsid)

# `dd` that fills its block from a pipe reads a frame in one go; elsewhere it reads byte by byte.
if printf x | dd bs=1 count=1 iflag=fullblock >/dev/null 2>&1; then
    exactly() { dd bs="$1" count=1 iflag=fullblock 2>/dev/null; }
else
    exactly() { dd ibs=1 obs=65536 count="$1" 2>/dev/null; }
fi

# Prints a string as it is; `printf` is not built into every Korn shell, and a program's arguments are bounded.
case $(command -v printf) in
    printf) put() { printf '%s' "$1"; } ;;
    *) put() { print -rn -- "$1"; } ;;
esac

# Prints each of these numbers as a byte.
bytes() {
    format=
    for byte; do
        format="$format\\$((byte / 64))$((byte / 8 % 8))$((byte % 8))"
    done
    printf "$format"
}

pause() {
    sleep "$1" 2>/dev/null || sleep 1
}

is_number() {
    case $1 in
        '' | *[!0-9]* | ????????????????*) return 1 ;;
    esac
}

# Two numbers in one line of known length, written over the same bytes of a file each time, so that a full disk takes it
# too. A reader that sees two different numbers has met a writer, and looks again.
write_number() {
    printf '%20s %20s\n' "$2" "$2" 1<>"$1"
}

read_number() {
    number=0 again=
    for attempt in 1 2 3 4 5 6 7 8 9; do
        read -r number again 2>/dev/null <"$1" && [ "$number" = "$again" ] && return
    done
    number=0
    return 1
}

# ---- frames ----

# Whoever has taken the one token writes to the connection; file descriptor 8 is the pipe that holds it. $errand names a
# file for as long as a following or a collection is wanted; it is looked at here, because a process must not be killed
# in the middle of a frame, and its number may be another's by then.
errand=
take_turn() {
    read -r turn <&8
    is_wanted || {
        end_turn
        exit
    }
}

is_wanted() {
    [ -z "$errand" ] || [ -e "$errand" ]
}

end_turn() {
    echo >&8
}

# The head of a frame: how many bytes of content, and its kind.
frame_head() {
    frame_length=$(($1 + 1))
    bytes $((frame_length / 16777216)) $((frame_length / 65536 % 256)) $((frame_length / 256 % 256)) $((frame_length % 256)) "$2"
}

send() {
    take_turn
    { frame_head ${#1} 0 && put "$1"; } 2>/dev/null
    sent=$?
    end_turn
    [ $sent -eq 0 ] || lost
}

# The connection cannot be written any more. Those that follow or collect only end themselves.
lost() {
    leave
}

# A string as JSON has it. Almost always it is one already.
json_string() {
    case $1 in
        *[!\ -~]* | *[\"\\]*)
            quoted=$(put "$1" | awk "$awk_json"'{ s = s (NR > 1 ? "\n" : "") $0 } END { printf "\"%s\"", json(s) }')
            ;;
        *) quoted="\"$1\"" ;;
    esac
}

# Says that a request was not met.
refuse() {
    json_string "$2"
    send "{\"type\":\"failed\",\"request\":\"$1\",\"message\":$quoted}"
}

# json(s): the string with what JSON wants escaped; bytes that are no UTF-8 become U+FFFD.
awk_json='
function json(s,    i, n, c, out) {
    if (s !~ /[^ -~]/ && s !~ /["\\]/) return s
    if (!json_ready) {
        for (i = 1; i < 256; i++) json_code[sprintf("%c", i)] = i
        json_wide = length("\303\274") == 1
        json_ready = 1
    }
    for (i = 1; i <= length(s); i += n) {
        c = substr(s, i, 1); n = 1
        if (c == "\"" || c == "\\") out = out "\\" c
        else if ((c in json_code) && json_code[c] < 32) out = out sprintf("\\u%04x", json_code[c])
        else if (json_wide || !(c in json_code) || json_code[c] < 128) out = out c
        else if (n = json_utf8(s, i)) out = out substr(s, i, n)
        else { n = 1; out = out "\357\277\275" }
    }
    return out
}
# How many bytes the character at i has; 0 if it is none.
function json_utf8(s, i,    a, b, n, k, c) {
    a = json_code[substr(s, i, 1)]; b = json_code[substr(s, i + 1, 1)] + 0
    if (a >= 194 && a <= 223) n = 2
    else if (a >= 224 && a <= 239) n = 3
    else if (a >= 240 && a <= 244) n = 4
    else return 0
    if ((a == 224 && b < 160) || (a == 237 && b > 159) || (a == 240 && b < 144) || (a == 244 && b > 143)) return 0
    for (k = 1; k < n; k++) {
        c = json_code[substr(s, i + k, 1)] + 0
        if (c < 128 || c > 191) return 0
    }
    return n
}
'
