# Which compiler builds the agent for other systems; to be sourced.
#
# The standard library is compiled too, so its source has to lie beside the compiler: Debian's rustc-web and rust-web-src,
# or rustup's toolchain with its component rust-src.

# Sets `rustc` and `cargo`; fails where there is no such compiler.
find_toolchain() {
    local source=lib/rustlib/src/rust/library/Cargo.lock sysroot
    if [[ -e /usr/$source && -x /usr/bin/cargo && -x /usr/bin/rustc ]]; then
        rustc=/usr/bin/rustc cargo=/usr/bin/cargo
        return
    fi
    sysroot=$(rustc --print sysroot 2>/dev/null) && cargo=$(command -v cargo) || return
    # The program itself: rustup's front would choose by the folder it is called in.
    rustc=$sysroot/bin/rustc
    [[ -e $sysroot/$source ]]
}
