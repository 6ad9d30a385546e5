//! The committed input: what is published, and what each message must lead to.

use std::path::Path;

use anyhow::{Context as _, ensure};
use rust_decimal::Decimal;
use serde_json::Value;

/// What the template of the reference example must become.
const REFERENCE_TEXT: &str = "Welcome premium user. Your cart contains 149.99.";

/// One message and what is known about it beforehand.
#[derive(Debug, Clone)]
pub struct Message {
    /// The body as it is published.
    pub body: Vec<u8>,
    /// The property `message-id`.
    pub message_id: Option<String>,
    /// What it asks for; `None` for a body that is wrong in itself.
    pub job: Option<Job>,
    /// The code with which it must be refused; `None`: it must be applied.
    pub refused_with: Option<String>,
}

/// What a job asks for, as far as the check looks at it.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// 0 for what a producer published, 1 for its first replay.
    pub generation: u64,
    /// Its conversation.
    pub conversation: String,
    /// Its variables.
    pub variables: Vec<Variable>,
}

/// One variable of a job.
#[derive(Debug, Clone)]
pub struct Variable {
    /// Its key.
    pub key: String,
    /// Its scope by name.
    pub scope: String,
    /// What happens to it.
    pub effect: Effect,
}

/// What happens to a variable.
#[derive(Debug, Clone)]
pub enum Effect {
    /// It becomes this.
    Set(Value),
    /// It becomes this, if it is not there.
    SetIfAbsent(Value),
    /// It becomes what a template says; the check does not render.
    Rendered,
    /// This is added to it.
    Add(Decimal),
    /// This element is added at its end.
    Append(Value),
}

/// Everything that the demo publishes.
#[derive(Debug)]
pub struct Input {
    /// The reference example.
    pub reference: Message,
    /// The many jobs, some of them twice.
    pub jobs: Vec<Message>,
    /// What is wrong in itself.
    pub malformed: Vec<Message>,
    /// A job that is refused and then repaired.
    pub too_long: Message,
    /// The merge patch that repairs it.
    pub repair: Value,
}

impl Input {
    /// Reads the files of a directory.
    ///
    /// # Errors
    /// A file that is not there, or holds something else: named with its line.
    pub fn read(directory: &Path) -> anyhow::Result<Input> {
        let text = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "cannot read {}; run the demo in the project's directory or name the input with --input",
                    path.display()
                )
            })
        };
        let job = |name: &str, text: &str| message(text).with_context(|| format!("{name} holds no job of the demo"));
        let mut reference = job("reference.json", &text("reference.json")?)?;
        for variable in reference.job.iter_mut().flat_map(|job| &mut job.variables) {
            if matches!(variable.effect, Effect::Rendered) {
                variable.effect = Effect::Set(REFERENCE_TEXT.into());
            }
        }
        let mut jobs = Vec::new();
        for (at, line) in text("jobs.jsonl")?.lines().enumerate() {
            jobs.push(job(&format!("jobs.jsonl, line {}", at + 1), line)?);
        }
        ensure!(!jobs.is_empty(), "jobs.jsonl is empty");
        let malformed: Vec<Value> = serde_json::from_str(&text("malformed.json")?).context("malformed.json")?;
        let malformed = malformed.iter().map(malformed_message).collect::<Option<Vec<_>>>();
        let malformed = malformed.context("malformed.json: each entry has a name, a reason and a body")?;
        let mut too_long = job("too-long.json", &text("too-long.json")?)?;
        too_long.refused_with = Some("value_too_large".to_owned());
        let repair = serde_json::from_str(&text("repair.json")?).context("repair.json")?;
        Ok(Input { reference, jobs, malformed, too_long, repair })
    }

    /// The repaired job as it must be applied.
    ///
    /// # Errors
    /// A repair after which it is no job any more.
    pub fn repaired(&self) -> anyhow::Result<Message> {
        let mut body: Value = serde_json::from_slice(&self.too_long.body)?;
        merge(&mut body, &self.repair);
        let mut repaired = message(&body.to_string()).context("repair.json")?;
        if let Some(job) = &mut repaired.job {
            job.generation = 1;
        }
        Ok(repaired)
    }
}

fn malformed_message(entry: &Value) -> Option<Message> {
    Some(Message {
        body: entry["body"].as_str()?.as_bytes().to_vec(),
        message_id: entry["message_id"].as_str().map(str::to_owned),
        job: None,
        refused_with: Some(entry["reason"].as_str()?.to_owned()),
    })
}

fn message(text: &str) -> anyhow::Result<Message> {
    let body: Value = serde_json::from_str(text)?;
    let named = |name: &str| body[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
    let variables = body["variables"].as_object().context("no variables")?;
    let variables = variables.iter().map(|(key, wire)| variable(key, wire)).collect::<anyhow::Result<Vec<_>>>()?;
    let job = Job { id: named("job_id")?, generation: 0, conversation: named("conversation_id")?, variables };
    Ok(Message { body: text.trim().as_bytes().to_vec(), message_id: None, job: Some(job), refused_with: None })
}

fn variable(key: &str, wire: &Value) -> anyhow::Result<Variable> {
    let scope = wire["scope"].as_str().unwrap_or("conversation").to_owned();
    let effect = match wire["op"].as_str().unwrap_or("set") {
        "set" if wire["template"].is_string() => Effect::Rendered,
        "set_if_absent" => Effect::SetIfAbsent(wire["value"].clone()),
        "set" => Effect::Set(wire["value"].clone()),
        "append" => Effect::Append(wire["value"].clone()),
        "increment" if wire["by"].is_null() => Effect::Add(Decimal::ONE),
        "increment" => Effect::Add(decimal(&wire["by"]).with_context(|| format!("{key}: by is no number"))?),
        other => anyhow::bail!("{key}: the demo's check does not know the operation {other}"),
    };
    Ok(Variable { key: key.to_owned(), scope, effect })
}

/// A number, or a text that is one, exactly.
pub(super) fn decimal(value: &Value) -> Option<Decimal> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    text.parse().or_else(|_| Decimal::from_scientific(&text)).ok()
}

/// JSON Merge Patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Some(target) = target.as_object_mut() else { return };
    for (name, value) in patch {
        match value {
            Value::Null => drop(target.remove(name)),
            value => merge(target.entry(name.as_str()).or_insert(Value::Null), value),
        }
    }
}
