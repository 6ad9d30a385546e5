//! Who waits on the retry ladder, per conversation, so that later jobs do not overtake earlier ones.
//!
//! A job that goes to a rung takes a *place* in its conversation's line and keeps it, from rung to rung, until it
//! is stepped off, when it has its verdict. A job may be worked on if nobody is before it in the line but jobs of its
//! own batch that may be worked on too; otherwise it follows the one right
//! before it onto the same rung, where order is first in, first out. A job has one place, by its id, so that a
//! worker that dies between taking the place and publishing leaves nothing behind that the redelivered job would
//! wait for.
//!
//! A place can outlive its job: Redis was away when it was to be given back. So a message that comes back from a rung
//! names the time of its climb, and whoever is before it and has not climbed since is gone: rungs and queues are first
//! in, first out, so all who still wait came back before it, and left the line or climbed again. One round on the rung
//! is then all that such a place costs. Jobs of one batch are here together: the others of it go, or are
//! about to climb again, and are not gone.
//!
//! Places are kept in Redis, for all workers, and expire; every worker also remembers its own and uses them while
//! Redis is away. What was taken during an outage counts beside Redis' line until it expires. A command that was given up
//! may still reach Redis, seconds later when a network heals, and give a job a place behind those that came meanwhile;
//! so a worker tells the order that it knows with every call, and the earlier one counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::job::{ConversationId, JobId};
use crate::lease::ConversationLease;
use crate::redis_link::{RedisLink, Script};

/// How long a place outlasts its rung: the job may have to wait behind others, or for the bot.
const SLACK: Duration = Duration::from_secs(600);
/// Most conversations that are remembered here.
const MAX_REMEMBERED: usize = 50_000;

/// Keys: line (job → order), places (job → end:rung:climb). Arguments: the jobs of a batch, each with the time of the
/// climb from which it comes or '0', and the order that the worker remembers or '0'. Returns per job its order or '0',
/// the order of the one that it must follow or '0', and the rung of that.
static STANDINGS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local found, go, here, stays = {}, {}, {}, {}
for i = 1, #ARGV, 3 do here[ARGV[i]] = true end
for i = 1, #ARGV, 3 do
  local own, climbed, known = redis.call('ZSCORE', KEYS[1], ARGV[i]), tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  if known > 0 and not (own and tonumber(own) <= known) then
    if own then redis.call('ZADD', KEYS[1], ARGV[i + 2], ARGV[i]) end
    own = ARGV[i + 2]
  end
  local below, skip, follows, rung = own and ('(' .. own) or '+inf', 0, '0', 0
  while true do
    local before = redis.call('ZREVRANGEBYSCORE', KEYS[1], below, '-inf', 'WITHSCORES', 'LIMIT', skip, 1)
    if #before == 0 then go[ARGV[i]] = true break end
    if go[before[1]] then skip = skip + 1
    else
      local ends, its, since = string.match(redis.call('HGET', KEYS[2], before[1]) or '', '^(%d+):(%d+):(%d+)$')
      if here[before[1]] or (ends and tonumber(ends) > now and tonumber(since) > climbed) then
        follows, rung = before[2], stays[before[1]] or tonumber(its or '0')
        stays[ARGV[i]] = rung
        break
      end
      redis.call('ZREM', KEYS[1], before[1])
      redis.call('HDEL', KEYS[2], before[1])
    end
  end
  found[#found + 1] = {own or '0', follows, rung}
end
return found
",
    )
});

/// Keys: line, places. Arguments: job, rung, milliseconds, order that the worker remembers or 0. Returns its
/// order and the time of the climb.
static CLIMB: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local order = redis.call('ZSCORE', KEYS[1], ARGV[1])
local known = tonumber(ARGV[4])
if not order or (known > 0 and known < tonumber(order)) then
  order = known
  if order == 0 then
    local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
    order = math.max(tonumber(t[1]) * 1000000 + tonumber(t[2]), (tonumber(last[2] or '0')) + 1)
  end
  order = string.format('%.0f', order)
  redis.call('ZADD', KEYS[1], order, ARGV[1])
end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f:%s:%.0f', now + tonumber(ARGV[3]), ARGV[2], now))
for i = 1, 2 do
  if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
end
return {order, string.format('%.0f', now)}
",
    )
});

