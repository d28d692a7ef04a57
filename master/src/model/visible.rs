//! Text by strangers, made safe to look at.

/// The text with every character that could hide, reorder or forge what stands around it written out as `⟨U+202E⟩`:
/// controls (a terminal obeys them), bidirectional overrides, invisible ones, tags. Line breaks and tabs stay.
///
/// Joiners (U+200C, U+200D) stay too: scripts and emoji need them.
pub fn visible(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.chars().any(is_treacherous) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match is_treacherous(character) {
            true => shown.push_str(&format!("⟨U+{:04X}⟩", u32::from(character))),
            false => shown.push(character),
        }
    }
    shown.into()
}

/// [`visible`] on one line, for lists and terminals.
pub fn visible_line(text: &str) -> String {
    visible(text).replace(['\n', '\r'], " ")
}

fn is_treacherous(character: char) -> bool {
    match character {
        '\n' | '\r' | '\t' => false,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{feff}' => {
            true
        }
        '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}' => true,
        '\u{e0000}'..='\u{e007f}' => true,
        other => other.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_deceive_is_written_out() {
        for (given, expected) in [
            (
                "plain, ünïcode, 日本語, 👩‍💻\n\tok",
                "plain, ünïcode, 日本語, 👩‍💻\n\tok",
            ),
            ("\u{202e}gpj.exe", "⟨U+202E⟩gpj.exe"),
            ("a\u{1b}[31mb\u{9b}c", "a⟨U+001B⟩[31mb⟨U+009B⟩c"),
            (
                "zero\u{200b}width\u{feff}\0",
                "zero⟨U+200B⟩width⟨U+FEFF⟩⟨U+0000⟩",
            ),
        ] {
            assert_eq!(visible(given), expected);
        }
        assert_eq!(visible_line("a\r\nb\u{85}"), "a  b⟨U+0085⟩");
    }
}
