//! The line that stands where the cap left bytes out.
//!
//! ```text
//!  …the head's last bytes
//!  [vivarium: 1,234,567 bytes left out here: the log is over its cap of 200 MiB]
//!  the tail's first bytes…
//! ```

use bytes::Bytes;

/// What stands in the place of the bytes that the cap left out.
pub(super) fn notice(bytes: u64, cap: u64) -> Bytes {
    let cap = match cap {
        cap if cap.is_multiple_of(1 << 20) => format!("{} MiB", cap >> 20),
        cap if cap.is_multiple_of(1 << 10) => format!("{} KiB", cap >> 10),
        cap => format!("{} bytes", grouped(cap)),
    };
    Bytes::from(format!(
        "\n[vivarium: {} bytes left out here: the log is over its cap of {cap}]\n",
        grouped(bytes)
    ))
}

/// 1234567 as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_a_line_of_its_own() {
        assert_eq!(
            notice(1_234_567, 200 << 20),
            "\n[vivarium: 1,234,567 bytes left out here: the log is over its cap of 200 MiB]\n"
        );
    }

    #[test]
    fn numbers_are_grouped_for_reading() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
