
# ---- messages from the master ----
#
# awk reads the JSON object and prints assignments that the shell evaluates: m_type, m_execution and so on, every value in
# single quotes. A number that is more than a shell can count is cut to the largest that awk knows exactly.
# What is wrong with the message stands in m_error.

awk_message='
function fail(why) { if (error == "") error = why; at = length(text) + 1 }
function blank() { while (at <= length(text) && index(" \t\r\n", substr(text, at, 1))) at++ }
function expect(c) {
    blank()
    if (substr(text, at, 1) == c) { at++; return 1 }
    fail("byte " at " is not " c); return 0
}
# A string, in the form that stands between single quotes in a shell.
function string(    out, piece, c, code) {
    if (!expect("\"")) return ""
    while (at <= length(text)) {
        piece = substr(text, at, 512)
        if (match(piece, /["\\]/)) piece = substr(piece, 1, RSTART - 1)
        gsub(/\047/, "\047\"\047\"\047", piece)
        out = out piece
        at += match(substr(text, at, 512), /["\\]/) ? RSTART - 1 : 512
        if (at > length(text)) break
        c = substr(text, at, 1)
        if (c == "\"") { at++; return out }
        if (c != "\\") continue
        c = substr(text, at + 1, 1); at += 2
        if (c == "n") out = out "\n"
        else if (c == "t") out = out "\t"
        else if (c == "r") out = out "\r"
        else if (c == "b") out = out "\b"
        else if (c == "f") out = out "\f"
        else if (c == "u") {
            code = hex(substr(text, at, 4)); at += 4
            if (code >= 55296 && code < 56320 && substr(text, at, 2) == "\\u") {
                code = 65536 + (code - 55296) * 1024 + hex(substr(text, at + 2, 4)) - 56320; at += 6
            }
            out = out character(code)
        }
        else if (c == "\"" || c == "\\" || c == "/") out = out c
        else fail("\\" c " stands for nothing")
    }
    fail("a string has no end"); return out
}
function hex(digits,    i, n, d) {
    for (i = 1; i <= 4; i++) {
        d = index("0123456789abcdef", tolower(substr(digits, i, 1)))
        if (!d) fail("\\u" digits " stands for nothing")
        n = n * 16 + d - 1
    }
    return n
}
# What no shell can hold, a zero byte, becomes byte 1, which no name may have and no program expects.
function character(code) {
    if (code == 0) { zero = 1; return "\001" }
    if (code == 39) return "\047\"\047\"\047"
    if (code < 128) return sprintf("%c", code)
    # Not every awk prints a byte above 127 for a number, so the shell does.
    if (code < 2048) return printed(sprintf("\\%03o\\%03o", 192 + int(code / 64), 128 + code % 64))
    if (code < 65536) return printed(sprintf("\\%03o\\%03o\\%03o", 224 + int(code / 4096), 128 + int(code / 64) % 64, 128 + code % 64))
    return printed(sprintf("\\%03o\\%03o\\%03o\\%03o", 240 + int(code / 262144), 128 + int(code / 4096) % 64, 128 + int(code / 64) % 64, 128 + code % 64))
}
function printed(format) { return "\047\"$(printf \047" format "\047)\"\047" }
# Any value; what no message wants is read and dropped. Lists become shell words.
function value(path,    c, name, words) {
    blank()
    c = substr(text, at, 1)
    if (c == "\"") {
        name = string()
        kind[path] = "string"; found[path] = name
        return
    }
    if (c == "{") { at++; kind[path] = "object"; object(path); return }
    if (c == "[") {
        at++; kind[path] = "list"; found[path] = ""; blank()
        if (substr(text, at, 1) == "]") { at++; return }
        do {
            value(path "/item")
            words = words (words == "" ? "" : " ") "\047" found[path "/item"] "\047"
            if (found[path "/item"] == "") empty[path] = 1
            items[path]++
            blank(); c = substr(text, at++, 1)
        } while (c == ",")
        if (c != "]") fail("a list has no end")
        found[path] = words
        return
    }
    if (match(substr(text, at, 40), /^(-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false|null)/)) {
        found[path] = substr(text, at, RLENGTH); at += RLENGTH
        kind[path] = found[path] ~ /^[0-9]+$/ ? "number" : found[path] ~ /^[tf]/ ? "bool" : "other"
        if (kind[path] == "number" && length(found[path]) > 15) found[path] = "900000000000000"
        return
    }
    fail("byte " at " begins no value")
}
function object(path,    c, name) {
    blank()
    if (substr(text, at, 1) == "}") { at++; return }
    do {
        blank(); name = string(); expect(":")
        value(path "/" name)
        if (path == "/command/env") variable(name, found[path "/" name])
        blank(); c = substr(text, at++, 1)
    } while (c == "," && error == "")
    if (c != "}") fail("an object has no end")
}
# Most are set by the shell itself, so that no process list shows a secret; names that a shell would not take, or would
# take as its own, go through env(1).
function variable(name, content) {
    if (name == "" || name ~ /[=\001]/) bad_name = 1
    else if (name !~ /^[A-Za-z_][A-Za-z0-9_]*$/ || name ~ /^(PPID|E?UID|GROUPS|LINENO|RANDOM|SECONDS|OPTIND|HISTCMD|IFS|_|SHELLOPTS|BASH.*|KSH.*|\.sh.*)$/)
        through = through " \047" name "=" content "\047"
    else exports = exports " \047" name "=" content "\047"
}
# Shell code as one word of shell code.
function nested(code) { gsub(/\047/, "\047\"\047\"\047", code); return "\047" code "\047" }
function want(path, wanted,    name) {
    name = path; gsub(/\//, "_", name)
    if (!(path in kind)) fail("the member " substr(path, 2) " is missing")
    else if (kind[path] != wanted) fail("the member " substr(path, 2) " is no " wanted)
    else if (wanted == "list") out = out "m" name "=" nested(found[path]) "\nm" name "_count=" (items[path] + 0) "\n"
    else if (wanted != "object") out = out "m" name "=\047" found[path] "\047\n"
}
{ text = text (NR > 1 ? "\n" : "") $0 }
END {
    at = 1
    if (expect("{")) object("")
    blank()
    if (error == "" && at <= length(text)) fail("something follows the object")
    if (error == "") want("/type", "string")
    type = found["/type"]
    if (type ~ /^(start|attach|acknowledge|stop)$/) want("/execution", "string")
    if (type == "ping") want("/sequence", "number")
    else if (type == "unpack") want("/dir", "string")
    else if (type == "write") { want("/path", "string"); want("/executable", "bool") }
    else if (type == "start") {
        want("/command", "object"); want("/command/shell", "list"); want("/command/script", "string")
        want("/command/dir", "string"); want("/command/env", "object"); want("/command/spool_bytes", "number")
        out = out "m_pty=" (kind["/command/pty"] == "object" ? "yes" : "") "\n"
        out = out "m_exports=" nested(exports) "\nm_through=" nested(through) "\n"
    }
    else if (type == "attach") want("/from", "number")
    else if (type == "acknowledge") want("/until", "number")
    else if (type == "stop") want("/grace_ms", "number")
    else if (type == "collect") {
        want("/dir", "string"); want("/globs", "list"); want("/max_files", "number"); want("/max_bytes", "number")
    }
    else if (type == "set_clock") want("/unix_ms", "number")
    else if (type != "end_of_data") fail("nothing is known of the type " type)
    gsub(/[\047\n]/, "?", error)
    print "m_error=\047" error "\047"
    if (error == "") printf "%s", out
    print "m_zero=" (zero + 0) " m_bad_name=" (bad_name + 0)
}
'

# Reads the message in $1; m_error is empty if it could be read.
read_message() {
    m_zero=0 m_bad_name=0
    # The two that come most often, as the master writes them, cost no process.
    case $1 in
        '{"type":"ping","sequence":'*'}')
            m_sequence=${1#*'sequence":'} m_sequence=${m_sequence%'}'}
            is_number "$m_sequence" && m_type=ping m_error= && return
            ;;
        '{"type":"acknowledge","execution":"'*'","until":'*'}')
            m_execution=${1#*'execution":"'} m_execution=${m_execution%%\"*}
            m_until=${1##*'until":'} m_until=${m_until%'}'}
            is_number "$m_until" && [ "$1" = "{\"type\":\"acknowledge\",\"execution\":\"$m_execution\",\"until\":$m_until}" ] &&
                case $m_execution in *\\*) false ;; esac && m_type=acknowledge m_error= && return
            ;;
    esac
    m_error='awk cannot read it'
    eval "$(put "$1" | awk "$awk_message")"
}
