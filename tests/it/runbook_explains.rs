//! The runbook explains every reason code and metric that there is, and none that there is not; its links lead
//! somewhere, and what it tells people to type can be typed.

use std::collections::BTreeSet;

use context_injector::pipeline::verdict::Reason;
use context_injector::relay::decision::Reason as Dead;

use crate::world::run_to_end;

const RUNBOOK: &str = include_str!("../../deploy/RUNBOOK.md");
const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yaml");

/// The text below a heading, up to the next one of the same or a higher level.
fn section(heading: &str) -> &'static str {
    let level = heading.split(' ').next().unwrap().len();
    let start = RUNBOOK.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("the runbook has no {heading:?}"));
    let text = &RUNBOOK[start + heading.len() + 2..];
    let ends = (1..=level).filter_map(|level| text.find(&format!("\n{} ", "#".repeat(level))));
    &text[..ends.min().unwrap_or(text.len())]
}

#[test]
fn every_reason_code_has_its_heading_with_meaning_check_and_remedy() {
    for reason in Reason::ALL {
        let text = section(&format!("### `{}`", reason.as_str()));
        for part in ["**Meaning.** ", "**Check.** ", "**Remedy.** "] {
            assert!(text.contains(part), "{}: no {part}", reason.as_str());
        }
    }
    let headings = section("## Reason codes").lines().filter_map(|line| line.strip_prefix("### "));
    let codes: Vec<_> = headings.map(|heading| heading.trim_matches('`')).collect();
    assert_eq!(codes, Reason::ALL.map(Reason::as_str), "in the order of the list, each once");
}

#[test]
fn every_metric_has_its_row_and_alerts_are_on_no_other() {
    let names = |text: &'static str| {
        let found = text.match_indices("context_injector_").map(|(at, _)| {
            let end = text[at..].find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(text.len() - at);
            &text[at..at + end]
        });
        found.filter(|name| *name != "context_injector_").collect::<BTreeSet<_>>()
    };
    let code = include_str!("../../src/metrics.rs").split("#[cfg(test)]").next().unwrap();
    let known = names(code);
    assert!(known.len() > 30, "{known:?}");
    let rows = section("## Metrics");
    for name in &known {
        assert!(rows.contains(&format!("\n| `{name}` |")), "{name} has no row");
    }
    for name in names(RUNBOOK).union(&names(ALERTS)) {
        assert!(known.contains(name.trim_end_matches("_bucket")), "runbook or alerts have {name}, the program has not");
    }
}

#[test]
fn every_alert_has_its_row_with_a_first_step() {
    let alerts = ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect::<Vec<_>>();
    let rows = section("## Alerts").lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let rows = rows.filter(|name| !["Alert", "---"].contains(name)).collect::<Vec<_>>();
    assert_eq!(alerts, rows);
    assert!(alerts.len() > 20, "{alerts:?}");
}

#[test]
fn every_reason_of_a_dead_webhook_has_its_row() {
    for reason in [Dead::RefusedByReceiver, Dead::AttemptsExhausted, Dead::NotAnEvent] {
        assert!(section("## Webhooks").contains(&format!("\n| `{}` |", reason.code())), "{}", reason.code());
    }
}

#[test]
fn every_link_within_the_runbook_leads_somewhere() {
    let headings = RUNBOOK.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| line.trim_start_matches('#').trim().replace('`', "").replace(' ', "-").to_lowercase();
    let anchors: BTreeSet<_> = headings.map(anchor).collect();
    let links: Vec<_> = RUNBOOK.split("](#").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    assert!(links.len() > 10, "{links:?}");
    for link in links {
        assert!(anchors.contains(link), "#{link}");
    }
}

/// The words of a command line; single quotes keep blanks.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// With `--help` behind it a command changes nothing, but a command or an option that there is not is refused.
#[tokio::test]
async fn every_command_can_be_typed() {
    let shown = RUNBOOK.split("```sh\n").skip(1).flat_map(|rest| rest.split("```").next().unwrap().lines());
    let shown = shown.filter_map(|line| line.strip_prefix("context-injector "));
    let named = RUNBOOK.split('`').filter(|span| !span.contains('\n'));
    let named = named.map(|span| span.strip_prefix("context-injector ").unwrap_or(span));
    let ours = ["audit ", "dead-letters ", "endpoints ", "topology ", "config ", "inject ", "schema "];
    let named = named.filter(|span| ours.iter().any(|start| span.starts_with(start)));
    let commands: BTreeSet<_> = shown.chain(named).map(|line| line.split(" #").next().unwrap().trim()).collect();
    assert!(commands.len() > 20, "{commands:?}");
    let mut faults = Vec::new();
    for command in commands {
        let mut words = words(command);
        words.push("--help".to_owned());
        let (status, output) = run_to_end(&words.iter().map(String::as_str).collect::<Vec<_>>(), None, &[]).await;
        if status != 0 || !output.contains("Usage: context-injector ") {
            faults.push(format!("{command}: {output}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
