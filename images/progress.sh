# A progress bar on standard error for the scripts; plain lines where that is no terminal. Sourced with bash.
#
#   progress_step NAME DONE TOTAL TEXT    step DONE begins: the bar, or the line "NAME: DONE/TOTAL TEXT"
#   progress_percent NAME PERCENT TEXT    moves the bar; nothing where there is none
#   progress_tick                         moves the bar's clock; for a few times a second while waiting
#   progress_clear                        takes the bar away, so that other lines can be printed
# shellcheck shell=bash

progress_bar= # what the bar shows, but for the time; empty when there is none
progress_began=0
progress_name=

progress_is_drawn() {
    [[ -t 2 && ${TERM-dumb} != dumb ]]
}

progress_step() {
    if progress_is_drawn; then
        progress_percent "$1" $((($2 - 1) * 100 / $3)) "$2/$3 $4"
    else
        echo "$1: $2/$3 $4" >&2
    fi
}

progress_percent() {
    local name=$1 percent=$2 text=$3 width=24 bar
    progress_is_drawn || return 0
    if [[ $name != "$progress_name" ]]; then
        progress_name=$name
        progress_began=$SECONDS
    fi
    printf -v bar '%*s' $((percent * width / 100)) ''
    printf -v progress_bar '%-12s [%-*s] %s' "$name" "$width" "${bar// /=}" "$text"
    progress_tick
}

progress_tick() {
    [[ -n $progress_bar ]] || return 0
    local seconds=$((SECONDS - progress_began)) columns line
    columns=$(stty size <&2 2>/dev/null | cut -d' ' -f2)
    printf -v line '%s %d:%02d' "$progress_bar" $((seconds / 60)) $((seconds % 60))
    printf '\r\e[K%s' "${line:0:$((${columns:-80} - 1))}" >&2
}

progress_clear() {
    [[ -n $progress_bar ]] || return 0
    progress_bar=
    printf '\r\e[K' >&2
}
