//! What was measured: plain data, as JSON has it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A change that breaks readers raises it; new fields and rows do not.
pub const SCHEMA: u32 = 1;

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The version of Cofferdam.
    pub version: String,
    /// When it was measured, as RFC 3339 has it.
    pub time: String,
    /// What image.
    pub image: ImageSize,
    /// Where.
    pub host: Host,
    /// Times that everything timed was done, after one that does not count.
    pub runs: u32,
    /// Ways to run the image.
    pub columns: Vec<Column>,
    /// What was measured of each.
    pub rows: Vec<Row>,
}

/// An image and its size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageSize {
    /// As it was named.
    pub name: String,
    /// Layers that a container has.
    pub layers: usize,
    /// Bytes of the layers as they came, which a push or save gives again.
    pub blobs_bytes: u64,
    /// Bytes of the EROFS images made of them, on the disk.
    pub erofs_bytes: u64,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its kernel's release.
    pub kernel: String,
    /// The name that its CPU has for itself.
    pub cpu: String,
    /// CPUs.
    pub cpus: usize,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// It is the project's lab: an emulated machine, 10 to 30 times slower than hardware.
    pub lab: bool,
    /// What its kernel shows to root.
    pub sees: BTreeMap<String, String>,
}

/// A way to run the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// `runc`, `crun` or `vm`.
    pub id: String,
    /// For people.
    pub label: String,
    /// Options of `cofferdam run`.
    pub options: String,
}

/// One thing that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Unlike that of all others.
    pub id: String,
    /// What it belongs to.
    pub group: Group,
    /// For people.
    pub title: String,
    /// Of its numbers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
    /// Which numbers are better; none of those that are neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub better: Option<Better>,
    /// What was done and counted.
    pub note: String,
    /// By the ids of columns.
    pub cells: BTreeMap<String, Cell>,
}

/// What rows are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// From the command to the end.
    Time,
    /// Memory and disk.
    Size,
    /// Work inside.
    Work,
    /// What of the host is within reach.
    Reach,
    /// What harm inside does.
    Harm,
}

impl Group {
    /// In the order of tables.
    pub const ALL: [Self; 5] = [Self::Time, Self::Size, Self::Work, Self::Reach, Self::Harm];

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Time => "Time",
            Self::Size => "Memory and disk",
            Self::Work => "Work",
            Self::Reach => "What it sees and reaches",
            Self::Harm => "Harm inside, and who feels it",
        }
    }
}

/// Which numbers are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Low ones.
    Less,
    /// High ones.
    More,
}

/// What was measured, in the row's unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    /// Several times.
    Spread {
        /// Of an even number, the mean of the two in the middle.
        median: f64,
        /// The least.
        min: f64,
        /// The most.
        max: f64,
    },
    /// Once.
    Number {
        /// It.
        value: f64,
    },
    /// What happened, in words.
    Text {
        /// They.
        text: String,
    },
    /// Nothing.
    Missing {
        /// Why not.
        not_measured: String,
    },
}

impl Cell {
    /// Of numbers; nothing if there are none.
    pub fn spread(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        let middle = numbers.len() / 2;
        let below = match numbers.len().is_multiple_of(2) {
            true => middle.saturating_sub(1),
            false => middle,
        };
        match (
            numbers.first(),
            numbers.get(below),
            numbers.get(middle),
            numbers.last(),
        ) {
            (Some(&min), Some(&below), Some(&above), Some(&max)) => Self::Spread {
                median: f64::midpoint(below, above),
                min,
                max,
            },
            _ => Self::missing("there is no figure"),
        }
    }

    /// A number.
    pub fn number(value: f64) -> Self {
        Self::Number { value }
    }

    /// Words.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }

    /// Nothing, and why.
    pub fn missing(why: impl Into<String>) -> Self {
        Self::Missing {
            not_measured: why.into(),
        }
    }

    /// What a chart shows.
    pub fn value(&self) -> Option<f64> {
        match self {
            Self::Spread { median, .. } => Some(*median),
            Self::Number { value } => Some(*value),
            _ => None,
        }
    }
}

impl Report {
    /// The cells of a row, in the order of the columns.
    pub fn cells<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = (&'a Column, &'a Cell)> {
        let cell = |column: &'a Column| Some((column, row.cells.get(&column.id)?));
        self.columns.iter().filter_map(cell)
    }

    /// The rows of a group.
    pub fn group(&self, group: Group) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.group == group)
    }
}

/// A number for people: three digits that count.
pub fn digits(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 || value.fract() == 0.0 {
        thousands(value)
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn thousands(value: f64) -> String {
    let plain = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in plain.chars().enumerate() {
        if at > 0 && (plain.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 {
        format!("-{text}")
    } else {
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report with each kind of cell, and what would break HTML that is not careful.
    pub fn example() -> Report {
        let text = include_str!("../../tests/compare.json");
        crate::json::from_slice(text.as_bytes()).unwrap()
    }

    /// If it fails, who reads the JSON gets other figures than were measured.
    #[test]
    fn cells_survive_json() {
        let cells = [
            Cell::spread(vec![3.0, 1.0, 2.0]),
            Cell::number(7.0),
            Cell::text("lives"),
            Cell::missing("no root"),
        ];
        for cell in cells {
            let json = serde_json::to_string(&cell).unwrap();
            assert_eq!(
                crate::json::from_slice::<Cell>(json.as_bytes()).unwrap(),
                cell,
                "{json}"
            );
        }
        let json = serde_json::to_string(&example()).unwrap();
        assert_eq!(
            crate::json::from_slice::<Report>(json.as_bytes()).unwrap(),
            example()
        );
    }

    /// If it fails, a median is not the middle.
    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Cell::spread(vec![9.0, 1.0, 5.0]).value(), Some(5.0));
        assert_eq!(Cell::spread(vec![1.0, 3.0]).value(), Some(2.0));
        assert_eq!(Cell::spread(vec![9.0, 1.0, 2.0, 4.0]).value(), Some(3.0));
        assert_eq!(Cell::spread(Vec::new()).value(), None);
    }

    /// If it fails, figures cannot be read.
    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (1.234, "1.23"),
            (45.67, "45.7"),
            (345.6, "346"),
            (1_234_567.8, "1,234,568"),
            (-2048.0, "-2,048"),
        ] {
            assert_eq!(digits(value), text);
        }
    }
}
