
# ---- executions ----
#
#   DIR/exec/<execution>/command      the command as shell variables, removed once it has been read
#                        supervisor   the supervisor's process; main: the command's first process
#                        pipe         the command's output on its way to the spooler
#                        out-<n>      the output from byte n * 65536 on
#                        total        how many bytes of output there are; acked: how many may be forgotten
#                        end          how it ended: "code 2 BYTES", "signal 9 BYTES" or "failed BYTES sentence"
#                        quiet        no process of the command is left; eof: the pipe was read to its end
#                        scratch, ballast, end.reserved, noise   room that is taken before a disk can be full
#
# A supervisor's current folder is its execution's.

# In the command's own process, whose number stays, whatever it becomes. Where a guest runs out of memory, Linux ends the
# process with the highest score, which a child inherits: that shall be the command's, and not one of the agent's.
become='
{
    read -r VIVARIUM_SCORE </proc/self/oom_score_adj && [ "$VIVARIUM_SCORE" -lt 500 ] && echo 500 >/proc/self/oom_score_adj
    unset VIVARIUM_SCORE
} 2>/dev/null
echo $$ >"$0"
exec "$@"
'

# Runs the command of the execution in folder $1 to its recorded end. Its first line says to the launcher whether it
# runs; the launcher is process $2, which waits for this one in its foreground and is killed when the command runs: so this
# process is nobody's background, and the command is not born deaf to interrupts, as background processes of a shell are.
supervise() {
    cd "$1" || exit 1
    execution=${1##*/} launcher=$2
    echo $$ >supervisor
    . ./command
    rm -f command
    reserve || give_reason 'cannot reserve room for the record of the end'
    (cd -P -- "$m_command_dir") 2>/dev/null || give_reason "cannot start the command in $m_command_dir: there is no such folder"
    why=$(find_program) || give_reason "cannot start $why in $m_command_dir: there is no such program"
    mkfifo pipe || give_reason 'cannot create a pipe'
    spool &
    spooler=$!
    exec 4>pipe
    echo running
    exec >/dev/null
    [ "$PPID" = "$launcher" ] && kill -s KILL "$launcher"

    # A shell says on its stderr that a command ended by a signal; an exit status alone could be the command's own word.
    exec 3>&2 2<>noise
    # A group of its own for the command: where there is no setsid, a shell with job control gives one to its job.
    [ "$setsid" ] || set -m
    run_command
    status=$?
    # Job control also tells of a job that is only stopped.
    while [ -z "$setsid" ] && [ $status -gt 128 ] && read -r main <main && kill -0 "$main"; do
        pause 0.1
        wait "$main"
        status=$?
    done
    set +m
    exec 2>&3 3>&- 4>&-
    read -r said _ <noise
    if [ $status -gt 256 ]; then
        how="signal $((status - 256))"
    elif [ $status -gt 128 ] && [ "$said" ]; then
        how="signal $((status - 128))"
    else
        how="code $status"
    fi
    await_tree
    await_spooler
    read_number total
    case $spooled in
        0) record "$how $number" ;;
        3) record "failed $number the output could not be kept: the disk of the agent's state folder stayed full; $number bytes of it were kept, and the command was ended" ;;
        *) record "failed $number the process that spools the command's output was ended from outside" ;;
    esac
}

reserve() {
    printf '%1000s\n' ' ' >end.reserved && printf '%1000s\n' ' ' >noise &&
        dd if=/dev/zero of=scratch bs=$segment count=1 2>/dev/null && dd if=/dev/zero of=ballast bs=$segment count=1 2>/dev/null
}

record() {
    printf '%s\n' "$1" 1<>end.reserved
    mv -f end.reserved end
}

give_reason() {
    record "failed 0 $1"
    echo "$1"
    exit
}

# Prints the shell's program, and fails if there is none.
find_program() {
    eval "set -- $m_command_shell"
    put "$1"
    name=$1
    eval "${m_exports:+export $m_exports}"
    cd -P -- "$m_command_dir" && command -v -- "$name" >/dev/null
}

run_command() {
    (
        here=$PWD
        cd -P -- "$m_command_dir" || exit 127
        eval "set -- ${m_through:+env $m_through} $m_command_shell \"\$m_command_script\""
        set -- ${setsid:+"$setsid"} "$sh" -c "$become" "$here/main" "$@"
        LC_ALL=$m_lc_all
        [ "$m_had_lc_all" ] || unset LC_ALL
        VIVARIUM_EXECUTION=$execution.$$
        export VIVARIUM_EXECUTION
        eval "${m_exports:+export $m_exports}"
        exec "$@" </dev/null >&4 2>&4 4>&- 3>&-
    )
}

# After the main process: its descendants have two seconds while they hold the output, half a second once they do not.
await_tree() {
    waited=0 silent=0
    while [ "$(members)" ]; do
        [ -e eof ] && silent=$((silent + 1))
        if [ $silent -ge 5 ] || [ $waited -ge 20 ]; then
            terminate
            waited=0
            while [ $waited -lt 20 ] && [ "$(members)" ]; do
                waited=$((waited + 1))
                pause 0.1
            done
            kill_all
            break
        fi
        waited=$((waited + 1))
        pause 0.1
    done
    true >quiet
}

