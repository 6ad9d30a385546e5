//! What a job may ask of `cognigy-v2`. Pure.
//!
//! The vendor says of neither API how what is sent meets what is there (merge or replace, how deep, what `null` does),
//! so more than plain values needs the declaration of who has tried it: the bot's setting `merge_semantics`. The
//! context of a session cannot be read, a profile can.
//!
//! | Operation | scope `session`, `conversation` | scope `user` |
//! | --- | --- | --- |
//! | `set` of a value | yes; of an object not with `deep` | the same |
//! | `set` to `null`, `delete` | `shallow` or `deep` | the same |
//! | `set` by a template | `shallow`, placeholders `{{user.…}}` only | the same |
//! | `set_if_absent`, `compare_set`, `increment`, `append`, `add_to_set`, `remove`, `merge_patch`, `max`, `min` | no: cannot be read | `shallow` |
//! | `templates` of the event | `shallow`, placeholders `{{user.…}}` only | the same |
//! | `sequence`, `base_version`, `on_conflict` other than `overwrite` | no: there are no versions | no |
//!
//! Scope `global` does not exist. With `deep` an object in a `set` would be merged instead of set, and so would the
//! record of applied jobs, hence the smaller set of operations. A job that reads the profile cannot delete from the
//! context as well: what a read does not show counts as absent, and a read shows nothing of the context.

use serde_json::Value;

use crate::config::{Bot, MergeSemantics};
use crate::job::{Job, OnConflict, Operand, Operation, Scope, Variable};
use crate::pipeline::templates::Template;

/// Whether a job asks for no more than the dialect and the bot's declaration of it allow.
///
/// # Errors
/// The sentence that says what is not possible, and which setting would declare it.
pub(in crate::target) fn supports(bot: &Bot, job: &Job) -> Result<(), String> {
    let versions = |what: &str| Err(format!("the dialect cognigy-v2 has no versions, so {what} cannot be kept"));
    if job.base_version.is_some() {
        return versions("base_version");
    }
    if job.sequence.is_some() {
        return versions("sequence");
    }
    if job.on_conflict != OnConflict::Overwrite {
        return versions("on_conflict other than overwrite");
    }
    for variable in &job.variables {
        possible(bot.merge_semantics, variable)?;
    }
    for (name, template) in &job.templates {
        renders(bot.merge_semantics, name, template)?;
    }
    let in_context = |variable: &&Variable| variable.name.scope != Scope::User && is_removal(&variable.operation);
    match job.variables.iter().find(in_context) {
        Some(variable) if job.needs_values() => Err(format!(
            "variable {} cannot be deleted from a context, which cannot be read, by a job that reads the profile; send \
             two jobs",
            variable.name
        )),
        _ => Ok(()),
    }
}

fn possible(semantics: MergeSemantics, variable: &Variable) -> Result<(), String> {
    let (name, operation) = (&variable.name, &variable.operation);
    if name.scope == Scope::Global {
        return Err(format!("the dialect cognigy-v2 has no scope global (variable {name})"));
    }
    if is_removal(operation) {
        return match semantics {
            MergeSemantics::Shallow | MergeSemantics::Deep => Ok(()),
            MergeSemantics::Undeclared => Err(format!(
                "variable {name} cannot be deleted, since the vendor does not say what null does; if null removes a key \
                 on this installation, declare it with merge_semantics = \"shallow\" (or \"deep\")"
            )),
        };
    }
    match operation {
        Operation::Set(Operand::Value(Value::Object(_))) if semantics == MergeSemantics::Deep => Err(format!(
            "variable {name} cannot be set to an object: with merge_semantics = \"deep\" it would be merged into the one \
             that is there"
        )),
        Operation::Set(Operand::Value(_)) => Ok(()),
        Operation::Set(Operand::Template(template)) => renders(semantics, &name.to_string(), template),
        other if name.scope != Scope::User => Err(format!(
            "{} of variable {name} needs the value that is there, and a context cannot be read; in scope user it is \
             possible with merge_semantics = \"shallow\"",
            other.name()
        )),
        other if semantics != MergeSemantics::Shallow => Err(format!(
            "{} of variable {name} needs to know how a profile is merged, which the vendor does not say; if keys that are \
             not named stay and those that are are replaced whole, declare it with merge_semantics = \"shallow\"",
            other.name()
        )),
        other => other.template().map_or(Ok(()), |template| renders(semantics, &name.to_string(), template)),
    }
}

