//! The lease of a conversation in Redis, with its version record: who may work on it now, and at which version it
//! was left.
//!
//! A lease saves conflicts; it is never proof. It expires by wall-clock, a failover loses it, and without Redis
//! work goes on without one: the version precondition is the fence. So the guard says how it was had, and nothing
//! depends on its being held.
//!
//! - Held by another: wait up to 250 ms, then go on without. Only where the dialect has no precondition is it
//!   waited out, since there it is the best that can be had.
//! - Taken for 10 s and renewed every 3 s beside the work that it is for ([`ConversationLease::during`]). A guard
//!   that is dropped without [`ConversationLease::release`] leaves it to expire.
//! - With the lease come the verdicts that jobs had before, and with the release they are left: of those that no
//!   ledger names, so that a job that comes again to another worker gets the same verdict. Best effort as well.
//! - The version record is written with the release by whoever wrote last, and kept for 24 h. A wrong one costs a
//!   conflict.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::job::{ConversationId, Version};
use crate::ladder;
use crate::metrics as names;
use crate::pipeline::endings::Ended;
use crate::pipeline::ledger::Mark;
use crate::pipeline::place::Place;
use crate::pipeline::verdict::{Reason, Rejection, Verdict};
use crate::redis_link::{Away, RedisLink, Script};

/// How long a lease holds.
const HOLDS: Duration = Duration::from_secs(10);
/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How long another's lease is waited for.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often it is asked for meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// Verdicts of a conversation after which the older half of them goes.
const VERDICTS: usize = 1_000;
/// How long the version record and verdicts are kept, in milliseconds.
const KEEP_MS: u64 = 24 * 60 * 60 * 1_000;

/// Keys: lease, version record, retry line, verdicts, older verdicts. Arguments: token, milliseconds, marks of jobs.
/// Returns {1 if it is ours now, 1 if somebody is in line, version or nil}, and where jobs have verdicts that of each
/// mark or nil. Most have nobody in line and no verdicts: one question tells both.
static ACQUIRE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local ours = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
if not ours and redis.call('GET', KEYS[1]) == ARGV[1] then ours = redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
local answer = {ours and 1 or 0, 0, redis.call('GET', KEYS[2])}
if redis.call('EXISTS', KEYS[3], KEYS[4], KEYS[5]) == 0 then return answer end
answer[2] = redis.call('EXISTS', KEYS[3])
for i = 3, #ARGV do
  answer[i + 1] = redis.call('HGET', KEYS[4], ARGV[i]) or redis.call('HGET', KEYS[5], ARGV[i])
end
return answer
",
    )
});

/// Key: lease. Arguments: token, milliseconds. Returns 1 if it still was ours.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
",
    )
});

/// Keys: lease, version record, verdicts, older verdicts. Arguments: token, what happens to the record (keep, set,
/// drop), version, milliseconds, most verdicts of a half, marks each with its verdict. Returns 1 if the lease still
/// was ours.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if ARGV[2] == 'set' then redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4]) end
if ARGV[2] == 'drop' then redis.call('DEL', KEYS[2]) end
if #ARGV > 5 then
  redis.call('HSET', KEYS[3], unpack(ARGV, 6))
  redis.call('PEXPIRE', KEYS[3], ARGV[4])
  if redis.call('HLEN', KEYS[3]) >= tonumber(ARGV[5]) then redis.call('RENAME', KEYS[3], KEYS[4]) end
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
",
    )
});

/// What to do while another holds the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contention {
    /// Wait up to 250 ms, then go on without it: a precondition guards the write.
    GoOn,
    /// Wait until it is free.
    WaitOut,
}

/// How a lease was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It is ours.
    Held,
    /// Another holds it; we go on without.
    HeldByAnother,
    /// Redis is away; we go on without.
    RedisAway,
}

/// What becomes of the version record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// Nothing was written.
    Keep,
    /// The conversation is now at this version.
    Set(&'a Version),
    /// The conversation was or may have been changed to a version that we do not know.
    Drop,
}

/// The permission to work on a conversation.
#[derive(Debug)]
pub struct ConversationLease {
    link: Arc<RedisLink>,
    bot: String,
    lease_key: String,
    version_key: String,
    line_key: String,
    verdict_keys: [String; 2],
    /// By mark.
    verdicts: HashMap<String, PastVerdict>,
    token: String,
    hold: Hold,
    recorded: Option<Version>,
    sees_a_line: bool,
    waited: Duration,
    lost: AtomicBool,
}

