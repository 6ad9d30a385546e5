//! The picture: a bar for each peer's jobs a second and CPU per job, and the goals below.

use std::fmt::Write as _;

use crate::report::{Goal, Row, rounded};

const LINE: usize = 22;
const BAR_FROM: usize = 330;
const BAR_MOST: f64 = 420.0;

/// An SVG.
pub fn draw(rows: &[Row], goals: &[Goal]) -> String {
    let mut body = String::new();
    let mut y = LINE;
    for figure in ["jobs/s", "µs CPU/job"] {
        let value = |row: &Row| row.figures.iter().find(|(name, _)| *name == figure).map(|(_, value)| *value);
        let most = rows.iter().filter_map(value).fold(f64::MIN_POSITIVE, f64::max);
        text(&mut body, 10, y, figure, "bold");
        y += LINE;
        for (row, value) in rows.iter().filter_map(|row| Some((row, value(row)?))) {
            let (width, colour) = (BAR_MOST * value / most, if row.peer == "worker" { "#2a6f97" } else { "#a9b4bd" });
            let top = y - 12;
            text(&mut body, 10, y, &format!("{}: {}", row.scenario, row.peer), "normal");
            let _ =
                writeln!(body, r#"<rect x="{BAR_FROM}" y="{top}" width="{width:.1}" height="14" fill="{colour}"/>"#);
            text(&mut body, BAR_FROM + 430, y, &rounded(value), "normal");
            y += LINE;
        }
        y += LINE;
    }
    text(&mut body, 10, y, "goals", "bold");
    for goal in goals {
        y += LINE;
        text(&mut body, 10, y, goal.text().trim_matches(['|', ' ']), if goal.is_met() { "normal" } else { "bold" });
    }
    let height = y + LINE;
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="840" height="{height}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="white"/>
{body}</svg>
"#
    )
}

fn text(body: &mut String, x: usize, y: usize, text: &str, weight: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, r#"<text x="{x}" y="{y}" font-weight="{weight}">{text}</text>"#);
}
