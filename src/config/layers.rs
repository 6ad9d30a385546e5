//! The layers of settings on each other: the user's file over the annotated defaults, the environment over both. Gives
//! each section its [`Section`], and reports what no section asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use toml::Table;

use super::reader::{self, ENV_PREFIX, Environment, Problem, Section};

/// Names that `context.jobs.<bot>` and `context.webhooks.<endpoint>` would share with our own queues.
const RESERVED_NAMES: [&str; 4] = ["dead", "quarantine", "unroutable", "retry"];

/// What settings are read from.
pub(super) struct Layers<'a> {
    pub(super) user: &'a Table,
    pub(super) defaults: &'a Table,
    pub(super) environment: &'a Environment,
    pub(super) problems: &'a RefCell<Vec<Problem>>,
}

impl Layers<'_> {
    fn table<'t>(&self, parent: &'t Table, path: &[&str]) -> Option<&'t Table> {
        let mut table = parent;
        for part in path {
            table = match table.get(*part) {
                None => return None,
                Some(toml::Value::Table(inner)) => inner,
                Some(_) => {
                    let setting = path.join(".");
                    let text = format!("is not a section; write it as [{setting}]");
                    self.problems.borrow_mut().push(Problem { setting, text });
                    return None;
                }
            };
        }
        Some(table)
    }

    fn read<T>(&self, path: &[&str], default: &[&str], read: impl Fn(&Section<'_>) -> T) -> (T, Table) {
        let empty = Table::new();
        let defaults = self.table(self.defaults, default).unwrap_or(&empty);
        let user = self.table(self.user, path);
        let section = Section::new(path, user, defaults, self.environment, self.problems);
        let value = read(&section);
        (value, section.finish())
    }

    pub(super) fn section<T>(&self, effective: &mut Table, name: &str, read: impl Fn(&Section<'_>) -> T) -> T {
        let (value, table) = self.read(&[name], &[name], read);
        effective.insert(name.to_owned(), toml::Value::Table(table));
        value
    }

    pub(super) fn named<T>(
        &self,
        effective: &mut Table,
        kind: &str,
        default: &str,
        read: impl Fn(&str, &Section<'_>) -> T,
    ) -> BTreeMap<String, T> {
        let mut names =
            self.table(self.user, &[kind]).into_iter().flat_map(Table::keys).cloned().collect::<BTreeSet<_>>();
        names.extend(self.environment.names_below(kind, &names));
        let mut found = BTreeMap::new();
        let mut shown = Table::new();
        for name in names {
            if let Err(text) = check_name(&name) {
                self.problems.borrow_mut().push(Problem { setting: format!("{kind}.{name}"), text });
            }
            let (value, table) = self.read(&[kind, &name], &[kind, default], |section| read(&name, section));
            shown.insert(name.clone(), toml::Value::Table(table));
            found.insert(name, value);
        }
        effective.insert(kind.to_owned(), toml::Value::Table(shown));
        found
    }

    pub(super) fn report_unknown(&self) {
        let known = self.defaults.keys().cloned().collect::<BTreeSet<_>>();
        let mut problems = self.problems.borrow_mut();
        for key in self.user.keys().filter(|key| !known.contains(*key)) {
            problems.push(Problem { setting: key.clone(), text: reader::unknown(key, known.iter()) });
        }
        for (name, path) in self.environment.unused() {
            let (section, key) = (path.first().map(String::as_str).unwrap_or_default(), path.last());
            let table = match (section, self.defaults.get(section)) {
                ("bots", _) => self.table(self.defaults, &["bots", "default"]),
                ("sources", _) => self.table(self.defaults, &["sources", "example"]),
                ("endpoints", _) => self.table(self.defaults, &["endpoints", "example"]),
                (_, Some(toml::Value::Table(table))) => Some(table),
                _ => None,
            };
            let known = table.into_iter().flat_map(Table::keys).map(|key| key.to_owned()).collect::<Vec<_>>();
            let mut text = reader::unknown(key.map(String::as_str).unwrap_or_default(), known.iter());
            if path.len() < 2 {
                text = format!("is not a setting; write {ENV_PREFIX}SECTION__KEY");
            }
            problems.push(Problem { setting: name, text });
        }
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        return Err("a name has 1 to 64 letters, digits, \"-\" or \"_\"".to_owned());
    }
    if RESERVED_NAMES.contains(&name) {
        return Err(format!("the name {name} is taken by one of our own queues; choose another"));
    }
    Ok(())
}
