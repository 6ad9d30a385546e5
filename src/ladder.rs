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
//! tells its [`Climb`], and whoever is before it, went onto *the same* rung and has not climbed since is gone: rungs and
//! queues are first in, first out, so all of that rung who still wait came back before it, and left the line or climbed
//! again. One round on the rung is then all that such a place costs. Of another rung nothing follows: a later job may be
//! on a shorter one than the earlier ones, which climb while it is there. Jobs of one batch are here together: the others
//! of it go, or are about to climb again, and are not gone.
//!
//! Places are kept in Redis, for all workers, and expire; every worker also remembers its own and uses them while
//! Redis is away. What was taken during an outage counts beside Redis' line until Redis has been told
//! ([`Ladder::tell_redis_what_it_missed`]), so that whoever gets the queue next sees it. A command that was given up
//! may still reach Redis, seconds later when a network heals, and give a job a place behind those that came meanwhile;
//! so a worker tells the order that it knows with every call, and the earlier one counts. The message tells its place
//! too: a worker that has neither Redis nor a memory of the job would put it behind everybody else.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::sleep;

use self::line::{Judged, Line};
use crate::job::{ConversationId, JobId};
use crate::lease::ConversationLease;
use crate::redis_link::{RedisLink, Script};

mod climb;
mod line;

pub use climb::Climb;

/// How long a place outlasts its rung: the job may have to wait behind others, or for the bot.
const SLACK: Duration = Duration::from_secs(600);
/// How soon Redis is told again what it did not take.
const TELL_AGAIN: Duration = Duration::from_secs(5);
/// Most conversations that are remembered here.
const MAX_REMEMBERED: usize = 50_000;

/// Keys: line (job → order), places (job → end:rung:climb). Arguments: milliseconds for which a line lasts at least, and
/// the jobs of a batch, each with time and rung of the climb from which it comes or '0', and the order that the worker
/// knows or '0'. Returns per job its order or '0', the order of the one that it must follow or '0', and the rung of that.
static STANDINGS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local found, go, here, stays = {}, {}, {}, {}
for i = 2, #ARGV, 4 do
  here[ARGV[i]] = ARGV[i + 2]
  local own, known = redis.call('ZSCORE', KEYS[1], ARGV[i]), tonumber(ARGV[i + 3])
  if known > 0 and not (own and tonumber(own) <= known) then redis.call('ZADD', KEYS[1], ARGV[i + 3], ARGV[i]) end
end
if redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
for i = 2, #ARGV, 4 do
  local own, climbed = redis.call('ZSCORE', KEYS[1], ARGV[i]), tonumber(ARGV[i + 1])
  local below, skip, follows, rung = own and ('(' .. own) or '+inf', 0, '0', 0
  while true do
    local before = redis.call('ZREVRANGEBYSCORE', KEYS[1], below, '-inf', 'WITHSCORES', 'LIMIT', skip, 1)
    if #before == 0 then go[ARGV[i]] = true break end
    if go[before[1]] then skip = skip + 1
    else
      local ends, its, since = string.match(redis.call('HGET', KEYS[2], before[1]) or '', '^(%d+):(%d+):(%d+)$')
      local waits = ends and tonumber(ends) > now and (tonumber(since) > climbed or its ~= ARGV[i + 2])
      if here[before[1]] or waits then
        follows, rung = before[2], stays[before[1]] or tonumber(its or here[before[1]])
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

/// Keys: line, places. Arguments: jobs, each with its order, rung, milliseconds that it still lasts, and climb. What
/// another worker knows better counts: an earlier order, a later climb.
static SHARE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
for i = 1, #ARGV, 5 do
  local own = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if not own or tonumber(ARGV[i + 1]) < tonumber(own) then redis.call('ZADD', KEYS[1], ARGV[i + 1], ARGV[i]) end
  local since = string.match(redis.call('HGET', KEYS[2], ARGV[i]) or '', '^%d+:%d+:(%d+)$')
  if not since or tonumber(since) < tonumber(ARGV[i + 4]) then
    local ends = string.format('%.0f', now + tonumber(ARGV[i + 3]))
    redis.call('HSET', KEYS[2], ARGV[i], ends .. ':' .. ARGV[i + 2] .. ':' .. ARGV[i + 4])
  end
  for k = 1, 2 do
    if redis.call('PTTL', KEYS[k]) < tonumber(ARGV[i + 3]) then redis.call('PEXPIRE', KEYS[k], ARGV[i + 3]) end
  end
end
return 1
",
    )
});

/// The lines of all conversations.
#[derive(Debug)]
pub struct Ladder {
    link: Arc<RedisLink>,
    remembered: Mutex<HashMap<String, Line>>,
    /// A place was taken that Redis does not know of.
    missed: Notify,
}

impl Ladder {
    /// The lines, empty as far as this worker remembers.
    #[must_use]
    pub fn new(link: Arc<RedisLink>) -> Self {
        Self { link, remembered: Mutex::default(), missed: Notify::new() }
    }

