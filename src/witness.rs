//! What is remembered of applied jobs after the ledger had to let them go.
//!
//! The ledger of a conversation is bounded; what it evicts is *recorded here before the PATCH that evicts it is
//! sent*. Then a job that is in neither was never applied, as far as the record is complete, whatever crashed in
//! between. Whether it is complete is checked against the ledger itself, by its *boundary*: a text that names how
//! much it has evicted (the low-water mark and the oldest entry that is left). A boundary that is not known here
//! means that somebody evicted without recording: Redis was away, wiped, or went back to an older state. Then the
//! record counts from the next recording on.
//!
//! Two records, one meaning: Redis', shared by all, and this worker's own. Either may know.
//!
//! Bounds: per conversation 10,000 marks and 24 h in Redis; 200,000 marks in the worker. Instants are given out
//! a minute late, since the publication times they are compared with come from other clocks.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use redis::Script;

use crate::job::ConversationId;
use crate::pipeline::plan::Witness;
use crate::redis_link::RedisLink;

/// Most marks of one conversation.
const MAX_MARKS: usize = 10_000;
/// Most marks of all conversations in this process.
const MAX_MARKS_HERE: usize = 200_000;
/// Boundaries that are known: one per PATCH that was tried, of which at most one is the ledger's.
const MAX_BOUNDARIES: usize = 32;
/// How long Redis keeps a record, in milliseconds.
const KEEP_MS: u64 = 24 * 60 * 60 * 1_000;
/// How far the clocks of producers and ours may differ.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_secs(60);

/// One sorted set, so that Redis evicts all of it or nothing: `s:…` (since when it is complete) at -2e15, `k:…`
/// (known boundaries) at negative times, `a:…` (marks) at the time of their recording in milliseconds.
///
/// Key: record. Arguments: boundary before ('' if nothing was evicted yet), boundary after, keep in milliseconds,
/// most marks, most boundaries, marks.
static RECORD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local record, keep = KEYS[1], tonumber(ARGV[3])
local head = redis.call('ZRANGEBYSCORE', record, -2e15, -2e15)
local since = now
if ARGV[1] == '' then since = 0
elseif head[1] and redis.call('ZSCORE', record, 'k:' .. ARGV[1]) then since = tonumber(string.sub(head[1], 3)) end
for i = 6, #ARGV do redis.call('ZADD', record, now, 'a:' .. ARGV[i]) end
if redis.call('ZREMRANGEBYSCORE', record, 0, now - keep) > 0 then since = math.max(since, now - keep) end
local surplus = redis.call('ZCOUNT', record, 0, '+inf') - tonumber(ARGV[4])
if surplus > 0 then
  local first = redis.call('ZCOUNT', record, '-inf', '(0')
  local last = redis.call('ZRANGE', record, first + surplus - 1, first + surplus - 1, 'WITHSCORES')
  since = math.max(since, tonumber(last[2]))
  redis.call('ZREMRANGEBYRANK', record, first, first + surplus - 1)
end
redis.call('ZREMRANGEBYSCORE', record, -2e15, -2e15)
redis.call('ZADD', record, -2e15, string.format('s:%.0f', since))
redis.call('ZADD', record, now - 1e15, 'k:' .. ARGV[2])
local stale = redis.call('ZCOUNT', record, '(-2e15', '(0') - tonumber(ARGV[5])
if stale > 0 then redis.call('ZREMRANGEBYRANK', record, 1, stale) end
redis.call('PEXPIRE', record, keep)
return 0
",
    )
});

/// Key: record. Arguments: boundary of the ledger, marks. Returns milliseconds since when the record is complete
/// (-1: it is not), then 1 per mark that is in it and 0 per other.
static LOOK_UP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local head = redis.call('ZRANGEBYSCORE', KEYS[1], -2e15, -2e15)
local known = head[1] and redis.call('ZSCORE', KEYS[1], 'k:' .. ARGV[1])
local found = {known and tonumber(string.sub(head[1], 3)) or -1}
for i = 2, #ARGV do found[i] = redis.call('ZSCORE', KEYS[1], 'a:' .. ARGV[i]) and 1 or 0 end
return found
",
    )
});

/// The records of all conversations.
#[derive(Debug)]
pub struct Witnesses {
    link: Arc<RedisLink>,
    own: Mutex<Own>,
}

