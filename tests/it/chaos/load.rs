//! What is published, all of it drawn from the seed: jobs of every kind that matters, some of them twice.
//!
//! Jobs are numbered in the order of their first publication, and what a job writes is its number, so that the
//! target's history shows whose effect is where.
//!
//! | key | written by | how |
//! | --- | --- | --- |
//! | `all` | jobs and the foreign writer | a list; a job appends its number |
//! | `n` | jobs and the foreign writer | a sum |
//! | `s` | jobs that are recorded (they have an increment beside it) | set to the number |
//! | `p` | jobs that only set | set to the number |
//! | `g` | jobs, up to [`BOUND`]; the foreign writer sets it back | counts |
//! | `word` | nobody: it is text, so that an increment of it is refused | |
//!
//! Jobs that only set are no part of the record with `ledger = "auto"`, and the README says what that means for a
//! repeat that comes late. So they are sent twice only at once, but for the bot with `ledger = "always"`.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// The bots: the name tells the setting `ledger`, but for the first, whose name every test's bot has.
pub const BOTS: [&str; 2] = [crate::world::BOT, "always"];
/// `g` goes no further.
pub const BOUND: u64 = 20;
/// Conversations with a long history, of each bot; they get two jobs of five.
const HOT: usize = 8;
/// Jobs of each other conversation, about.
const JOBS_OF_COLD: usize = 60;
/// Jobs of a hot conversation at most, so that its list stays below the limit of a value.
const JOBS_OF_HOT: usize = 1_000;

/// A job and what must come of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub id: String,
    pub bot: &'static str,
    pub conversation: String,
    pub kind: Kind,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Adds to `n`.
    Increment(u64),
    /// Appends its number to `all`.
    Append,
    /// Both, and sets `s`.
    Mixed(u64),
    /// Sets `p` and nothing else.
    Plain,
    /// Counts `g` and appends, or is refused at the bound.
    Bounded,
    /// Appends, and is refused because of `word`.
    Hopeless,
    /// Is refused for what it is.
    Malformed,
}

impl Job {
    /// What it adds to `n`.
    pub fn adds(&self) -> u64 {
        match self.kind {
            Kind::Increment(by) | Kind::Mixed(by) => by,
            Kind::Append | Kind::Plain | Kind::Bounded | Kind::Hopeless | Kind::Malformed => 0,
        }
    }

    /// Whether it appends its number.
    pub fn appends(&self) -> bool {
        matches!(self.kind, Kind::Append | Kind::Mixed(_) | Kind::Bounded | Kind::Hopeless)
    }

    /// The key that it sets to its number.
    pub fn sets(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Mixed(_) => Some("s"),
            Kind::Plain => Some("p"),
            Kind::Increment(_) | Kind::Append | Kind::Bounded | Kind::Hopeless | Kind::Malformed => None,
        }
    }

    /// Its message; `number` is its place in the order of publication.
    pub fn body(&self, number: usize) -> Value {
        let append = json!({"op": "append", "value": number});
        let variables = match self.kind {
            Kind::Increment(by) => json!({"n": {"op": "increment", "by": by}}),
            Kind::Append => json!({"all": append}),
            Kind::Mixed(by) => json!({"n": {"op": "increment", "by": by}, "all": append, "s": {"value": number}}),
            Kind::Plain => json!({"p": {"value": number}}),
            Kind::Bounded => json!({"g": {"op": "increment", "max": BOUND}, "all": append}),
            Kind::Hopeless => json!({"all": append, "word": {"op": "increment"}}),
            Kind::Malformed => json!({"all": {"op": "no_such_operation", "value": number}}),
        };
        json!({"job_id": self.id, "conversation_id": self.conversation, "variables": variables})
    }
}

/// The jobs, and the order in which their messages go out.
#[derive(Debug, Clone)]
pub struct Load {
    /// In the order of their first publication.
    pub jobs: Vec<Job>,
    /// Numbers of jobs; some are there twice.
    pub stream: Vec<usize>,
}