/// Keys: line, places. Argument: job.
static STEP_OFF: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
redis.call('HDEL', KEYS[2], ARGV[1])
return redis.call('ZREM', KEYS[1], ARGV[1])
",
    )
});

/// The lines of all conversations.
#[derive(Debug)]
pub struct Ladder {
    link: Arc<RedisLink>,
    remembered: Mutex<HashMap<String, Line>>,
}

impl Ladder {
    /// The lines, empty as far as this worker remembers.
    #[must_use]
    pub fn new(link: Arc<RedisLink>) -> Self {
        Self { link, remembered: Mutex::default() }
    }

    /// Whether anybody of the conversation may be in line, so that [`Self::standings`] is worth its round trip.
    #[must_use]
    pub fn concerns(&self, bot: &str, conversation: &ConversationId, lease: &ConversationLease) -> bool {
        lease.sees_a_line()
            || self.remembered().get(&tag(bot, conversation)).is_some_and(|line| !line.places.is_empty())
    }

    /// What each job of a batch, in its order, must follow: the rung of the job right before it. `None`: it may be
    /// worked on, since nobody is before it but jobs of the batch that may be worked on too.
    /// Each job comes with what [`Self::climb`] returned, if it comes from a rung.
    pub async fn standings(
        &self,
        bot: &str,
        conversation: &ConversationId,
        batch: &[(&JobId, Option<u64>)],
    ) -> Vec<Option<usize>> {
        let tag = tag(bot, conversation);
        let mut script = STANDINGS.on(&self.keys(&tag));
        {
            let remembered = self.remembered();
            let line = remembered.get(&tag);
            for (job, climbed) in batch {
                let order = line.and_then(|line| line.places.get(job)).map_or(0, |place| place.order);
                script.arg(job.as_str()).arg(climbed.unwrap_or_default()).arg(order);
            }
        }
        let shared = self.link.call::<Vec<(String, String, usize)>>(&script).await.ok();
        let mut remembered = self.remembered();
        let mut nobody = Line::default();
        let line = remembered.get_mut(&tag).unwrap_or(&mut nobody);
        line.forget_expired(now());
        let here = batch.iter().map(|(job, _)| *job).collect::<HashSet<_>>();
        let mut judged = Judged::new();
        // Where the last goes that has no place yet and must take one: it will be the end of the line.
        let mut newest = None;
        let order = |text: &str| text.parse::<f64>().ok().filter(|order| *order > 0.0).map(micros);
        let standing = |(index, (job, climbed)): (usize, &(&JobId, Option<u64>))| {
            line.forget_gone(job, climbed.unwrap_or_default(), &here);
            let shared = shared.as_ref().map(|all| all.get(index).cloned().unwrap_or_default());
            let mut is_new = !line.places.contains_key(*job);
            let follows = match shared {
                None => line.before(job, None, &judged, false),
                Some((own, before, rung)) => {
                    is_new &= order(&own).is_none();
                    let unshared = line.before(job, order(&own), &judged, true);
                    unshared.max(order(&before).map(|before| (before, rung)))
                }
            };
            let mut rung = follows.map(|(_, rung)| rung);
            if is_new {
                rung = newest.or(rung);
                newest = rung;
            }
            tracing::debug!(%tag, %job, climbed, ?follows, ?rung, "standing");
            judged.insert((*job).clone(), rung);
            rung
        };
        batch.iter().enumerate().map(standing).collect()
    }

