//! Reads settings with types, and keeps what is needed to explain a wrong one.
//!
//! A value comes from the environment, else from the user's file, else from the annotated defaults. Every
//! getter notes the key as known and the value as effective; what the user wrote and nobody asked for is an
//! unknown key, and the nearest known one is offered. Problems are collected, so that a person sees all of
//! them at once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use secrecy::SecretString;
use toml::{Table, Value};

/// First part of the name of every environment override; parts are joined by two underscores.
pub(super) const ENV_PREFIX: &str = "CONTEXT_INJECTOR__";

/// What is wrong with one setting, as a sentence that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the setting, or the environment variable's name.
    pub setting: String,
    /// The value (unless secret), what is allowed, what to do.
    pub text: String,
}

/// Environment overrides, keyed by their path in lower case.
#[derive(Debug, Default)]
pub(super) struct Environment {
    values: BTreeMap<Vec<String>, (String, String)>,
    used: RefCell<BTreeSet<Vec<String>>>,
}

impl Environment {
    /// Takes the overrides out of `vars`. `AMQP_URL` and `REDIS_URL` stand for their settings, and the longer
    /// names win over them.
    pub(super) fn new(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut values = BTreeMap::new();
        let mut short = Vec::new();
        for (name, value) in vars {
            match name.as_str() {
                "AMQP_URL" => short.push((vec!["amqp".to_owned(), "url".to_owned()], (name, value))),
                "REDIS_URL" => short.push((vec!["redis".to_owned(), "url".to_owned()], (name, value))),
                _ => {
                    if let Some(rest) = name.strip_prefix(ENV_PREFIX) {
                        let path = rest.split("__").map(str::to_lowercase).collect::<Vec<_>>();
                        values.insert(path, (name, value));
                    }
                }
            }
        }
        for (path, value) in short {
            values.entry(path).or_insert(value);
        }
        Self { values, used: RefCell::default() }
    }

    fn get(&self, path: &[&str]) -> Option<&str> {
        let key = path.iter().map(|part| part.to_lowercase().replace('-', "_")).collect::<Vec<_>>();
        let found = self.values.get(&key).map(|(_, value)| value.as_str());
        if found.is_some() {
            self.used.borrow_mut().insert(key);
        }
        found
    }

    /// Names that the environment adds below `section` (`bots`), beside those that `known` has.
    pub(super) fn names_below(&self, section: &str, known: &BTreeSet<String>) -> Vec<String> {
        let known = known.iter().map(|name| name.to_lowercase().replace('-', "_")).collect::<BTreeSet<_>>();
        let names = self.values.keys().filter(|path| path.len() == 3 && path[0] == section);
        names
            .map(|path| path[1].clone())
            .filter(|name| !known.contains(name))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Overrides that no setting asked for.
    pub(super) fn unused(&self) -> Vec<(String, Vec<String>)> {
        let used = self.used.borrow();
        let left = self.values.iter().filter(|(path, _)| !used.contains(*path));
        left.map(|(path, (name, _))| (name.clone(), path.clone())).collect()
    }
}

/// One table of the settings file, read key by key.
pub(super) struct Section<'a> {
    path: Vec<String>,
    user: Option<&'a Table>,
    defaults: &'a Table,
    environment: &'a Environment,
    problems: &'a RefCell<Vec<Problem>>,
    preferred: RefCell<Table>,
    known: RefCell<BTreeSet<String>>,
    effective: RefCell<Table>,
}

/// The word that stands for a secret wherever settings are shown.
pub(super) const REDACTED: &str = "(redacted)";

impl<'a> Section<'a> {
    pub(super) fn new(
        path: &[&str],
        user: Option<&'a Table>,
        defaults: &'a Table,
        environment: &'a Environment,
        problems: &'a RefCell<Vec<Problem>>,
    ) -> Self {
        let path = path.iter().map(|part| (*part).to_owned()).collect();
        let (preferred, known, effective) = (RefCell::default(), RefCell::default(), RefCell::default());
        Self { path, user, defaults, environment, problems, preferred, known, effective }
    }

    /// Gives `key` a default of its own in this section, because of what another setting says.
    pub(super) fn prefer(&self, key: &str, value: impl Into<Value>) {
        self.preferred.borrow_mut().insert(key.to_owned(), value.into());
    }