impl Witnesses {
    /// The records, empty as far as this worker's own go.
    #[must_use]
    pub fn new(link: Arc<RedisLink>) -> Self {
        Self { link, own: Mutex::default() }
    }

    /// Records applied jobs (their marks) that the ledger lets go, before the PATCH that does so is sent. `before`
    /// is the boundary of the ledger that was read (`None`: it has never evicted), `after` that of the ledger to
    /// be written. Marks that stay in the ledger do no harm, as long as they are of applied jobs.
    pub async fn record(
        &self,
        bot: &str,
        conversation: &ConversationId,
        evicted: &[&str],
        before: Option<&str>,
        after: &str,
    ) {
        let tag = format!("{bot}:{conversation}");
        self.own().record(&tag, evicted, before, after, Timestamp::now());
        let mut script = RECORD.key(self.link.key("witness", &tag));
        script.arg(before.unwrap_or_default()).arg(after).arg(KEEP_MS).arg(MAX_MARKS).arg(MAX_BOUNDARIES).arg(evicted);
        // Without Redis its record has a gap, which its boundaries show.
        let _ = self.link.call::<i64>(&script).await;
    }

    /// What is remembered of jobs that are not in the ledger, in the order of `marks`. `boundary` is that of the
    /// ledger that was read; a ledger that has never evicted needs no witness.
    pub async fn look_up(
        &self,
        bot: &str,
        conversation: &ConversationId,
        marks: &[&str],
        boundary: &str,
    ) -> Vec<Witness> {
        let tag = format!("{bot}:{conversation}");
        let mut script = LOOK_UP.key(self.link.key("witness", &tag));
        let shared = self.link.call::<Vec<i64>>(script.arg(boundary).arg(marks)).await.unwrap_or_default();
        let (since, found) = shared.split_first().map_or((-1, &[][..]), |(since, found)| (*since, found));
        let shared_since = (since >= 0).then(|| Timestamp::from_millisecond(since).ok()).flatten();
        let own = self.own();
        let record = own.records.get(&tag);
        let own_since = record.filter(|record| record.boundaries.iter().any(|known| known == boundary));
        let since = [shared_since, own_since.map(|record| record.since)].into_iter().flatten().min().map(given_out);
        let marks = marks.iter().enumerate();
        marks
            .map(|(index, mark)| {
                let is_here = record.is_some_and(|record| record.marks.contains(*mark));
                match since {
                    _ if is_here || found.get(index) == Some(&1) => Witness::Applied,
                    Some(since) => Witness::AbsentSince(since),
                    None => Witness::Nothing,
                }
            })
            .collect()
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn given_out(since: Timestamp) -> Timestamp {
    if since <= Timestamp::UNIX_EPOCH { since } else { since.saturating_add(CLOCKS_DIFFER).unwrap_or(Timestamp::MAX) }
}

/// This worker's own records.
#[derive(Debug, Default)]
struct Own {
    records: HashMap<String, Record>,
    /// Conversations by their last recording; older notes of the same one are skipped.
    touched: VecDeque<(u64, String)>,
    recordings: u64,
    marks: usize,
}

#[derive(Debug)]
struct Record {
    since: Timestamp,
    boundaries: VecDeque<String>,
    marks: HashSet<String>,
    order: VecDeque<(Timestamp, String)>,
    touched: u64,
}

impl Own {
    fn record(&mut self, tag: &str, evicted: &[&str], before: Option<&str>, after: &str, now: Timestamp) {
        self.recordings += 1;
        let record = self.records.entry(tag.to_owned()).or_insert_with(|| Record {
            since: now,
            boundaries: VecDeque::new(),
            marks: HashSet::new(),
            order: VecDeque::new(),
            touched: 0,
        });
        record.touched = self.recordings;
        self.touched.push_back((self.recordings, tag.to_owned()));
        match before {
            None => record.since = Timestamp::UNIX_EPOCH,
            Some(before) if record.boundaries.iter().any(|known| known == before) => {}
            Some(_) => record.since = now,
        }
        for mark in evicted {
            if record.marks.insert((*mark).to_owned()) {
                record.order.push_back((now, (*mark).to_owned()));
                self.marks += 1;
            }
        }
        while record.order.len() > MAX_MARKS {
            let Some((at, mark)) = record.order.pop_front() else { break };
            record.marks.remove(&mark);
            record.since = record.since.max(at);
            self.marks -= 1;
        }
        record.boundaries.retain(|known| known != after);
        record.boundaries.push_back(after.to_owned());
        while record.boundaries.len() > MAX_BOUNDARIES {
            record.boundaries.pop_front();
        }
        self.forget_surplus();
    }

    fn forget_surplus(&mut self) {
        // Notes of recordings that were not the last one pile up: they count, too.
        while self.marks > MAX_MARKS_HERE || self.touched.len() > MAX_MARKS_HERE {
            let Some((recording, tag)) = self.touched.pop_front() else { return };
            if self.records.get(&tag).is_some_and(|record| record.touched == recording)
                && let Some(record) = self.records.remove(&tag)
            {
                self.marks -= record.marks.len();
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn conversation() -> ConversationId {
        ConversationId::new("conv_1", &regex::Regex::new("^conv_[0-9a-f]+$").unwrap()).unwrap()
    }

    /// The promise, for a record with or without Redis.
    pub(crate) async fn evicted_jobs_are_remembered(witnesses: &Witnesses, bot: &str) {
        let id = &conversation();
        let look_up = async |boundary: &str| witnesses.look_up(bot, id, &["a", "x"], boundary).await;
        assert_eq!(look_up("1").await, [Witness::Nothing, Witness::Nothing]);
        witnesses.record(bot, id, &["a", "b"], None, "1").await;
        let ever = Witness::AbsentSince(Timestamp::UNIX_EPOCH);
        assert_eq!(look_up("1").await, [Witness::Applied, ever], "complete from the first eviction on");
        witnesses.record(bot, id, &["c"], Some("1"), "2").await;
        witnesses.record(bot, id, &["c", "d"], Some("1"), "3").await;
        assert_eq!(look_up("2").await, [Witness::Applied, ever], "the PATCH that got through is one of those tried");
        assert_eq!(look_up("3").await, [Witness::Applied, ever]);
        assert_eq!(look_up("4").await, [Witness::Applied, Witness::Nothing], "somebody evicted without recording");
        let gap = Timestamp::now();
        witnesses.record(bot, id, &["f"], Some("4"), "5").await;
        let [Witness::Applied, Witness::AbsentSince(since)] = look_up("5").await[..] else {
            panic!("complete since the gap")
        };
        assert!(gap < since && since < gap + SignedDuration::from_secs(120), "{since}");
    }

    #[tokio::test]
    async fn without_redis_evicted_jobs_are_remembered_by_the_worker() {
        evicted_jobs_are_remembered(&Witnesses::new(RedisLink::absent()), "b").await;
    }

    #[test]
    fn the_oldest_marks_go_and_the_record_says_so() {
        let mut own = Own::default();
        let at = |second: usize| Timestamp::from_second(i64::try_from(second).unwrap()).unwrap();
        own.record("t", &["0"], None, "0", at(0));
        for number in 1..=MAX_MARKS {
            let (before, after) = ((number - 1).to_string(), number.to_string());
            own.record("t", &[&after], Some(&before), &after, at(number));
        }
        let record = &own.records["t"];
        assert_eq!((record.marks.len(), own.marks), (MAX_MARKS, MAX_MARKS));
        assert!(!record.marks.contains("0") && record.marks.contains("1"));
        assert_eq!(record.since, at(0));
        assert_eq!(record.boundaries.len(), MAX_BOUNDARIES);
    }

    #[test]
    fn the_conversation_that_was_recorded_longest_ago_is_forgotten_first() {
        let mut own = Own::default();
        let now = Timestamp::UNIX_EPOCH;
        let marks = (0..9_000).map(|number| number.to_string()).collect::<Vec<_>>();
        let marks = marks.iter().map(String::as_str).collect::<Vec<_>>();
        for tag in 0..22 {
            own.record(&tag.to_string(), &marks, None, "1", now);
        }
        own.record("0", &["more"], Some("1"), "2", now);
        own.record("22", &marks, None, "1", now);
        assert!(own.records.contains_key("0") && !own.records.contains_key("1"));
        assert!(own.marks <= MAX_MARKS_HERE);
    }
}
