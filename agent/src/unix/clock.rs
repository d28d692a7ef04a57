//! Stepping the system's clock, by right or through the image's root helper.

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};
use std::time::Duration;

/// How this system's `date` is told the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// GNU's and BusyBox's.
    Linux,
    Macos,
    Bsd,
}

const OWN: Dialect = if cfg!(any(target_os = "linux", target_os = "android")) {
    Dialect::Linux
} else if cfg!(target_os = "macos") {
    Dialect::Macos
} else {
    Dialect::Bsd
};

/// What may run a program as root without asking anybody.
const HELPERS: [&str; 2] = ["sudo", "doas"];

/// Sets the clock to this time since 1970-01-01 UTC.
pub(crate) fn step_clock(time: Duration) -> Result<()> {
    if step_by_right(time)? {
        return Ok(());
    }
    let mut whys = Vec::new();
    for helper in HELPERS {
        let output = Command::new(helper)
            .args(["-n", "date"])
            .args(arguments(OWN, time))
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr);
                whys.push(format!("{helper} says: {}", why.trim()));
            }
            Err(error) => whys.push(format!("{helper} does not start: {error}")),
        }
    }
    bail!(
        "cannot set the clock: this user may not, {}",
        whys.join(", and ")
    )
}

/// `false` if this user may not, or if the system has no call for it.
#[cfg(not(target_vendor = "apple"))]
fn step_by_right(time: Duration) -> Result<bool> {
    use nix::sys::time::TimeSpec;
    use nix::time::{ClockId, clock_settime};
    match clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time)) {
        Ok(()) => Ok(true),
        Err(nix::Error::EPERM) => Ok(false),
        Err(error) => Err(error).context("cannot set the clock"),
    }
}

#[cfg(target_vendor = "apple")]
fn step_by_right(time: Duration) -> Result<bool> {
    let date = Command::new("date")
        .args(arguments(OWN, time))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    Ok(date.context("cannot run date")?.success())
}

/// The arguments of `date` that set this time, in whole seconds: BusyBox's takes no fractions, and the others have none.
fn arguments(dialect: Dialect, time: Duration) -> Vec<String> {
    let seconds = (time + Duration::from_millis(500)).as_secs();
    let [year, month, day] = date_of(seconds / 86400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match dialect {
        Dialect::Linux => vec!["-u".to_owned(), "-s".to_owned(), format!("@{seconds}")],
        Dialect::Macos => vec![
            "-u".to_owned(),
            format!("{month:02}{day:02}{hour:02}{minute:02}{year:04}.{second:02}"),
        ],
        Dialect::Bsd => vec![
            "-u".to_owned(),
            format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}.{second:02}"),
        ],
    }
}

/// Year, month and day of the day that is so many after 1970-01-01 (Gregorian; years are counted from March, so that
/// the leap day is the last of its year).
fn date_of(days: u64) -> [u64; 3] {
    let since_0000_03_01 = days + 719_468;
    let era = since_0000_03_01 / 146_097;
    let of_era = since_0000_03_01 % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    [year, month, day]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_its_date() {
        for (days, date) in [
            (0, [1970, 1, 1]),
            (58, [1970, 2, 28]),
            (59, [1970, 3, 1]),
            (11_016, [2000, 2, 29]),
            (11_017, [2000, 3, 1]),
            (20_089, [2025, 1, 1]),
            (20_453, [2025, 12, 31]),
            (47_540, [2100, 2, 28]),
            (47_541, [2100, 3, 1]),
        ] {
            assert_eq!(date_of(days), date, "day {days}");
        }
    }

    #[test]
    fn every_date_is_told_the_time_in_its_own_way() {
        // 2025-12-31 23:59:59.6 UTC.
        let time = Duration::from_millis(1_767_225_599_600);
        assert_eq!(arguments(Dialect::Linux, time), ["-u", "-s", "@1767225600"]);
        assert_eq!(arguments(Dialect::Macos, time), ["-u", "010100002026.00"]);
        assert_eq!(arguments(Dialect::Bsd, time), ["-u", "202601010000.00"]);
    }

    #[test]
    fn the_date_of_this_machine_understands_its_own_dialect() {
        // `-d` in the place of `-s` only prints.
        let time = Duration::from_secs(1_000_000_000);
        let words = arguments(Dialect::Linux, time)
            .iter()
            .map(|word| word.replace("-s", "-d"))
            .collect::<Vec<_>>();
        let output = Command::new("date")
            .args(words)
            .arg("+%s")
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"1000000000\n");
    }
}
