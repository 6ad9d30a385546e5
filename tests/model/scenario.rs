//! What is checked: which jobs there are, in which order they are queued, and how often which fault may strike.
//! Each kind of fault has a budget, so that the states are finite in number.

use std::fmt;
use std::time::Duration;

use context_injector::config::{Bot, Config};
use context_injector::pipeline::endings::Task;
use context_injector::pipeline::validate::{Source, validate};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::mutants::Mutant;

/// What a job does. Each has a value of its own, so that the state of the conversation tells who had an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// `increment` of `n` by ten to the power of the job's number.
    Adds,
    /// `append` of the job's name to `list`.
    Appends,
    /// A plain `set` of `k`.
    Sets,
    /// `compare_set` of `c` from `open`: the second writer opens and shuts it, so that the state may refuse the job.
    Takes,
}

/// What may go wrong, or happen beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A worker is killed.
    Crash,
    /// A worker loses its channel (or is stopped for a while) and works on, not knowing that it was overtaken.
    Overtaken,
    /// A request arrives, its answer does not.
    AnswerLost,
    /// A request that was given up arrives at any time later, or never.
    Late,
    /// A read shows an older state.
    Stale,
    /// The target fails until the repetitions in place are spent.
    Outage,
    /// Redis loses everything.
    Wiped,
    /// The conversation is cleared.
    Reset,
    /// Somebody else writes.
    Foreign,
    /// Many other jobs are applied, and the ledger has to let go what it had.
    Flood,
    /// An operator replays a dead letter.
    Replay,
}

pub const FAULTS: usize = 11;

/// One configuration of the model.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub bot: Bot,
    /// Each job's task as the intake makes it of a first delivery.
    pub tasks: Vec<Task>,
    pub does: Vec<Does>,
    /// Jobs in the order of the queue; one may be there twice.
    pub queue: Vec<u8>,
    pub budget: [u8; FAULTS],
    pub mutant: Option<Mutant>,
}

impl Scenario {
    /// `jobs` are queued in their order; `twice` is queued once more behind them.
    pub fn new(name: &'static str, jobs: &[Does], twice: Option<u8>, faults: &[(Fault, u8)]) -> Self {
        let bot = bot();
        let tasks = jobs.iter().enumerate().map(|(number, does)| task(&bot, number, *does)).collect();
        let mut budget = [0; FAULTS];
        for (fault, times) in faults {
            budget[*fault as usize] = *times;
        }
        let queue = (0..).take(jobs.len()).chain(twice).collect();
        Self { name, bot, tasks, does: jobs.to_vec(), queue, budget, mutant: None }
    }

    /// The same with a part left out.
    pub fn without(self, mutant: Mutant) -> Self {
        Self { mutant: Some(mutant), ..self }
    }

    pub fn ledger_key(&self) -> &str {
        &self.bot.ledger_key
    }
}

/// The clock of the model: a second for each write to the platform.
pub fn at(clock: u8) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(1_795_000_000 + u64::from(clock))
}

fn bot() -> Bot {
    let settings = "[bots.b]\nbase_url = \"https://b.example.com\"\nclient_id = \"id\"\nclient_secret = \"s\"";
    Config::parse(settings, []).unwrap().bots.remove("b").unwrap()
}

fn task(bot: &Bot, number: usize, does: Does) -> Task {
    let id = name(number);
    let (key, variable) = match does {
        Does::Adds => ("n", json!({"op": "increment", "by": 10_u64.pow(u32::try_from(number).unwrap())})),
        Does::Appends => ("list", json!({"op": "append", "value": id})),
        Does::Sets => ("k", json!({"value": id})),
        Does::Takes => ("c", json!({"op": "compare_set", "expected": "open", "value": id})),
    };
    let body = json!({"job_id": id, "conversation_id": "conv_1", "variables": {key: variable}}).to_string();
    let now = at(0);
    let (message_id, content_encoding) = (None, None);
    let source =
        Source { body: body.as_bytes(), message_id, content_encoding, published: Some(now), first_seen: now, now };
    let job = validate(bot, Duration::from_secs(900), &source).unwrap();
    Task { published: Some(now), ..Task::new(job, &bot.name, String::new()) }
}

/// The name of a job.
pub fn name(number: usize) -> String {
    format!("job-{number}")
}

/// The value that a job writes, where it writes its own name.
pub fn value(job: u8) -> Value {
    Value::from(name(usize::from(job)))
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        self.mutant.map_or(Ok(()), |mutant| write!(f, ", {mutant}"))
    }
}
