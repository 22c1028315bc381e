//! What was measured: samples by part, figure and subject; as tables, and as JSON.
//!
//! A ratio is a subject's median by ours: 2 means that it takes twice as much.

use std::fmt::Write;

use serde_json::{Value, json};

/// The subject that the others are compared with.
pub const OURS: &str = "ours";

/// Everything that was measured.
#[derive(Default)]
pub struct Results {
    parts: Vec<Part>,
}

/// A table.
pub struct Part {
    /// For the machine-readable form.
    pub key: String,
    pub title: String,
    pub figures: Vec<Figure>,
}

/// A row.
pub struct Figure {
    pub name: String,
    pub unit: String,
    /// The percentile that is shown beside the median; none: the median alone.
    pub tail: Option<u32>,
    pub columns: Vec<Column>,
}

/// The samples of one subject.
pub struct Column {
    pub subject: String,
    pub samples: Vec<f64>,
}

impl Column {
    /// The nearest rank.
    pub fn percentile(&self, percent: u32) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (f64::from(percent) / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    }

    pub fn median(&self) -> f64 {
        self.percentile(50)
    }
}

impl Figure {
    pub fn of(&self, subject: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.subject == subject)
    }

    /// The same figure under another name.
    pub fn named(&self, name: &str) -> Figure {
        let column = |column: &Column| Column {
            subject: column.subject.clone(),
            samples: column.samples.clone(),
        };
        Figure {
            name: name.into(),
            unit: self.unit.clone(),
            tail: self.tail,
            columns: self.columns.iter().map(column).collect(),
        }
    }

    /// The median of a subject, as so many times ours.
    fn ratio(&self, column: &Column) -> Option<f64> {
        let ours = self.of(OURS)?.median();
        (column.subject != OURS && ours > 0.0).then(|| column.median() / ours)
    }

    fn cell(&self, subject: &str, with_tail: bool) -> String {
        let Some(column) = self.of(subject) else {
            return "–".into();
        };
        let mut cell = number(column.median());
        if let (Some(tail), true) = (self.tail, with_tail) {
            write!(cell, " ({})", number(column.percentile(tail))).unwrap();
        }
        if let Some(ratio) = self.ratio(column) {
            write!(cell, ", {}×", number(ratio)).unwrap();
        }
        cell
    }
}

impl Results {
    /// A part; those are shown in the order of their first use.
    pub fn part(&mut self, key: &str, title: &str) -> &mut Part {
        let at = self.parts.iter().position(|part| part.key == key);
        let at = at.unwrap_or_else(|| {
            self.parts.push(Part {
                key: key.into(),
                title: title.into(),
                figures: Vec::new(),
            });
            self.parts.len() - 1
        });
        &mut self.parts[at]
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Takes over what an earlier run has of the parts that this one did not measure.
    pub fn keep(&mut self, earlier: Results) {
        for part in earlier.parts {
            if self.parts.iter().all(|mine| mine.key != part.key) {
                self.parts.push(part);
            }
        }
    }

    /// The tables, in Markdown.
    pub fn tables(&self) -> String {
        self.parts.iter().map(Part::table).collect()
    }

    /// For programs: each figure with its samples' count, percentiles and ratio to ours.
    pub fn json(&self, machine: Value) -> Value {
        let parts: Vec<Value> = self.parts.iter().map(Part::json).collect();
        json!({"machine": machine, "parts": parts})
    }

    /// Reads what `json` wrote. The samples come with it.
    pub fn parse(value: &Value) -> Option<Results> {
        let parts = value["parts"].as_array()?.iter().map(Part::parse);
        Some(Results {
            parts: parts.collect::<Option<_>>()?,
        })
    }
}

impl Part {
    /// Adds a sample.
    pub fn add(&mut self, figure: &str, unit: &str, subject: &str, value: f64) {
        self.add_with_tail(figure, unit, Some(90), subject, value);
    }