fn renders(semantics: MergeSemantics, name: &str, template: &Template) -> Result<(), String> {
    if semantics != MergeSemantics::Shallow {
        return Err(format!(
            "the template of {name} is rendered from the profile, whose merging the vendor does not say; declare it \
             with merge_semantics = \"shallow\""
        ));
    }
    let of_user = |path: &str| path.strip_prefix("user.").is_some_and(|rest| !rest.is_empty());
    match template.paths().find(|path| !of_user(path)) {
        None => Ok(()),
        Some(path) => {
            let path = path.chars().take(128).collect::<String>();
            Err(format!(
                "the template of {name} has {{{{{path}}}}}, which may be in the context, and a context cannot be read; \
                 only {{{{user.…}}}} can be resolved"
            ))
        }
    }
}

fn is_removal(operation: &Operation) -> bool {
    matches!(operation, Operation::Delete | Operation::Set(Operand::Value(Value::Null)))
}

/// How many of the first jobs may share one write: those that go to the same place, and read the profile all or
/// none. A job for both places stands alone, so that only it can be half done.
pub(in crate::target) fn together<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> usize {
    let mut places = jobs.into_iter().map(|job| {
        let reads = job.needs_values();
        let is_users = |variable: &Variable| variable.name.scope == Scope::User;
        // What reads the profile leaves its record there.
        let profile = reads || job.variables.iter().any(is_users);
        (job.variables.iter().any(|variable| !is_users(variable)), profile, reads)
    });
    match places.next() {
        None => 0,
        Some((true, true, _)) => 1,
        Some(first) => 1 + places.take_while(|place| *place == first).count(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::config::Config;
    use crate::pipeline::validate::{Source, validate};

    fn bot(semantics: &str) -> Bot {
        let text = format!(
            "[bots.b]\ndialect = \"cognigy-v2\"\nbase_url = \"https://bot.example.com\"\napi_key = \"k\"\n\
             merge_semantics = \"{semantics}\""
        );
        Config::parse(&text, []).unwrap().bots.remove("b").unwrap()
    }

    fn job(more: Value) -> Job {
        let mut body = json!({"job_id": "j", "conversation_id": "conv_1"});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let (body, now) = (body.to_string(), Timestamp::UNIX_EPOCH);
        let (message_id, content_encoding, published) = (None, None, None);
        let source = Source { body: body.as_bytes(), message_id, content_encoding, published, first_seen: now, now };
        validate(&bot("undeclared"), Duration::from_secs(60), &source).unwrap()
    }

    fn variable(variable: Value) -> Job {
        job(json!({"variables": {"k": variable}}))
    }

    /// The table of the module, row by row: undeclared, shallow, deep, in the context and in the profile.
    #[test]
    fn each_operation_is_possible_where_its_row_says() {
        let (never, always, shallow, declared) = ([false; 3], [true; 3], [false, true, false], [false, true, true]);
        let not_deep = [true, true, false];
        let rows = [
            (json!({"value": 1}), always, always),
            (json!({"value": [1]}), always, always),
            (json!({"value": {"a": 1}}), not_deep, not_deep),
            (json!({"value": null}), declared, declared),
            (json!({"op": "delete"}), declared, declared),
            (json!({"template": "{{user.name}}"}), shallow, shallow),
            (json!({"template": "no placeholder"}), shallow, shallow),
            (json!({"template": "{{name}}"}), never, never),
            (json!({"template": "{{user}} {{user.}}"}), never, never),
            (json!({"template": "{{user.a}} {{session.b}}"}), never, never),
            (json!({"op": "set_if_absent", "value": 1}), never, shallow),
            (json!({"op": "set_if_absent", "template": "{{name}}"}), never, never),
            (json!({"op": "compare_set", "expected": 1, "value": 2}), never, shallow),
            (json!({"op": "increment"}), never, shallow),
            (json!({"op": "append", "value": 1}), never, shallow),
            (json!({"op": "add_to_set", "value": 1}), never, shallow),
            (json!({"op": "remove", "value": 1}), never, shallow),
            (json!({"op": "merge_patch", "value": {}}), never, shallow),
            (json!({"op": "max", "value": 1}), never, shallow),
            (json!({"op": "min", "value": 1}), never, shallow),
        ];
        for (at, semantics) in ["undeclared", "shallow", "deep"].into_iter().enumerate() {
            let bot = bot(semantics);
            for (operation, in_context, in_profile) in &rows {
                for (scope, expected) in [("session", in_context), ("conversation", in_context), ("user", in_profile)] {
                    let mut operation = operation.clone();
                    operation["scope"] = json!(scope);
                    let result = supports(&bot, &variable(operation.clone()));
                    assert_eq!(result.is_ok(), expected[at], "{semantics}: {operation}: {result:?}");
                    if let Err(text) = result
                        && !text.contains("user.…")
                    {
                        assert!(text.contains("merge_semantics"), "the setting is named: {text}");
                    }
                }
                let mut operation = operation.clone();
                operation["scope"] = json!("global");
                assert!(supports(&bot, &variable(operation)).is_err());
            }
        }
    }

    #[test]
    fn what_needs_versions_is_never_possible() {
        let bot = bot("shallow");
        let options = [("base_version", json!(1)), ("sequence", json!(1)), ("on_conflict", json!("fail"))];
        for (name, value) in options {
            let mut body = json!({"variables": {"k": {"value": 1}}});
            body[name] = value;
            let text = supports(&bot, &job(body)).unwrap_err();
            assert!(text.contains("no versions") && text.contains(name), "{text}");
        }
        let templates = |text: &str| supports(&bot, &job(json!({"templates": {"note": text}})));
        assert!(templates("{{user.tier}}").is_ok() && templates("{{tier}}").is_err());
    }

    #[test]
    fn a_job_that_reads_the_profile_deletes_nothing_from_the_context() {
        let bot = bot("shallow");
        let with = |other: Value| supports(&bot, &job(json!({"variables": {"n": {"op": "delete"}, "k": other}})));
        assert!(with(json!({"value": 1, "scope": "user"})).is_ok());
        let text = with(json!({"op": "increment", "scope": "user"})).unwrap_err();
        assert!(text.contains("send two jobs"), "{text}");
    }

    #[test]
    fn jobs_for_one_place_go_together_and_one_for_both_goes_alone() {
        let context = variable(json!({"value": 1}));
        let profile = variable(json!({"value": 1, "scope": "user"}));
        let reading = variable(json!({"op": "increment", "scope": "user"}));
        let both = job(json!({"variables": {"a": {"value": 1}, "b": {"value": 1, "scope": "user"}}}));
        let rendered = variable(json!({"template": "{{user.a}}"}));
        for (jobs, expected) in [
            (vec![], 0),
            (vec![&context, &context, &profile], 2),
            (vec![&profile, &profile, &reading], 2),
            (vec![&reading, &reading, &context], 2),
            (vec![&both, &both], 1),
            (vec![&rendered, &rendered], 1),
            (vec![&context, &both], 1),
        ] {
            assert_eq!(together(jobs.iter().copied()), expected, "{jobs:?}");
        }
    }
}
