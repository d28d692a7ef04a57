
# ---- one connection ----

serve() {
    nonce=$1
    case $nonce in
        '' | *[!A-Za-z0-9_-]*) usage ;;
    esac
    home=$PWD
    { mkdir -p -- "$2" && chmod 700 "$2"; } || exit 1
    state=$(cd -P -- "$2" && pwd -P) || exit 1
    case $self in
        /*) ;;
        *) self=$home/$self ;;
    esac
    exec=$state/exec
    [ -d "$exec" ] || mkdir -p "$exec" || exit 1
    # What a connection before this one has left behind, and this one's own folder.
    mine=$state/connection-$$
    rm -rf -- "$mine"
    mkdir "$mine" && mkfifo "$mine/turn" || exit 1
    exec 8<>"$mine/turn"
    end_turn
    reception= following= followings=0 collection= collections=0
    # A connection that is closed makes a write fail, and does not kill whoever holds the turn.
    trap : PIPE

    printf '\nVIVARIUM-AGENT %s\n' "$nonce"
    send "{\"type\":\"hello\",\"protocol\":1,\"agent_version\":\"$agent_version\",\"os\":\"$(system)\",\"arch\":\"$(machine)\",\"pid\":$$,\"unix_ms\":$(date +%s)000}"
    while :; do
        set -- $(exactly 5 | od -An -v -tu1)
        [ $# -eq 5 ] || break
        length=$(($2 * 65536 + $3 * 256 + $4 - 1))
        if [ "$1" -gt 0 ] || [ $length -lt 0 ] || [ $length -gt $max_frame ]; then
            refuse frame "a frame of the kind $5 declares a length that it must not have"
            break
        fi
        case $5 in
            0)
                read_message "$(exactly $length)"
                if [ "$m_error" ]; then
                    refuse message "a control message does not parse: $m_error"
                else
                    take_message
                fi
                ;;
            2)
                if [ "$reception" ]; then
                    receive $length
                else
                    refuse data 'data came that no request announced'
                    break
                fi
                ;;
            1)
                refuse output 'output flows from the agent to the master only'
                break
                ;;
            *)
                refuse frame "a frame has the unknown kind $5"
                break
                ;;
        esac
    done
    leave
}

# What was being sent for a request may be sent to its end, for two seconds; following and receiving end now.
leave() {
    waited=0
    while [ "$collection" ] && [ -d "$collection" ] && [ $waited -lt 20 ]; do
        waited=$((waited + 1))
        pause 0.1
    done
    [ "$reception" = write ] && rm -f -- "$received"
    kill_children
    rm -rf -- "$mine"
    exit 0
}

system() {
    name=$(uname -s | tr 'A-Z' 'a-z')
    case $name in
        darwin) name=macos ;;
    esac
    put "$name"
}

machine() {
    name=$(uname -m)
    case $name in
        amd64) name=x86_64 ;;
        arm64) name=aarch64 ;;
    esac
    put "$name"
}

take_message() {
    case $m_type in
        start | attach | acknowledge | stop)
            case $m_execution in
                '' | *[!A-Za-z0-9_-]*) why=yes ;;
                *) why= ;;
            esac
            if [ "$why" ] || [ ${#m_execution} -gt 64 ]; then
                refuse "$m_type" "the execution's id is not made of at most 64 letters, digits, '-' and '_'"
                return
            fi
            if [ $m_type != start ] && [ ! -d "$exec/$m_execution" ]; then
                send "{\"type\":\"unknown\",\"execution\":\"$m_execution\"}"
                return
            fi
            ;;
    esac
    case $m_type in
        ping) send "{\"type\":\"pong\",\"sequence\":$m_sequence}" ;;
        acknowledge) acknowledge "$exec/$m_execution" "$m_until" ;;
        start) start ;;
        attach) begin_following "$m_execution" "$m_from" attach attached ;;
        stop)
            # Twice removed, so that it is nobody's child when this connection ends.
            [ -e "$exec/$m_execution/end" ] ||
                ($setsid "$sh" "$self" stop "$exec/$m_execution" "$m_grace_ms" </dev/null >/dev/null 2>&1 8>&- &)
            ;;
        unpack) begin_unpack ;;
        write) begin_write ;;
        end_of_data) end_reception ;;
        collect)
            collections=$((collections + 1))
            if mkdir "$mine/collection-$collections" 2>/dev/null; then
                collect "$mine/collection-$collections" "$collection" </dev/null &
                collection=$mine/collection-$collections
            else
                refuse collect "cannot write into the agent's state folder"
            fi
            ;;
        set_clock) set_clock ;;
    esac
}

start() {
    if [ -d "$exec/$m_execution" ]; then
        begin_following "$m_execution" 0 start attached
        return
    fi
    if [ "$m_command_shell_count" -eq 0 ]; then
        refuse start "$m_execution: the command has no shell"
    elif [ "$m_bad_name" -eq 1 ]; then
        refuse start "$m_execution: a name of an environment variable is empty or holds ="
    elif [ "$m_pty" ]; then
        refuse start "$m_execution: the step asks for a terminal, and the agent in sh has none to give; it runs without pty"
    elif [ "$m_zero" -eq 1 ]; then
        refuse start "$m_execution: the command holds a zero byte"
    elif ! mkdir "$exec/$m_execution" 2>/dev/null; then
        # Another connection may have been quicker.
        if [ -d "$exec/$m_execution" ]; then
            begin_following "$m_execution" 0 start attached
        else
            refuse start "$m_execution: cannot create the execution's folder"
        fi
    else
        launch
    fi
}

launch() {
    dir=$exec/$m_execution
    [ "$m_command_spool_bytes" -ge 65536 ] || m_command_spool_bytes=65536
    m_command_dir=$(absolute "$m_command_dir")
    { write_number "$dir/total" 0 && write_number "$dir/acked" 0 && write_command >"$dir/command"; } 2>/dev/null
    {
        # The launcher waits in its foreground, for the reason that `supervise` gives.
        line=$("$sh" -c '"$@" $$; :' sh $setsid "$sh" "$self" supervise "$dir" </dev/null 2>"$dir/supervisor.log" 8>&-)
    } 2>/dev/null
    case $line in
        running) begin_following "$m_execution" 0 start new ;;
        '') refuse start "$m_execution: the command's supervisor ended before the command ran" ;;
        *) refuse start "$m_execution: $line" ;;
    esac
}

# The command as shell variables: what `supervise` reads.
write_command() {
    for word in m_command_dir m_command_shell m_command_script m_command_spool_bytes m_exports m_through; do
        eval "shell_word \"\$$word\""
        put "$word=$shell"
        echo
    done
    shell_word "$original_lc_all"
    echo "m_lc_all=$shell m_had_lc_all=$had_lc_all"
}

# $1 as one word of shell code.
shell_word() {
    shell= rest=$1
    while :; do
        case $rest in
            *\'*)
                shell="$shell'${rest%%\'*}'\\'"
                rest=${rest#*\'}
                ;;
            *) break ;;
        esac
    done
    shell="$shell'$rest'"
}

# Follows $1 from byte $2 instead of what was followed before.
begin_following() {
    end_following
    dir=$exec/$1
    # Another connection may be starting it at this moment.
    waited=0
    while [ ! -e "$dir/supervisor" ] && [ ! -e "$dir/end" ] && [ $waited -lt 200 ]; do
        waited=$((waited + 1))
        pause 0.05
    done
    find_supervisor "$dir"
    read_number "$dir/total"
    if [ "$2" -gt "$number" ]; then
        refuse "$3" "byte $2 is beyond the output's end at $number"
    elif [ "$2" -lt "$number" ] && [ ! -e "$dir/out-$(($2 / segment))" ]; then
        refuse "$3" "the output was acknowledged and deleted, byte $2 with it"
    else
        followings=$((followings + 1))
        following=$mine/following-$followings
        true >"$following" || return
        follow "$1" "$2" "$3" "$4" "$following" </dev/null &
    fi
}

# Ends the following when it is not in the middle of a frame.
end_following() {
    [ "$following" ] || return
    take_turn
    rm -f "$following"
    end_turn
    following=
}

set_clock() {
    now=$(date +%s)
    wanted=$((m_unix_ms / 1000))
    off=$((wanted - now))
    if [ $off -ge -1 ] && [ $off -le 1 ]; then
        send '{"type":"clock_set","stepped_ms":0}'
        return
    fi
    # Seconds become a date by counting days, for `date` takes seconds in some systems only.
    set -- $(awk -v t=$wanted 'BEGIN {
        day = int(t / 86400); s = t % 86400; z = day + 719468; era = int(z / 146097); doe = z % 146097
        yoe = int((doe - int(doe / 1460) + int(doe / 36524) - int(doe / 146096)) / 365)
        doy = doe - (365 * yoe + int(yoe / 4) - int(yoe / 100)); mp = int((5 * doy + 2) / 153)
        d = doy - int((153 * mp + 2) / 5) + 1; m = mp < 10 ? mp + 3 : mp - 9; y = yoe + era * 400 + (m <= 2)
        printf "%04d %02d %02d %02d %02d %02d", y, m, d, int(s / 3600), int(s / 60) % 60, s % 60 }')
    case $(uname -s) in
        Linux) set -- date -u -s "$1-$2-$3 $4:$5:$6" ;;
        Darwin) set -- date -u "$2$3$4$5$1.$6" ;;
        *) set -- date -u "$1$2$3$4$5.$6" ;;
    esac
    if "$@" >/dev/null 2>&1 || sudo -n "$@" >/dev/null 2>&1 || doas -n "$@" >/dev/null 2>&1; then
        send "{\"type\":\"clock_set\",\"stepped_ms\":${off}000}"
    else
        refuse set_clock "the clock is $off s off and cannot be set: neither this user nor sudo or doas may run date"
    fi
}

# ---- the command line ----

usage() {
    echo 'usage: vivarium-agent serve NONCE --state DIR' >&2
    exit 2
}

case ${1-} in
    serve)
        [ $# -eq 4 ] && [ "$3" = --state ] && [ "$4" ] || usage
        serve "$2" "$4"
        ;;
    supervise) supervise "$2" "$3" ;;
    stop) stop "$2" "$3" ;;
    *) usage ;;
esac