    /// Adds the only sample of a figure.
    pub fn set(&mut self, figure: &str, unit: &str, subject: &str, value: f64) {
        self.add_with_tail(figure, unit, None, subject, value);
    }

    pub fn add_with_tail(
        &mut self,
        figure: &str,
        unit: &str,
        tail: Option<u32>,
        subject: &str,
        value: f64,
    ) {
        let at = self.figures.iter().position(|f| f.name == figure);
        let at = at.unwrap_or_else(|| {
            self.figures.push(Figure {
                name: figure.into(),
                unit: unit.into(),
                tail,
                columns: Vec::new(),
            });
            self.figures.len() - 1
        });
        let columns = &mut self.figures[at].columns;
        match columns.iter_mut().find(|c| c.subject == subject) {
            Some(column) => column.samples.push(value),
            None => columns.push(Column {
                subject: subject.into(),
                samples: vec![value],
            }),
        }
    }

    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }

    /// The subjects of all rows; ours first, then in the order of their first sample.
    fn subjects(&self) -> Vec<&str> {
        let mut found = vec![OURS];
        for column in self.figures.iter().flat_map(|f| &f.columns) {
            if !found.contains(&column.subject.as_str()) {
                found.push(&column.subject);
            }
        }
        found
    }

    fn table(&self) -> String {
        let mut text = format!("\n### {}\n\n", self.title);
        let subjects = self.subjects();
        text += &header(&subjects);
        for figure in &self.figures {
            text += &row(figure, &subjects, true);
        }
        text
    }

    fn json(&self) -> Value {
        let figures: Vec<Value> = self.figures.iter().map(Figure::json).collect();
        json!({"part": self.key, "title": self.title, "figures": figures})
    }

    fn parse(value: &Value) -> Option<Part> {
        let figures = value["figures"].as_array()?.iter().map(Figure::parse);
        Some(Part {
            key: value["part"].as_str()?.into(),
            title: value["title"].as_str()?.into(),
            figures: figures.collect::<Option<_>>()?,
        })
    }
}

impl Figure {
    fn json(&self) -> Value {
        let column = |column: &Column| {
            json!({
                "subject": column.subject,
                "median": column.median(),
                "p90": column.percentile(90),
                "p99": column.percentile(99),
                "ratio": self.ratio(column),
                "samples": column.samples,
            })
        };
        let columns: Vec<Value> = self.columns.iter().map(column).collect();
        json!({"figure": self.name, "unit": self.unit, "tail": self.tail, "subjects": columns})
    }

    fn parse(value: &Value) -> Option<Figure> {
        let column = |value: &Value| {
            let samples = value["samples"].as_array()?.iter().map(Value::as_f64);
            Some(Column {
                subject: value["subject"].as_str()?.into(),
                samples: samples.collect::<Option<_>>()?,
            })
        };
        let columns = value["subjects"].as_array()?.iter().map(column);
        Some(Figure {
            name: value["figure"].as_str()?.into(),
            unit: value["unit"].as_str()?.into(),
            tail: value["tail"].as_u64().map(|tail| tail as u32),
            columns: columns.collect::<Option<_>>()?,
        })
    }
}

/// The first two lines of a table.
pub fn header(subjects: &[&str]) -> String {
    let rule = "|---".repeat(subjects.len() + 1);
    format!("| | {} |\n{rule}|\n", subjects.join(" | "))
}

/// A figure's line in a table.
pub fn row(figure: &Figure, subjects: &[&str], with_tail: bool) -> String {
    let cells: Vec<String> = subjects
        .iter()
        .map(|subject| figure.cell(subject, with_tail))
        .collect();
    let tail = match figure.tail {
        Some(tail) if with_tail => format!(" (p{tail})"),
        _ => String::new(),
    };
    let unit = match figure.unit.as_str() {
        "" => String::new(),
        unit => format!(", {unit}"),
    };
    format!("| {}{unit}{tail} | {} |\n", figure.name, cells.join(" | "))
}

/// Three digits that count; whole numbers as they are.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v.fract() == 0.0 => 0,
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}