    /// Reports the keys that nobody asked for, and returns the effective, redacted table.
    pub(super) fn finish(self) -> Table {
        let known = self.known.into_inner();
        for key in self.user.into_iter().flat_map(Table::keys).filter(|key| !known.contains(*key)) {
            let name = [self.path.join("."), key.clone()].join(".");
            self.problems.borrow_mut().push(Problem { setting: name, text: unknown(key, known.iter()) });
        }
        self.effective.into_inner()
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.path.join("."))
    }

    /// Adds a problem with `key`.
    pub(super) fn problem(&self, key: &str, text: impl Into<String>) {
        self.problems.borrow_mut().push(Problem { setting: self.name(key), text: text.into() });
    }

    fn raw(&self, key: &str) -> Option<Value> {
        self.known.borrow_mut().insert(key.to_owned());
        let mut path = self.path.iter().map(String::as_str).collect::<Vec<_>>();
        path.push(key);
        if let Some(text) = self.environment.get(&path) {
            return Some(Value::String(text.to_owned()));
        }
        let given = self.user.and_then(|table| table.get(key)).cloned();
        given.or_else(|| self.preferred.borrow().get(key).or_else(|| self.defaults.get(key)).cloned())
    }

    /// Notes `value` as what is shown for `key`.
    pub(super) fn note(&self, key: &str, value: impl Into<Value>) {
        self.effective.borrow_mut().insert(key.to_owned(), value.into());
    }

    fn wrong(&self, key: &str, value: &Value, allowed: &str) {
        let shown = match value {
            Value::String(text) => format!("{text:?}"),
            other => other.to_string(),
        };
        self.problem(key, format!("{shown} is not {allowed}"));
    }

    /// A text; absent is the empty one.
    pub(super) fn text(&self, key: &str) -> String {
        let text = match self.raw(key) {
            None => return String::new(),
            Some(Value::String(text)) => text,
            Some(other) => {
                self.wrong(key, &other, "a text in quotes");
                String::new()
            }
        };
        self.note(key, text.clone());
        text
    }

    /// A text that must be there.
    pub(super) fn required(&self, key: &str, example: &str) -> String {
        let text = self.text(key);
        if text.is_empty() && !self.has_problem(key) {
            self.problem(key, format!("is missing; for example {key} = {example:?}"));
        }
        text
    }

    fn has_problem(&self, key: &str) -> bool {
        let name = self.name(key);
        self.problems.borrow().iter().any(|problem| problem.setting == name)
    }

    pub(super) fn boolean(&self, key: &str) -> bool {
        let value = self.raw(key);
        let found = match &value {
            Some(Value::Boolean(flag)) => Some(*flag),
            Some(Value::String(text)) => text.parse().ok(),
            _ => None,
        };
        match (found, value) {
            (Some(flag), _) => {
                self.note(key, flag);
                flag
            }
            (None, Some(value)) => {
                self.wrong(key, &value, "true or false");
                false
            }
            (None, None) => false,
        }
    }

    /// A whole number within `range`.
    pub(super) fn integer(&self, key: &str, range: RangeInclusive<u32>) -> u32 {
        let value = self.raw(key);
        let found = match &value {
            Some(Value::Integer(number)) => u32::try_from(*number).ok(),
            Some(Value::String(text)) => text.parse().ok(),
            _ => None,
        };
        match found.filter(|number| range.contains(number)) {
            Some(number) => {
                self.note(key, i64::from(number));
                number
            }
            None => {
                let allowed = format!("a whole number from {} to {}", range.start(), range.end());
                self.wrong(key, &value.unwrap_or_else(|| Value::String(String::new())), &allowed);
                *range.start()
            }
        }
    }

    /// A number of bytes: a whole number, or one with kB, MB or GB behind it.
    pub(super) fn bytes(&self, key: &str) -> u64 {
        let value = self.raw(key);
        let found = match &value {
            Some(Value::Integer(number)) => u64::try_from(*number).ok(),
            Some(Value::String(text)) => parse_bytes(text),
            _ => None,
        };
        match found.filter(|number| (1..=i64::MAX.unsigned_abs()).contains(number)) {
            Some(number) => {
                self.note(key, i64::try_from(number).unwrap_or(i64::MAX));
                number
            }
            None => {
                let value = value.unwrap_or_else(|| Value::String(String::new()));
                self.wrong(key, &value, "a number of bytes such as 1048576 or \"10GB\"");
                1
            }
        }
    }

    /// A duration within `range`.
    pub(super) fn duration(&self, key: &str, range: RangeInclusive<Duration>) -> Duration {
        let value = self.raw(key).unwrap_or_else(|| Value::String(String::new()));
        match value.as_str().and_then(parse_duration).filter(|duration| range.contains(duration)) {
            Some(duration) => {
                self.note(key, show_duration(duration));
                duration
            }
            None => {
                let (from, to) = (show_duration(*range.start()), show_duration(*range.end()));
                self.wrong(key, &value, &format!("a duration from {from} to {to}, such as \"5s\" or \"2m\""));
                *range.start()
            }
        }
    }

    /// One or more durations within `range`, none shorter than the one before it.
    pub(super) fn durations(&self, key: &str, range: RangeInclusive<Duration>) -> Vec<Duration> {
        let mut found = Vec::new();
        for text in self.texts(key) {
            match parse_duration(&text).filter(|duration| range.contains(duration)) {
                Some(duration) => found.push(duration),
                None => {
                    let (from, to) = (show_duration(*range.start()), show_duration(*range.end()));
                    self.problem(key, format!("{text:?} is not a duration from {from} to {to}"));
                }
            }
        }
        if found.is_empty() && !self.has_problem(key) {
            self.problem(key, "needs at least one duration, such as [\"5s\", \"30s\"]");
        }
        if !found.is_sorted() {
            self.problem(key, "must not become shorter: each wait is at least as long as the one before");
        }
        found
    }

    /// A list of texts; from the environment, separated by commas.
    pub(super) fn texts(&self, key: &str) -> Vec<String> {
        let list = match self.raw(key) {
            None => Vec::new(),
            Some(Value::String(text)) => {
                text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
            }
            Some(Value::Array(items)) if items.iter().all(Value::is_str) => {
                items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
            }
            Some(other) => {
                self.wrong(key, &other, "a list of texts such as [\"a\", \"b\"]");
                Vec::new()
            }
        };
        self.note(key, list.iter().cloned().map(Value::String).collect::<Vec<_>>());
        list
    }

    /// A table of texts, redacted when shown (headers hold credentials).
    pub(super) fn secret_map(&self, key: &str) -> BTreeMap<String, SecretString> {
        let map = match self.raw(key) {
            None => BTreeMap::new(),
            Some(Value::Table(table)) if table.values().all(Value::is_str) => table
                .into_iter()
                .filter_map(|(name, value)| Some((name, SecretString::from(value.as_str()?.to_owned()))))
                .collect(),
            Some(_) => {
                self.problem(key, "is not a table of texts such as { x-tenant = \"a\" }");
                BTreeMap::new()
            }
        };
        let shown = map.keys().map(|name| (name.clone(), Value::from(REDACTED))).collect::<Table>();
        self.note(key, shown);
        map
    }

    /// One of `choices`.
    pub(super) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> T {
        let text = self.text(key);
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, choice)) => *choice,
            None => {
                let names = choices.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>();
                self.wrong(key, &Value::String(text), &format!("one of {}", names.join(", ")));
                choices[0].1
            }
        }
    }

    /// A secret from `key` or from the file that `key_file` names; `None` where both are absent or empty.
    pub(super) fn secret(&self, key: &str) -> Option<SecretString> {
        let file_key = format!("{key}_file");
        let inline = match self.raw(key) {
            Some(Value::String(text)) => text,
            None => String::new(),
            Some(_) => {
                self.problem(key, "is not a text in quotes (the value is not shown)");
                return None;
            }
        };
        let file = self.text(&file_key);
        // The same source may not be named twice: nobody could say which one is meant.
        let inline_given = !inline.is_empty() && self.defaults.get(key).and_then(Value::as_str) != Some(&inline);
        match (inline_given || file.is_empty(), file.is_empty()) {
            (true, false) => {
                self.problem(key, format!("is set together with {file_key}; keep one of the two"));
                None
            }
            (true, true) if inline.is_empty() => None,
            (true, true) => {
                self.note(key, REDACTED);
                Some(SecretString::from(inline))
            }
            (false, _) => match std::fs::read_to_string(&file) {
                Ok(text) if !text.trim().is_empty() => Some(SecretString::from(text.trim().to_owned())),
                Ok(_) => {
                    self.problem(&file_key, format!("{file:?} is empty; it should hold the secret alone"));
                    None
                }
                Err(error) => {
                    self.problem(&file_key, format!("{file:?} cannot be read: {error}"));
                    None
                }
            },
        }
    }
}

