//! Redis' memory of what ledgers had to let go, for the worker that takes a conversation over.
//!
//! A ledger counts the records that it evicts. Applied jobs among them are recorded here *before the PATCH that
//! evicts them is sent*: they are applied whether or not that PATCH gets through, and so no crash leaves a gap.
//! The count tells whether the memory is whole: a ledger whose count is not known here had evictions that nobody
//! recorded, because Redis was away, was wiped or went back to an older state. Then the memory begins anew, at
//! that ledger's low-water mark.
//!
//! Bounds: per conversation 10,000 marks (the oldest go, and the memory's beginning moves), 32 counts (several
//! PATCHes may be tried from one ledger, one of them gets through), 24 h after the last recording.

use std::sync::LazyLock;

use crate::job::ConversationId;
use crate::pipeline::evicted::Evicted;
use crate::pipeline::ledger::{LowWater, Mark};
use crate::redis_link::{RedisLink, Script};

/// Most marks of one conversation.
pub const MAX_MARKS: usize = 10_000;
/// Most counts that are known.
const MAX_COUNTS: usize = 32;
/// How long Redis keeps a memory, in milliseconds.
const KEEP_MS: u64 = 24 * 60 * 60 * 1_000;

/// One sorted set, so that Redis evicts all of it or nothing: `s:…` (its beginning, in seconds; empty: the first
/// eviction) at -2e15, `k:…` (known counts) at negative numbers, `a:…` (marks) at the low-water time of their
/// eviction.
///
/// Key: memory. Arguments: count and time of the low-water mark before ('' if nothing was evicted yet), count and
/// time after, keep in milliseconds, most marks, most counts, marks.
static RECORD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local memory = KEYS[1]
local head = redis.call('ZRANGEBYSCORE', memory, -2e15, -2e15)[1]
local begins = ARGV[2]
if ARGV[1] == '' then
  redis.call('ZREMRANGEBYSCORE', memory, '-inf', '(0')
elseif head and redis.call('ZSCORE', memory, 'k:' .. ARGV[1]) then
  begins = string.sub(head, 3)
end
for i = 8, #ARGV do redis.call('ZADD', memory, ARGV[4], 'a:' .. ARGV[i]) end
local surplus = redis.call('ZCOUNT', memory, 0, '+inf') - tonumber(ARGV[6])
if surplus > 0 then
  local first = redis.call('ZCOUNT', memory, '-inf', '(0')
  local last = redis.call('ZRANGE', memory, first + surplus - 1, first + surplus - 1, 'WITHSCORES')
  begins = string.format('%.0f', math.max(tonumber(begins) or 0, tonumber(last[2])))
  redis.call('ZREMRANGEBYRANK', memory, first, first + surplus - 1)
end
redis.call('ZREMRANGEBYSCORE', memory, -2e15, -2e15)
redis.call('ZADD', memory, -2e15, 's:' .. begins)
redis.call('ZADD', memory, tonumber(ARGV[3]) - 1e15, 'k:' .. ARGV[3])
local stale = redis.call('ZCOUNT', memory, '(-2e15', '(0') - tonumber(ARGV[7])
if stale > 0 then redis.call('ZREMRANGEBYRANK', memory, 1, stale) end
redis.call('PEXPIRE', memory, ARGV[5])
return 0
",
    )
});

/// Key: memory. Argument: count. Returns nothing if it is not known, else the beginning and the marks.
static RECALL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local head = redis.call('ZRANGEBYSCORE', KEYS[1], -2e15, -2e15)[1]
if not head or not redis.call('ZSCORE', KEYS[1], 'k:' .. ARGV[1]) then return {} end
local all = redis.call('ZRANGEBYSCORE', KEYS[1], 0, '+inf')
for i = 1, #all do all[i] = string.sub(all[i], 3) end
table.insert(all, 1, string.sub(head, 3))
return all
",
    )
});

/// Remembers applied jobs that a ledger is about to let go. `before` is the reach of the ledger that was read
/// (`None`: it has never evicted), `after` that of the ledger to be written.
pub async fn record(
    link: &RedisLink,
    bot: &str,
    conversation: &ConversationId,
    marks: &[&str],
    before: Option<LowWater>,
    after: LowWater,
) {
    let (count, time) = before.map_or_else(Default::default, |reach| (reach.evicted.to_string(), reach.at.to_string()));
    let mut script = RECORD.on(&[key(link, bot, conversation)]);
    script.arg(count).arg(time).arg(after.evicted).arg(after.at.max(0));
    script.arg(KEEP_MS).arg(MAX_MARKS).arg(MAX_COUNTS).arg(marks);
    // Without Redis its memory has a gap, which the counts show.
    let _ = link.call::<i64>(&script).await;
}

/// What is remembered of the ledger that has let go `evicted` records. `None`: the memory does not know that
/// ledger, or Redis is away.
pub async fn recall(link: &RedisLink, bot: &str, conversation: &ConversationId, evicted: u64) -> Option<Evicted> {
    let mut script = RECALL.on(&[key(link, bot, conversation)]);
    let mut answer = link.call::<Vec<String>>(script.arg(evicted)).await.ok()?.into_iter();
    let begins = answer.next()?;
    let since = if begins.is_empty() { None } else { Some(begins.parse().ok()?) };
    Some(Evicted::restore(answer.map(Mark::from_text).collect(), evicted, since))
}

fn key(link: &RedisLink, bot: &str, conversation: &ConversationId) -> String {
    link.key("witness", &format!("{bot}:{conversation}"))
}
