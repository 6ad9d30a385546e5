//! The lease of a conversation in Redis, with its version record: who may work on it now, and at which version it
//! was left.
//!
//! A lease saves conflicts; it is never proof. It expires by wall-clock, a failover loses it, and without Redis
//! work goes on without one: the version precondition is the fence. So the guard says how it was had, and nothing
//! depends on its being held.
//!
//! - Held by another: wait up to 250 ms, then go on without. Only where the dialect has no precondition is it
//!   waited out, since there it is the best that can be had.
//! - Taken for 10 s and renewed every 3 s by a task of the guard. A guard that is dropped without
//!   [`ConversationLease::release`] leaves it to expire.
//! - The version record is written with the release by whoever wrote last, and kept for 24 h. A wrong one costs a
//!   conflict.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Script;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::job::{ConversationId, Version};
use crate::ladder;
use crate::metrics as names;
use crate::redis_link::{Away, RedisLink};

/// How long a lease holds.
const HOLDS: Duration = Duration::from_secs(10);
/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How long another's lease is waited for.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often it is asked for meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// How long the version record is kept, in milliseconds.
const KEEP_MS: u64 = 24 * 60 * 60 * 1_000;

/// Keys: lease, version record, retry line. Arguments: token, milliseconds. Returns {1 if it is ours now, 1 if
/// somebody is in line, version or nil}.
static ACQUIRE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local ours = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
if not ours and redis.call('GET', KEYS[1]) == ARGV[1] then ours = redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return {ours and 1 or 0, redis.call('EXISTS', KEYS[3]), redis.call('GET', KEYS[2])}
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

/// Keys: lease, version record. Arguments: token, what happens to the record (keep, set, drop), version,
/// milliseconds. Returns 1 if the lease still was ours.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if ARGV[2] == 'set' then redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4]) end
if ARGV[2] == 'drop' then redis.call('DEL', KEYS[2]) end
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
    token: String,
    hold: Hold,
    recorded: Option<Version>,
    sees_a_line: bool,
    waited: Duration,
    lost: Arc<AtomicBool>,
    renewing: Option<AbortHandle>,
}

/// Takes the lease of a conversation, or the permission to go on without it.
pub async fn acquire(
    link: &Arc<RedisLink>,
    bot: &str,
    conversation: &ConversationId,
    contention: Contention,
) -> ConversationLease {
    let asked = Instant::now();
    let tag = format!("{bot}:{conversation}");
    let mut lease = ConversationLease {
        link: Arc::clone(link),
        bot: bot.to_owned(),
        lease_key: link.key("lease", &tag),
        version_key: link.key("version", &tag),
        line_key: ladder::line_key(link, &tag),
        token: Uuid::new_v4().simple().to_string(),
        hold: Hold::RedisAway,
        recorded: None,
        sees_a_line: false,
        waited: Duration::ZERO,
        lost: Arc::default(),
        renewing: None,
    };
    loop {
        let (hold, sees_a_line, recorded) = match lease.ask().await {
            Err(Away) => (Hold::RedisAway, false, None),
            Ok((1, line, recorded)) => (Hold::Held, line, recorded),
            Ok((_, line, recorded)) => (Hold::HeldByAnother, line, recorded),
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
        if hold == Hold::Held {
            lease.renewing = Some(tokio::spawn(lease.renewal().run()).abort_handle());
        }
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

    /// Gives it back and writes the version record, in one step.
    pub async fn release(mut self, record: Record<'_>) {
        self.stop_renewing();
        if self.hold != Hold::Held && record == Record::Keep {
            return;
        }
        let (what, version) = match record {
            Record::Keep => ("keep", ""),
            Record::Set(version) => ("set", version.as_str()),
            Record::Drop => ("drop", ""),
        };
        let mut script = RELEASE.key(&self.lease_key);
        script.key(&self.version_key).arg(&self.token).arg(what).arg(version).arg(KEEP_MS);
        // Without Redis the lease expires, and the record costs a conflict.
        let _ = self.link.call::<i64>(&script).await;
    }

    async fn ask(&self) -> Result<(i64, bool, Option<String>), Away> {
        let mut script = ACQUIRE.key(&self.lease_key);
        script.key(&self.version_key).key(&self.line_key).arg(&self.token).arg(milliseconds(HOLDS));
        self.link.call(&script).await
    }

    fn renewal(&self) -> Renewal {
        Renewal {
            link: Arc::clone(&self.link),
            bot: self.bot.clone(),
            key: self.lease_key.clone(),
            token: self.token.clone(),
            lost: Arc::clone(&self.lost),
        }
    }

    fn stop_renewing(&mut self) {
        if let Some(task) = self.renewing.take() {
            task.abort();
        }
    }
}

impl Drop for ConversationLease {
    fn drop(&mut self) {
        self.stop_renewing();
    }
}

struct Renewal {
    link: Arc<RedisLink>,
    bot: String,
    key: String,
    token: String,
    lost: Arc<AtomicBool>,
}

impl Renewal {
    async fn run(self) {
        loop {
            sleep(RENEW_EVERY).await;
            let mut script = RENEW.key(&self.key);
            // Away is not lost: the next renewal may find it in time.
            if self.link.call::<i64>(script.arg(&self.token).arg(milliseconds(HOLDS))).await == Ok(0) {
                self.lost.store(true, Ordering::Relaxed);
                metrics::counter!(names::LEASES_LOST, "bot" => self.bot).increment(1);
                return;
            }
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