    /// Whether anybody of the conversation may be in line, so that [`Self::standings`] is worth its round trip. It always
    /// is for who comes from a rung.
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
        batch: &[(&JobId, Option<Climb>)],
    ) -> Vec<Option<usize>> {
        let tag = tag(bot, conversation);
        let mut script = STANDINGS.on(&self.keys(&tag));
        script.arg(milliseconds(SLACK));
        {
            let remembered = self.remembered();
            let line = remembered.get(&tag);
            for (job, climb) in batch {
                let orders = [line.and_then(|line| line.order(job)), climb.map(|climb| climb.order)];
                let known = orders.into_iter().flatten().min().unwrap_or_default();
                let (since, rung) = climb.map_or((0, 0), |climb| (climb.since, climb.rung));
                script.arg(job.as_str()).arg(since).arg(rung).arg(known);
            }
        }
        let shared = self.link.call::<Vec<(String, String, usize)>>(&script).await.ok();
        let mut remembered = self.remembered();
        let mut nobody = Line::default();
        let now = now();
        let line = match batch.iter().any(|(_, climb)| climb.is_some()) {
            true => line_of(&mut remembered, &tag, now),
            false => remembered.get_mut(&tag),
        };
        let line = line.unwrap_or(&mut nobody);
        line.forget_expired(now);
        for (job, climb) in batch {
            if let Some(climb) = climb {
                line.learn(job, *climb, now, shared.is_some());
            }
        }
        let here = batch.iter().map(|(job, _)| *job).collect::<HashSet<_>>();
        let mut judged = Judged::new();
        // Where the last goes that has no place yet and must take one: it will be the end of the line.
        let mut newest = None;
        let order = |text: &str| text.parse::<f64>().ok().filter(|order| *order > 0.0).map(micros);
        let standing = |(index, (job, climb)): (usize, &(&JobId, Option<Climb>))| {
            line.forget_gone(job, *climb, &here);
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
            tracing::debug!(%tag, %job, ?climb, ?follows, ?rung, "standing");
            judged.insert((*job).clone(), rung);
            rung
        };
        batch.iter().enumerate().map(standing).collect()
    }

    /// Takes a place in line, or keeps the one that the job has, for a stay of that length on that rung. Returns
    /// what the job must bring along when it comes back.
    pub async fn climb(
        &self,
        bot: &str,
        conversation: &ConversationId,
        job: &JobId,
        rung: usize,
        stay: Duration,
    ) -> Climb {
        let tag = tag(bot, conversation);
        let lasts = stay + SLACK;
        let own = self.remembered().get(&tag).and_then(|line| line.order(job)).unwrap_or_default();
        let mut script = CLIMB.on(&self.keys(&tag));
        script.arg(job.as_str()).arg(rung).arg(milliseconds(lasts)).arg(own);
        let shared = self.link.call::<(f64, u64)>(&script).await.ok().map(|(order, since)| (micros(order), since));
        tracing::debug!(%tag, %job, rung, own, ?shared, "climbs");
        let now = now();
        let since = shared.map_or(now / 1_000, |(_, since)| since);
        if shared.is_none() {
            self.missed.notify_one();
        }
        let mut remembered = self.remembered();
        let mut nobody = Line::default();
        let line = line_of(&mut remembered, &tag, now).unwrap_or(&mut nobody);
        let order = line.take(job, shared.map(|(order, _)| order), rung, now, lasts, since);
        Climb { since, rung, order }
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

    /// Tells Redis, whenever it is back, what was taken without it; never ends. The queue may go to another worker, which
    /// sees a line in Redis only; and it may have gone, so that nothing of the conversation comes here any more. A job
    /// that has been done elsewhere meanwhile has a place again then, which holds others up for one round.
    pub async fn tell_redis_what_it_missed(&self) {
        loop {
            self.missed.notified().await;
            self.link.wait_until(true).await;
            while !self.share().await {
                // Redis may have been away for a moment only, or not take one key.
                sleep(TELL_AGAIN).await;
                self.link.wait_until(true).await;
            }
        }
    }

    /// Whether Redis has all places now.
    async fn share(&self) -> bool {
        let now = now();
        let missing = |(tag, line): (&String, &Line)| {
            let missing = line.places.iter().filter(|(_, place)| !place.shared && now < place.ends);
            let missing = missing.map(|(job, place)| (job.clone(), *place)).collect::<Vec<_>>();
            (!missing.is_empty()).then(|| (tag.clone(), missing))
        };
        let missing = self.remembered().iter().filter_map(missing).collect::<Vec<_>>();
        let mut all = true;
        for (tag, places) in missing {
            let mut script = SHARE.on(&self.keys(&tag));
            for (job, place) in &places {
                script.arg(job.as_str()).arg(place.order).arg(place.rung);
                script.arg((place.ends - now).div_ceil(1_000)).arg(place.since);
            }
            let shared = self.link.call::<i64>(&script).await.is_ok();
            tracing::debug!(%tag, places = places.len(), shared, "tells what redis missed");
            all &= shared;
            if let Some(line) = self.remembered().get_mut(&tag).filter(|_| shared) {
                places.iter().for_each(|(job, place)| line.is_shared(job, place.since));
            }
        }
        all
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

/// The line of a conversation, to write into; `None`: too many are remembered.
fn line_of<'a>(remembered: &'a mut HashMap<String, Line>, tag: &str, now: u64) -> Option<&'a mut Line> {
    if remembered.len() >= MAX_REMEMBERED {
        remembered.retain(|_, line| line.is_used(now));
    }
    let has_room = remembered.len() < MAX_REMEMBERED || remembered.contains_key(tag);
    has_room.then(|| remembered.entry(tag.to_owned()).or_default())
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn now() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default()
}

/// Orders are microseconds since 1970 and fit a double exactly.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number below 2^53")]
fn micros(order: f64) -> u64 {
    order as u64
}

#[cfg(test)]
pub(crate) mod tests;
