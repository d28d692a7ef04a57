//! The table that a run ends with: one line for each figure, all of one form.

use super::samples::Samples;
use std::fmt;

/// A figure, or the median of several with their range.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    value: f64,
    range: Option<(f64, f64)>,
    unit: &'static str,
}

impl Figure {
    pub(crate) fn one(value: f64, unit: &'static str) -> Figure {
        Figure {
            value,
            range: None,
            unit,
        }
    }

    pub(crate) fn median(samples: &Samples, unit: &'static str) -> Figure {
        Figure {
            value: samples.median(),
            range: Some(samples.range()),
            unit,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", short(self.value), self.unit)?;
        match self.range {
            Some((low, high)) => write!(f, " ({} to {})", short(low), short(high)),
            None => Ok(()),
        }
    }
}

/// Three digits that matter.
fn short(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// What a figure, or the ratio of the two, shall be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    None,
    Below(f64),
    AtLeast(f64),
    RatioAtLeast(f64),
}

#[derive(Debug)]
struct Line {
    name: String,
    ours: Figure,
    theirs: Option<(String, Figure)>,
    target: Target,
}

impl Line {
    fn ratio(&self) -> Option<f64> {
        let (_, theirs) = self.theirs.as_ref()?;
        Some(self.ours.value / theirs.value)
    }

    fn reached(&self) -> &'static str {
        let reached = match self.target {
            Target::None => return "",
            Target::Below(most) => self.ours.value < most,
            Target::AtLeast(least) => self.ours.value >= least,
            Target::RatioAtLeast(least) => self.ratio().is_some_and(|ratio| ratio >= least),
        };
        if reached { "reached" } else { "NOT REACHED" }
    }

    fn cells(&self) -> [String; 7] {
        let (what, theirs) = match &self.theirs {
            Some((what, theirs)) => (what.clone(), theirs.to_string()),
            None => Default::default(),
        };
        let unit = self.ours.unit;
        [
            self.name.clone(),
            self.ours.to_string(),
            what,
            theirs,
            self.ratio()
                .map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            match self.target {
                Target::None => String::new(),
                Target::Below(most) => format!("< {most} {unit}"),
                Target::AtLeast(least) => format!(">= {least} {unit}"),
                Target::RatioAtLeast(least) => format!("ratio >= {least}"),
            },
            self.reached().to_owned(),
        ]
    }
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    lines: Vec<Line>,
}

impl Table {
    /// Adds a figure that stands alone.
    pub(crate) fn add(&mut self, name: &str, ours: Figure, target: Target) {
        self.push(name, ours, None, target);
    }

    /// Adds a figure beside another one and what that is.
    pub(crate) fn compare(
        &mut self,
        name: &str,
        ours: Figure,
        what: &str,
        theirs: Figure,
        target: Target,
    ) {
        self.push(name, ours, Some((what.to_owned(), theirs)), target);
    }

    fn push(&mut self, name: &str, ours: Figure, theirs: Option<(String, Figure)>, target: Target) {
        let line = Line {
            name: name.to_owned(),
            ours,
            theirs,
            target,
        };
        // Shown at once too: a whole run takes long.
        println!("  {}", line.cells().join("  ").trim_end());
        self.lines.push(line);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = [
            "measured", "ours", "against", "theirs", "ratio", "target", "",
        ]
        .map(str::to_owned);
        let rows: Vec<[String; 7]> = std::iter::once(head)
            .chain(self.lines.iter().map(Line::cells))
            .collect();
        for row in &rows {
            let mut text = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = rows.iter().map(|row| row[column].chars().count()).max();
                text.push_str(&format!("{cell:<0$}  ", width.unwrap_or(0)));
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}