impl Load {
    /// So many jobs, and a last one for each conversation.
    pub fn draw(seed: u64, count: usize) -> Load {
        let mut dice = StdRng::seed_from_u64(seed);
        let conversations = conversations(count);
        let mut jobs = Vec::with_capacity(count + conversations.len());
        for number in 0..count {
            let (bot, conversation) = pick(&mut dice, &conversations);
            let by = dice.random_range(1..1_000);
            let kind = match dice.random_range(0..100) {
                0..25 => Kind::Increment(by),
                25..50 => Kind::Append,
                50..70 => Kind::Mixed(by),
                70..88 => Kind::Plain,
                88..95 => Kind::Bounded,
                95..98 => Kind::Hopeless,
                _ => Kind::Malformed,
            };
            jobs.push(Job { id: format!("j-{number}"), bot, conversation: conversation.clone(), kind });
        }
        let mut stream = with_doubles(&mut dice, &jobs);
        // When these have their outcomes, so has everything before them, the late doubles too.
        for (bot, conversation) in conversations {
            stream.push(jobs.len());
            jobs.push(Job { id: format!("last-{}", jobs.len()), bot, conversation, kind: Kind::Append });
        }
        Load { jobs, stream }
    }

    /// The ids of the jobs that are sent twice.
    pub fn sent_twice(&self) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let again = self.stream.iter().filter(|number| !seen.insert(**number));
        again.map(|number| self.jobs[*number].id.clone()).collect()
    }

    /// Every conversation
    pub fn conversations(&self) -> Vec<String> {
        let last = self.jobs.iter().filter(|job| job.id.starts_with("last-"));
        last.map(|job| job.conversation.clone()).collect()
    }
}

/// The hot ones first, the bots in turn.
fn conversations(jobs: usize) -> Vec<(&'static str, String)> {
    let count = 2 * HOT + (jobs / JOBS_OF_COLD).max(2 * HOT);
    (0..count).map(|number| (BOTS[number % BOTS.len()], format!("conv_{number:08x}"))).collect()
}

/// One of them; of the hot ones, two times of five.
pub fn pick<'a, T>(dice: &mut StdRng, conversations: &'a [T]) -> &'a T {
    let hot = (2 * HOT).min(conversations.len() - 1);
    let range = if dice.random_bool(0.4) { 0..hot } else { hot..conversations.len() };
    &conversations[dice.random_range(range)]
}

/// A tenth of the jobs is sent twice: at once, soon, or much later.
fn with_doubles(dice: &mut StdRng, jobs: &[Job]) -> Vec<usize> {
    let mut keyed: Vec<(f64, usize)> = Vec::with_capacity(jobs.len() + jobs.len() / 8);
    let far = (jobs.len() / 4).max(10);
    for (number, job) in jobs.iter().enumerate() {
        let at = position(number);
        keyed.push((at, number));
        let unrecorded = job.kind == Kind::Plain && job.bot == BOTS[0];
        match dice.random_range(0..100) {
            0..4 => keyed.push((at + 0.5, number)),
            4..7 if !unrecorded => keyed.push((at + position(dice.random_range(1..30)) + 0.5, number)),
            7..10 if !unrecorded => keyed.push((at + position(dice.random_range(30..far.max(31))) + 0.5, number)),
            _ => {}
        }
    }
    keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
    keyed.into_iter().map(|(_, number)| number).collect()
}

fn position(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}

#[test]
fn the_same_seed_draws_the_same_load_within_its_limits() {
    let (load, again) = (Load::draw(7, 30_000), Load::draw(7, 30_000));
    assert_eq!((&load.jobs, &load.stream), (&again.jobs, &again.stream));
    assert_ne!(load.stream, Load::draw(8, 30_000).stream);
    let mut seen = vec![0; load.jobs.len()];
    let mut newest = 0;
    for &number in &load.stream {
        if seen[number] == 0 {
            assert!(number >= newest, "first publications are in the order of the numbers");
            newest = number;
        }
        seen[number] += 1;
    }
    assert!(seen.iter().all(|times| (1..=2).contains(times)));
    assert!(seen.iter().filter(|times| **times == 2).count() > 2_000);
    let of = |id: &str| load.jobs.iter().filter(|job| job.conversation == id && job.appends()).count();
    assert!(load.conversations().iter().all(|id| of(id) < JOBS_OF_HOT), "a list stays below the limit of a value");
}
