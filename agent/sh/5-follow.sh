
# ---- following: spooled output goes out as frames, then how it ended ----
#
# A process of its own, so that requests are met while output flows. It looks for more output a few times a second, and
# ends when the connection's process has gone.

# Follows $1 from byte $2, as long as the file $5 is there; $3 is the request that is refused if that fails, $4 what is said first.
follow() {
    dir=$exec/$1 name=$1 pos=$2 request=$3 errand=$5 idle=0 total=0
    trap : PIPE
    lost() { exit; }
    send "{\"type\":\"started\",\"execution\":\"$name\",\"state\":{\"state\":\"$4\"}}"
    while :; do
        # Whether more may come is asked before the spool is read to its end, so that nothing comes in between.
        ended=
        if [ -e "$dir/end" ]; then
            ended=yes
        elif ! kill -0 "$supervisor" 2>/dev/null; then
            ended=lost
            [ -e "$dir/end" ] && ended=yes
        fi
        read_number "$dir/total" && total=$number
        [ "$pos" -ge "$total" ] || idle=0
        while [ "$pos" -lt "$total" ]; do
            send_output || {
                refuse "$request" "$name: the spool ends at byte $pos of $total: the rest was deleted"
                exit
            }
        done
        [ "$ended" ] && break
        is_wanted && kill -0 $$ 2>/dev/null || exit
        idle=$((idle + 1))
        [ $((idle % 50)) -ne 0 ] || find_supervisor "$dir"
        if [ $idle -lt 20 ]; then pause 0.02; else pause 0.2; fi
    done
    if read_number "$dir/acked"; then
        forget "$dir" "$number"
    fi
    how=lost
    [ $ended = lost ] || read -r how value rest <"$dir/end"
    case $how in
        code) exit="{\"how\":\"code\",\"code\":$value}" ;;
        signal) exit="{\"how\":\"signal\",\"signal\":$value}" ;;
        lost) exit='{"how":"lost"}' ;;
        *)
            refuse "$request" "$name: $rest"
            exit
            ;;
    esac
    send "{\"type\":\"exited\",\"execution\":\"$name\",\"exit\":$exit,\"output_bytes\":$pos}"
    exit
}

# Sends what one segment holds from byte $pos on, up to $total. The segment is open before the frame begins, because
# another connection may acknowledge and delete it.
send_output() {
    at=$((pos % segment))
    count=$((segment - at))
    [ $count -le $((total - pos)) ] || count=$((total - pos))
    {
        take_turn
        frame_head $((count + 8)) 1 || { end_turn; exit; }
        bytes 0 0 $((pos / 1099511627776 % 256)) $((pos / 4294967296 % 256)) $((pos / 16777216 % 256)) \
            $((pos / 65536 % 256)) $((pos / 256 % 256)) $((pos % 256))
        if [ $at -eq 0 ]; then
            dd bs=$count count=1 <&7 2>/dev/null
        else
            tail -c +$((at + 1)) <&7 | exactly $count
        fi
        end_turn
        pos=$((pos + count))
    } 7<"$dir/out-$((pos / segment))" 2>/dev/null
}
