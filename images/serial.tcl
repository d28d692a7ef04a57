# Talks to a machine over its serial console, for the systems whose installation asks. Sourced by the install.exp of a
# recipe; QEMU's command line is the script's arguments. What is said goes to the log of the build.

# A step of an installation takes minutes where the machine is emulated.
set timeout 3600

proc fail {why} {
    puts "\nvivarium: failed: $why"
    exit 1
}

# Waits for a pattern, and says what did not come when it does not.
proc await {pattern {what ""}} {
    if {$what eq ""} { set what "\"$pattern\" on the console" }
    expect {
        -re $pattern {}
        timeout { fail "waited an hour for $what" }
        eof { fail "the machine ended while $what was awaited" }
    }
}

# Boot loaders read a key at a time; typed as by a person, none is lost.
set send_slow {1 .05}
proc type {text} {
    send -s -- "$text\r"
}

# A shell on the console with a prompt that nothing else prints at the start of a line.
proc take_shell {} {
    sleep 2
    type "exec env ENV= PS1='vivarium> ' /bin/sh"
    await {[\r\n]vivarium> $} "a shell"
}

# A command in that shell, which must succeed.
proc run {command} {
    type "$command && echo ok: \$((40 + 2))"
    expect {
        -re {[\r\n]ok: 42} {}
        -re {[\r\n]vivarium> $} { fail "in the guest: $command" }
        timeout { fail "in the guest, for an hour: $command" }
        eof { fail "the machine ended in: $command" }
    }
    await {[\r\n]vivarium> $} "the shell"
}

# Until the machine is off, which is QEMU's end.
proc await_end {} {
    expect {
        timeout { fail "the machine did not switch itself off within an hour" }
        eof {}
    }
}

spawn -noecho {*}$argv
