//! How the result of `audit verify` is told.

use std::io::{self, Write};

use super::verify::{Fault, Report, WriterReport};
use crate::cli::output::printable;

/// Writers that a person sees, beside those that have faults.
const ROWS: usize = 50;

/// For people. `place` is what a place is called: `offset` or `line`.
pub(super) fn print(out: &mut impl Write, report: &Report, place: &str) -> io::Result<()> {
    let Some(begins_at) = report.begins_at else { return writeln!(out, "There is nothing to verify.") };
    writeln!(out, "{} read, from {place} {begins_at} on; {} writer(s).", report.read, report.writers.len())?;
    for writer in report.writers.iter().rev().take(ROWS).rev() {
        print_writer(out, writer)?;
    }
    if report.writers.len() > ROWS {
        writeln!(out, "  … and {} older writers (--json)", report.writers.len() - ROWS)?;
    }
    if !report.signatures_checked {
        writeln!(out, "Signatures of checkpoints were not checked: say --public-key FILE.")?;
    }
    for fault in &report.faults {
        print_fault(out, fault, place)?;
    }
    match report.fault_count {
        0 => writeln!(out, "No fault."),
        1 => writeln!(out, "1 fault."),
        count => writeln!(out, "{count} faults."),
    }
}

fn print_writer(out: &mut impl Write, writer: &WriterReport) -> io::Result<()> {
    write!(out, "  {}  events {} to {}", printable(&writer.writer), writer.first, writer.last)?;
    if writer.first > 1 {
        write!(out, " (older ones are no longer kept, or not in this file)")?;
    }
    if writer.repeats > 0 {
        write!(out, ", {} came again", writer.repeats)?;
    }
    match (writer.closed, writer.covered) {
        (true, _) => writeln!(out, "; ended, signed to the end"),
        (false, 0) => writeln!(out, "; not signed"),
        (false, covered) => {
            writeln!(
                out,
                "; signed up to {covered}, open: {} after it. It runs, or was killed, or cut off",
                writer.last.saturating_sub(covered)
            )
        }
    }
}

fn print_fault(out: &mut impl Write, fault: &Fault, place: &str) -> io::Result<()> {
    write!(out, "FAULT ")?;
    if let Some(at) = fault.place {
        write!(out, "at {place} {at}, ")?;
    }
    if let Some(writer) = &fault.writer {
        write!(out, "writer {}, ", printable(writer))?;
    }
    if let Some(seq) = fault.seq {
        write!(out, "event {seq}, ")?;
    }
    if let Some(id) = &fault.id {
        write!(out, "id {}, ", printable(id))?;
    }
    writeln!(out, "{}", fault.text)
}