/// The sentence for a key that is not known.
pub(super) fn unknown<'k>(key: &str, known: impl Iterator<Item = &'k String>) -> String {
    let nearest = known
        .map(|name| (strsim::damerau_levenshtein(key, name), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3);
    match nearest {
        Some((_, name)) => format!("is not a setting; did you mean {name}?"),
        None => "is not a setting; `context-injector config show` prints the known ones".to_owned(),
    }
}

/// Parses `250ms`, `5s`, `1h30m`, `30d`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0)?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let millis_per_unit = match &rest[digits..unit_end] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis_per_unit)?))?;
        rest = &rest[unit_end..];
    }
    Some(total)
}

/// The shortest spelling of a duration that `parse_duration` reads; whole milliseconds. Queues of a ladder
/// carry it in their names.
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        // 24h is how people write the last webhook rung; days begin at two.
        let enough = if unit == "d" { 2 * size } else { size };
        if millis >= enough && millis.is_multiple_of(size) {
            return format!("{}{unit}", millis / size);
        }
    }
    format!("{millis}ms")
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let factor = match text[digits..].trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_shown_alike() {
        for (text, millis) in
            [("250ms", 250), ("5s", 5_000), ("2m", 120_000), ("1h", 3_600_000), ("30d", 2_592_000_000)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5_400)));
        assert_eq!(show_duration(Duration::from_secs(86_400)), "24h");
        for text in ["", "5", "s", "5 s", "-5s", "5x", "99999999999999999999s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_bytes("10GB"), Some(10_000_000_000));
        assert_eq!(parse_bytes("512"), Some(512));
        assert_eq!(parse_bytes("10GiB"), None);
    }
}
