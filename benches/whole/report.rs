//! What was measured: one table of figures, one of goals, as text, as JSON and as a picture.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::picture;

/// All figures.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    goals: Vec<Goal>,
}

/// The figures of one peer in one scenario, by name; the name has the unit.
#[derive(Debug)]
pub struct Row {
    pub scenario: String,
    pub peer: String,
    pub figures: Vec<(&'static str, f64)>,
}

/// What was wanted, and what there is.
#[derive(Debug)]
pub struct Goal {
    pub figure: String,
    pub wanted: Wanted,
    pub measured: f64,
}

#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

impl Wanted {
    fn is_met(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(limit) => measured >= limit,
            Self::AtMost(limit) => measured <= limit,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(limit) => format!("≥ {limit}"),
            Self::AtMost(limit) => format!("≤ {limit}"),
        }
    }
}

impl Report {
    pub fn row(&mut self, scenario: &str, peer: &str, figures: Vec<(&'static str, f64)>) {
        let row = Row { scenario: scenario.to_owned(), peer: peer.to_owned(), figures };
        eprintln!("  {}", row.text());
        self.rows.push(row);
    }

    pub fn goal(&mut self, figure: impl Into<String>, wanted: Wanted, measured: f64) {
        let goal = Goal { figure: figure.into(), wanted, measured };
        eprintln!("  {}", goal.text());
        self.goals.push(goal);
    }

    /// Prints both tables, and writes `results.json` and `results.svg` into the directory.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        println!("\n| Scenario | Peer | Figures |\n| --- | --- | --- |");
        for row in &self.rows {
            println!("{}", row.text());
        }
        println!("\n| Figure | Goal | Measured | |\n| --- | --- | --- | --- |");
        for goal in &self.goals {
            println!("{}", goal.text());
        }
        let (json, svg) = (directory.join("results.json"), directory.join("results.svg"));
        std::fs::write(&json, serde_json::to_string_pretty(&self.to_json())?)?;
        std::fs::write(&svg, picture::draw(&self.rows, &self.goals))?;
        println!("\nwritten to {} and {}", json.display(), svg.display());
        Ok(())
    }

    fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let figures = row.figures.iter().map(|(name, value)| ((*name).to_owned(), json!(value)));
            json!({"scenario": row.scenario, "peer": row.peer, "figures": figures.collect::<Map<_, _>>()})
        });
        let goals = self.goals.iter().map(|goal| {
            json!({"figure": goal.figure, "goal": goal.wanted.text(), "measured": goal.measured, "met": goal.is_met()})
        });
        json!({"figures": rows.collect::<Value>(), "goals": goals.collect::<Value>()})
    }
}

impl Row {
    fn text(&self) -> String {
        let figures = self.figures.iter().map(|(name, value)| format!("{} {name}", rounded(*value)));
        format!("| {} | {} | {} |", self.scenario, self.peer, figures.collect::<Vec<_>>().join(", "))
    }
}

impl Goal {
    pub fn is_met(&self) -> bool {
        self.wanted.is_met(self.measured)
    }

    pub fn text(&self) -> String {
        let met = if self.is_met() { "met" } else { "missed" };
        format!("| {} | {} | {} | {met} |", self.figure, self.wanted.text(), rounded(self.measured))
    }
}

/// Three digits that count.
pub fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