/// Takes the lease of a conversation, or the permission to go on without it.
pub async fn acquire(
    link: &Arc<RedisLink>,
    bot: &str,
    conversation: &ConversationId,
    contention: Contention,
    marks: &[&Mark],
) -> ConversationLease {
    let asked = Instant::now();
    let tag = format!("{bot}:{conversation}");
    let mut lease = ConversationLease {
        link: Arc::clone(link),
        bot: bot.to_owned(),
        lease_key: link.key("lease", &tag),
        version_key: link.key("version", &tag),
        line_key: ladder::line_key(link, &tag),
        verdict_keys: [link.key("verdicts", &tag), link.key("verdicts-older", &tag)],
        verdicts: HashMap::new(),
        token: token(),
        hold: Hold::RedisAway,
        recorded: None,
        sees_a_line: false,
        waited: Duration::ZERO,
        lost: AtomicBool::new(false),
    };
    loop {
        let (hold, sees_a_line, recorded) = match lease.ask(marks).await {
            Err(Away) => (Hold::RedisAway, false, None),
            Ok(answer) => {
                let hold = if answer.ours { Hold::Held } else { Hold::HeldByAnother };
                lease.verdicts = answer.verdicts;
                (hold, answer.sees_a_line, answer.recorded)
            }
        };
        let waits = contention == Contention::WaitOut || asked.elapsed() < PATIENCE;
        if hold == Hold::HeldByAnother && waits {
            sleep(ASK_EVERY).await;
            continue;
        }
        lease.hold = hold;
        lease.recorded = recorded.map(Version::new);
        lease.sees_a_line = sees_a_line;
        lease.waited = asked.elapsed();
        return lease;
    }
}

impl ConversationLease {
    /// How it was had.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.hold
    }

    /// How long it took to get.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The version at which somebody of us left the conversation: good enough for a first `If-Match`.
    #[must_use]
    pub fn recorded(&self) -> Option<&Version> {
        self.recorded.as_ref()
    }

    /// Whether jobs of the conversation are in line on the retry ladder, as far as Redis tells
    /// ([`crate::ladder::Ladder::concerns`]).
    pub(crate) fn sees_a_line(&self) -> bool {
        self.sees_a_line
    }

    /// Whether a lease that was held has been found to be another's since.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// The verdict that a job had before, if one is remembered.
    #[must_use]
    pub fn past_verdict(&self, mark: &Mark) -> Option<&PastVerdict> {
        self.verdicts.get(mark.as_str())
    }

    /// Renews it, where it is held, as long as `work` goes on (pinned: a future that is handed over by value is copied).
    pub async fn during<T>(&self, work: impl Future<Output = T> + Unpin) -> T {
        if self.hold != Hold::Held {
            return work.await;
        }
        tokio::select! {
            biased;
            done = work => done,
            never = self.renew() => match never {},
        }
    }

    async fn renew(&self) -> Infallible {
        loop {
            sleep(RENEW_EVERY).await;
            let mut script = RENEW.on(&[&self.lease_key]);
            // Away is not lost: the next renewal may find it in time.
            if self.link.call::<i64>(script.arg(&self.token).arg(milliseconds(HOLDS))).await == Ok(0) {
                self.lost.store(true, Ordering::Relaxed);
                metrics::counter!(names::LEASES_LOST, "bot" => self.bot.clone()).increment(1);
                return std::future::pending().await;
            }
        }
    }

    /// Gives it back, writes the version record and leaves verdicts, in one step.
    pub async fn release(self, record: Record<'_>, verdicts: &[(&Mark, PastVerdict)]) {
        if self.hold != Hold::Held && record == Record::Keep && verdicts.is_empty() {
            return;
        }
        let (what, version) = match record {
            Record::Keep => ("keep", ""),
            Record::Set(version) => ("set", version.as_str()),
            Record::Drop => ("drop", ""),
        };
        let [verdicts_key, older_verdicts_key] = &self.verdict_keys;
        let keys = [&self.lease_key, &self.version_key, verdicts_key, older_verdicts_key];
        let mut script = RELEASE.on(&keys);
        script.arg(&self.token).arg(what).arg(version).arg(KEEP_MS);
        script.arg(VERDICTS);
        for (mark, verdict) in verdicts {
            script.arg(mark.as_str()).arg(verdict.to_string());
        }
        // Without Redis the lease expires, and the record costs a conflict.
        let _ = self.link.call::<i64>(&script).await;
    }

    async fn ask(&self, marks: &[&Mark]) -> Result<Answer, Away> {
        let [verdicts_key, older_verdicts_key] = &self.verdict_keys;
        let keys = [&self.lease_key, &self.version_key, &self.line_key, verdicts_key, older_verdicts_key];
        let mut script = ACQUIRE.on(&keys);
        script.arg(&self.token).arg(milliseconds(HOLDS));
        for mark in marks {
            script.arg(mark.as_str());
        }
        let mut parts = self.link.call::<Vec<redis::Value>>(&script).await?.into_iter();
        let one = redis::Value::Int(1);
        let (ours, sees_a_line) = (parts.next() == Some(one.clone()), parts.next() == Some(one));
        let recorded = parts.next().and_then(text);
        let found = marks.iter().zip(parts);
        let found = found.filter_map(|(mark, part)| Some((mark.as_str().to_owned(), text(part)?.parse().ok()?)));
        Ok(Answer { ours, sees_a_line, recorded, verdicts: found.collect() })
    }
}

