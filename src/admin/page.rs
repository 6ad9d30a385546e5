//! The status page: what `/readyz` and `/metrics` say, for a person with a browser.

use std::fmt::Write as _;

use super::health::Report;

/// The page. Only counters and gauges are shown; histograms are for Prometheus.
pub(super) fn render(report: &Report, metrics: &str) -> String {
    let ready = if report.is_ready() { "ready" } else { "not ready" };
    let mut rows = String::new();
    for (part, condition) in &report.conditions {
        let (state, reason) = condition.describe();
        // Writing to a string cannot fail.
        let _ = write!(
            rows,
            "<tr><th>{}</th><td class={state}>{}</td><td>{}</td></tr>",
            escape(part),
            state.replace('_', " "),
            escape(reason.unwrap_or_default())
        );
    }
    let mut numbers = String::new();
    for line in metrics.lines().filter(|line| is_plain(line)) {
        if let Some((series, value)) = line.rsplit_once(' ') {
            let series = series.trim_start_matches("context_injector_");
            let _ = write!(numbers, "<tr><td>{}</td><td class=number>{}</td></tr>", escape(series), escape(value));
        }
    }
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5>\
         <meta name=viewport content=\"width=device-width\"><title>context-injector: {ready}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}\
         table{{border-collapse:collapse;width:100%}}th,td{{text-align:left;padding:.25rem .75rem;\
         border-bottom:1px solid #ddd;overflow-wrap:anywhere}}.number{{text-align:right;font-variant-numeric:tabular-nums}}\
         .ready{{color:#060}}.degraded{{color:#850}}.not_ready{{color:#a00}}</style>\
         <h1>context-injector {} is {ready}</h1><table>{rows}</table>\
         <p><a href=livez>/livez</a> · <a href=readyz>/readyz</a> · <a href=metrics>/metrics</a></p>\
         <table>{numbers}</table></html>",
        env!("CARGO_PKG_VERSION")
    )
}

fn is_plain(line: &str) -> bool {
    let name = line.split(['{', ' ']).next().unwrap_or_default();
    !line.starts_with('#') && !["_bucket", "_sum", "_count"].iter().any(|end| name.ends_with(end)) && !name.is_empty()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