# What the pipe still holds is spooled. If it stays open and silent for two seconds a stranger holds it; a byte of ours
# then wakes the spooler, which leaves it out.
await_spooler() {
    trap '' PIPE
    silent=0 before= waker=
    while [ ! -e eof ]; do
        read_number total
        [ "$number" = "$before" ] && [ ! -e full ] && silent=$((silent + 1))
        before=$number
        [ $silent -ne 50 ] || [ -z "$(members)" ] || await_tree
        if [ $silent -ge 100 ]; then
            true >abandon
            echo >pipe &
            waker=$!
            break
        fi
        pause 0.02
    done
    wait $spooler
    spooled=$?
    # Without a reader it would wait for one for ever.
    [ "$waker" ] && kill -s KILL "$waker" 2>/dev/null
}

# ---- the spooler: the pipe into files, and no further than the master's acknowledgement allows ----

spool() {
    exec <pipe >/dev/null
    total=0 acked=0
    while :; do
        room=$((acked + m_command_spool_bytes - total))
        if [ $room -lt $segment ]; then
            read_number acked && acked=$number
            room=$((acked + m_command_spool_bytes - total))
            [ -e quiet ] && room=$segment
            if [ $room -le 0 ]; then
                pause 0.05
                continue
            fi
        fi
        wanted=$((segment - total % segment))
        [ $wanted -le $room ] || wanted=$room
        fill_scratch $wanted
        [ "$count" -gt 0 ] || break
        [ -e abandon ] && count=$((count - 1))
        [ "$count" -gt 0 ] && append
        [ -e abandon ] && break
    done
    true >eof
    exit 0
}

# Reads at most $1 bytes from the pipe over the bytes of the file `scratch`, which has its room already; $count is how many.
bytes_of_note() {
    note=${1##*"records out"}
    set -- $note
    count=${1:-0}
    is_number "$count" || count=0
}
bytes_of_note "$(printf x | dd bs=1 count=1 2>&1 >/dev/null)"
if [ "$count" -eq 1 ]; then
    fill_scratch() {
        bytes_of_note "$(dd bs="$1" count=1 of=scratch conv=notrunc 2>&1)"
    }
else
    # This dd does not say how many bytes there were.
    fill_scratch() {
        count=$(dd bs="$1" count=1 2>/dev/null | { tee /dev/fd/5 1<>scratch; } 5>&1 | wc -c)
        count=$((count))
    }
fi

# Puts the first $count bytes of `scratch` behind the others. A full disk is waited for: acknowledged output is deleted
# meanwhile, and if nothing else makes room for 300 seconds (10 when no process is left) the command is ended.
append() {
    begin=$total into=out-$((total / segment)) tries=0
    dd if=scratch bs="$count" count=1 2>/dev/null >>"$into" && total=$((total + count)) && write_number total $total && return
    rm -f ballast
    while :; do
        have=$(wc -c <"$into")
        total=$((begin - begin % segment + ${have:-0}))
        [ $total -ge $begin ] || total=$begin
        write_number total $total
        [ $total -ge $((begin + count)) ] && break
        true >full
        dd if=scratch bs=1 skip=$((total - begin)) count=$((begin + count - total)) 2>/dev/null >>"$into" && continue
        tries=$((tries + 1))
        if [ $tries -ge 1500 ] || { [ -e quiet ] && [ $tries -ge 50 ]; }; then
            [ -e quiet ] || kill_all
            true >eof
            exit 3
        fi
        pause 0.2
    done 2>/dev/null
    rm -f full
}

# Deletes what was acknowledged: whole segments before byte $2 of the execution in folder $1.
forget() {
    last=$(($2 / segment))
    [ -e "$1/end" ] && read_number "$1/total" && [ "$2" -ge "$number" ] && last=$((last + 1))
    set -- "$1"
    while [ $last -gt 0 ] && [ -e "$1/out-$((last - 1))" ]; do
        last=$((last - 1))
        set -- "$@" "$1/out-$last"
    done
    [ $# -gt 1 ] && shift && rm -f "$@"
}

acknowledge() {
    read_number "$1/total"
    until=$2
    [ "$until" -le "$number" ] || until=$number
    read_number "$1/acked"
    [ "$until" -le "$number" ] || write_number "$1/acked" "$until"
    forget "$1" "$until"
}

# ---- the stopper: a process of its own, for the connection that asked may go ----

stop() {
    trap '' HUP
    cd "$1" || exit 1
    execution=${1##*/} ticks=$(($2 / 100)) waited=0
    [ $ticks -le 36000 ] || ticks=36000
    while [ ! -e main ] && [ ! -e end ] && [ $waited -lt 300 ]; do
        waited=$((waited + 1))
        pause 0.05
    done
    [ -e end ] && exit
    terminate
    waited=0
    while [ ! -e quiet ] && [ ! -e end ]; do
        if [ $waited -ge $ticks ]; then
            kill_all && exit
            # What survives this waits for a device, and its supervisor for it.
            read_number total
            record "failed $number the command could not be ended: it survived KILL"
            exit
        fi
        waited=$((waited + 1))
        pause 0.1
    done
}