struct Answer {
    ours: bool,
    sees_a_line: bool,
    recorded: Option<String>,
    verdicts: HashMap<String, PastVerdict>,
}

/// A verdict as Redis keeps it: `applied:<place>`, or `applied` where the dialect has no versions, or
/// `not_applied:<generation>:<code>`, or `unknown:…`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PastVerdict {
    /// It was applied, which binds all replay generations.
    Applied(Option<Place>),
    /// It was not, in that generation.
    NotApplied(u32, Reason),
    /// Nobody could know, in that generation.
    Unknown(u32, Reason),
}

impl PastVerdict {
    /// What another worker must know of an ending, should the job come to it: a verdict that no ledger tells.
    #[must_use]
    pub fn to_be_left(ended: &Ended, generation: u32) -> Option<Self> {
        match &ended.verdict {
            _ if ended.repeat => None,
            Verdict::Applied => (!ended.applied.recorded).then(|| Self::Applied(ended.place.clone())),
            Verdict::NotApplied(rejection) => Some(Self::NotApplied(generation, rejection.code)),
            Verdict::Unknown(rejection) => Some(Self::Unknown(generation, rejection.code)),
        }
    }

    /// Whether the job was applied.
    #[must_use]
    pub fn is_applied(&self) -> bool {
        matches!(self, Self::Applied(_))
    }

    /// Where the job took effect, if it did and no ledger named it.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Applied(place) => place.as_ref(),
            Self::NotApplied(..) | Self::Unknown(..) => None,
        }
    }

    /// The verdict that the job had, if it binds this generation.
    #[must_use]
    pub fn for_generation(&self, generation: u32) -> Option<Verdict> {
        let rejection = |code| Rejection::new(code, "the job ended so before; a replay may try it again");
        match self {
            Self::Applied(_) => Some(Verdict::Applied),
            Self::NotApplied(of, code) => (*of == generation).then(|| Verdict::NotApplied(rejection(*code))),
            Self::Unknown(of, code) => (*of == generation).then(|| Verdict::Unknown(rejection(*code))),
        }
    }
}

impl fmt::Display for PastVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied(None) => f.write_str("applied"),
            Self::Applied(Some(place)) => write!(f, "applied:{place}"),
            Self::NotApplied(generation, code) => write!(f, "not_applied:{generation}:{}", code.as_str()),
            Self::Unknown(generation, code) => write!(f, "unknown:{generation}:{}", code.as_str()),
        }
    }
}

/// Not a verdict of this form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoVerdict;

impl FromStr for PastVerdict {
    type Err = NoVerdict;

    fn from_str(text: &str) -> Result<Self, NoVerdict> {
        if text == "applied" {
            return Ok(Self::Applied(None));
        }
        if let Some(place) = text.strip_prefix("applied:") {
            return place.parse().map(|place| Self::Applied(Some(place))).map_err(|_| NoVerdict);
        }
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or(NoVerdict);
        let (verdict, generation, code) = (next()?, next()?, next()?);
        let generation = generation.parse().map_err(|_| NoVerdict)?;
        let code = Reason::parse(code).ok_or(NoVerdict)?;
        match verdict {
            "not_applied" => Ok(Self::NotApplied(generation, code)),
            "unknown" => Ok(Self::Unknown(generation, code)),
            _ => Err(NoVerdict),
        }
    }
}

/// A name that no other lease has: the process' and a number, since random bytes would be a system call for each.
fn token() -> String {
    static PROCESS: LazyLock<Uuid> = LazyLock::new(Uuid::new_v4);
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("{}.{}", PROCESS.simple(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// The text that Redis answered, if it did.
fn text(value: redis::Value) -> Option<String> {
    redis::from_redis_value(value).ok().filter(|text: &String| !text.is_empty())
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
