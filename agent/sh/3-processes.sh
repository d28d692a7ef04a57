
# ---- processes ----
#
# A shell cannot adopt orphans. What a command started is found by its parents, by its process group and its session
# (where there is setsid), and on Linux also by a mark in its environment, which daemons keep.

# Every process that is no zombie: its number, parent, group and session (0 where ps does not tell).
processes() {
    if [ -r /proc/self/stat ]; then
        # A name may hold blanks, parentheses and line feeds.
        set +f
        cat /proc/[0-9]*/stat 2>/dev/null | awk '
            { line = line $0 }
            line !~ /\) [A-Za-z] [0-9]/ { line = line " "; next }
            {
                pid = line; sub(/ .*/, "", pid); sub(/^.*\) /, "", line); split(line, field, " ")
                if (field[1] !~ /[ZX]/) print pid, field[2], field[3], field[4]
                line = ""
            }'
        set -f
    else
        ps -A -o pid= -o ppid= -o pgid= -o stat= | awk '$4 !~ /Z/ { print $1, $2, $3, 0 }'
    fi
}

# The processes that have this mark in their environment, as words that end in /NUMBER/.
marked() {
    [ -r /proc/self/environ ] || return
    set +f
    grep -l -s -z -x -F "VIVARIUM_EXECUTION=$1" /proc/[0-9]*/environ | awk '{ sub(/environ$/, ""); printf "%s ", $0 }'
    set -f
}

# What is left of the command in the current folder: the numbers of its processes; with `groups`, those of their process
# groups come first, negative.
members() {
    read -r main 2>/dev/null <main || return
    read -r keeper <supervisor
    mark=$(marked "$execution.$keeper")
    processes | awk -v main="$main" -v keeper="$keeper" -v marked=" $mark" -v want="$1" '
        { parent[$1] = $2; group[$1] = $3; session[$1] = $4 }
        END {
            # Another process may have the number by now, and its group with it.
            own = !(main in parent) || parent[main] == keeper
            for (p in parent)
                if (own && (p == main || group[p] == main || session[p] == main) || index(marked, "/" p "/")) found[p] = 1
            do {
                grew = 0
                for (p in parent) if (!(p in found) && (parent[p] in found)) { found[p] = 1; grew = 1 }
            } while (grew)
            delete found[keeper]
            for (p in found) {
                if (want == "groups" && group[p] > 1 && group[p] != group[keeper] && !(group[p] in named)) {
                    print "-" group[p]; named[group[p]] = 1
                }
            }
            for (p in found) print p
        }'
}

# Asks every process of the command to end. All are stopped first, else one that is being forked would be missed;
# stopped ones are woken to hear it.
terminate() {
    stopped=' '
    for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
        fresh=
        for pid in $(members); do
            case $stopped in
                *" $pid "*) ;;
                *) fresh="$fresh$pid " ;;
            esac
        done
        [ "$fresh" ] || break
        kill -s STOP $fresh
        stopped="$stopped$fresh"
    done 2>/dev/null
    [ "$stopped" = ' ' ] && return
    kill -s TERM $stopped 2>/dev/null
    kill -s CONT $stopped 2>/dev/null
}

# Kills, by groups first, which reaches processes that are forking at this moment, until none is left or ten seconds are over.
# The command itself goes before its children: one that waits for them would end by itself, and be said to have done so.
kill_all() {
    killed=0
    read -r main 2>/dev/null <main
    for pid in $(members); do
        [ "$pid" = "$main" ] && kill -s KILL "$main" 2>/dev/null
    done
    while
        left=$(members groups)
        [ "$left" ]
    do
        kill -s KILL -- $left 2>/dev/null
        killed=$((killed + 1))
        [ $killed -lt 200 ] || return 1
        pause 0.05
    done
}

# Ends what this process has started and not detached, for instance a program that waits in its write.
kill_children() {
    for child in $(processes | awk -v root=$$ '
        { parent[$1] = $2 }
        END {
            found[root] = 1
            do {
                grew = 0
                for (p in parent) if (!(p in found) && (parent[p] in found)) { found[p] = 1; grew = 1; print p }
            } while (grew)
        }'); do
        kill -s KILL "$child" 2>/dev/null
    done
}

# Sets $supervisor to the living supervisor of the execution in folder $1, or to a number that no process has. Its command
# line tells it from a later process of its number.
find_supervisor() {
    supervisor=999999999
    read -r found 2>/dev/null <"$1/supervisor" && kill -0 "$found" 2>/dev/null || return
    if [ -r "/proc/$found/cmdline" ]; then
        line=$(tr '\0' ' ' 2>/dev/null <"/proc/$found/cmdline")
    else
        line=$(ps -o args= -p "$found")
    fi
    case $line in
        *" supervise $1 "*) supervisor=$found ;;
    esac
}