    /// Takes a place in line, or keeps the one that the job has, for a stay of that length on that rung. Returns the
    /// time of the climb, which the job must bring along when it comes back.
    pub async fn climb(
        &self,
        bot: &str,
        conversation: &ConversationId,
        job: &JobId,
        rung: usize,
        stay: Duration,
    ) -> u64 {
        let tag = tag(bot, conversation);
        let lasts = stay + SLACK;
        let own = self.remembered().get(&tag).and_then(|line| line.places.get(job)).map_or(0, |place| place.order);
        let mut script = CLIMB.on(&self.keys(&tag));
        let lasts_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
        script.arg(job.as_str()).arg(rung).arg(lasts_ms).arg(own);
        let shared = self.link.call::<(f64, u64)>(&script).await.ok().map(|(order, since)| (micros(order), since));
        tracing::debug!(%tag, %job, rung, own, ?shared, "climbs");
        let now = now();
        let since = shared.map_or(now / 1_000, |(_, since)| since);
        let mut remembered = self.remembered();
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, line| line.is_used(now));
        }
        if remembered.len() < MAX_REMEMBERED || remembered.contains_key(&tag) {
            let line = remembered.entry(tag).or_default();
            line.take(job, shared.map(|(order, _)| order), rung, now, lasts, since);
        }
        since
    }

    /// Gives the place back: the job is worked on, or done with.
    pub async fn step_off(&self, bot: &str, conversation: &ConversationId, job: &JobId) {
        let tag = tag(bot, conversation);
        let mut script = STEP_OFF.on(&self.keys(&tag));
        script.arg(job.as_str());
        tracing::debug!(%tag, %job, "steps off");
        // Without Redis the place expires.
        let _ = self.link.call::<i64>(&script).await;
        let mut remembered = self.remembered();
        if let Some(line) = remembered.get_mut(&tag) {
            line.places.remove(job);
            if line.places.is_empty() {
                remembered.remove(&tag);
            }
        }
    }

    /// The keys of a conversation's line and places.
    fn keys(&self, tag: &str) -> [String; 2] {
        [line_key(&self.link, tag), self.link.key("places", tag)]
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<String, Line>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tag(bot: &str, conversation: &ConversationId) -> String {
    [bot, ":", conversation.as_str()].concat()
}

/// The key of a conversation's line.
pub(crate) fn line_key(link: &RedisLink, tag: &str) -> String {
    link.key("line", tag)
}

fn now() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default()
}

/// Orders are microseconds since 1970 and fit a double exactly.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number below 2^53")]
fn micros(order: f64) -> u64 {
    order as u64
}

/// Jobs of a batch and the rung that they must go to; `None`: they may be worked on.
type Judged = HashMap<JobId, Option<usize>>;

/// One conversation's line as this worker remembers it. Times in microseconds since 1970, those of climbs in
/// milliseconds.
#[derive(Debug, Default)]
struct Line {
    places: BTreeMap<JobId, Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    order: u64,
    rung: usize,
    ends: u64,
    since: u64,
    /// Whether Redis has it too.
    shared: bool,
}

impl Line {
    fn is_used(&self, now: u64) -> bool {
        self.places.values().any(|place| now < place.ends)
    }

    fn forget_expired(&mut self, now: u64) {
        self.places.retain(|_, place| now < place.ends);
    }

    /// Order and rung of the one right before a job, except those of the batch that may go themselves; those that may
    /// not are about to climb. The job's own order may be known better elsewhere.
    fn before(&self, job: &JobId, own: Option<u64>, judged: &Judged, unshared_only: bool) -> Option<(u64, usize)> {
        let own = own.or_else(|| self.places.get(job).map(|place| place.order)).unwrap_or(u64::MAX);
        let others = self.places.iter().filter(|(other, _)| *other != job);
        let before = others.filter(|(_, place)| place.order < own && !(unshared_only && place.shared));
        let rung = |(other, place): (&JobId, &Place)| match judged.get(other) {
            None => Some((place.order, place.rung)),
            Some(stays) => stays.map(|rung| (place.order, rung)),
        };
        before.filter_map(rung).max()
    }

    /// Who is before a job that climbed then and comes back now, has not climbed since and does not come back with it
    /// is not in line any more.
    fn forget_gone(&mut self, job: &JobId, climbed: u64, here: &HashSet<&JobId>) {
        let Some(own) = self.places.get(job).map(|place| place.order) else { return };
        self.places.retain(|other, place| place.since > climbed || place.order >= own || here.contains(other));
    }

    fn take(&mut self, job: &JobId, shared: Option<u64>, rung: usize, now: u64, lasts: Duration, since: u64) {
        let last = self.places.values().map(|place| place.order).max().unwrap_or_default();
        let own = self.places.get(job).map(|place| place.order);
        let order = shared.or(own).unwrap_or(now.max(last + 1));
        let ends = now.saturating_add(u64::try_from(lasts.as_micros()).unwrap_or(u64::MAX));
        self.places.insert(job.clone(), Place { order, rung, ends, since, shared: shared.is_some() });
    }
}

#[cfg(test)]
pub(crate) mod tests;
