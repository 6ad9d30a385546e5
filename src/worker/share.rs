//! Several bots shared out over several workers.
//!
//! The broker gives each bot's queue to the worker that subscribed first and never shares out anew: the worker that
//! starts first has them all, for ever. So each tells the others in Redis how many queues it has and in whose line it
//! is, and one that has more than its share lets one of them go that a poorer one waits for; the broker gives it to the next in line, and the worker that let it go
//! is now the last in that line.
//!
//! No flapping: the share is rounded up, so that what moves makes no other worker hold more than its share; a queue
//! goes only after two looks in a row, one at a time; a bot that is held is left where it is. Without Redis nothing
//! moves.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::seat::Seat;
use crate::metrics as names;
use crate::redis_link::{RedisLink, Script};

/// How often workers tell each other what they have.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What a worker said counts for this long.
const COUNTS_FOR: Duration = Duration::from_secs(15);
/// Looks in a row with too much before something goes.
const PATIENCE: u32 = 2;

/// Tells what one worker has and learns what the others have. Key: all workers. Arguments: our name, what we have,
/// milliseconds for which that counts. Returns what the others have.
static TELL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local others = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local ends, what = string.match(all[i + 1], '^(%d+) (.*)$')
  if not ends or tonumber(ends) < now then redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] ~= ARGV[1] then others[#others + 1] = what end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + tonumber(ARGV[3])) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return others
",
    )
});

/// Takes a worker out. Key: all workers. Argument: its name.
static LEAVE: LazyLock<Script> = LazyLock::new(|| Script::new("return redis.call('HDEL', KEYS[1], ARGV[1])"));

/// What another worker tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Other {
    /// Queues whose messages come to it.
    active: usize,
    /// Bots in whose line it is.
    bots: BTreeSet<String>,
}

impl Other {
    /// Reads `<active> <bot> <bot> …`.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let active = words.next()?.parse().ok()?;
        Some(Self { active, bots: words.map(str::to_owned).collect() })
    }
}

/// Shares out until the order to stop.
pub async fn share_out(seats: Vec<Arc<Seat>>, redis: Arc<RedisLink>, stop: CancellationToken) {
    let (key, worker) = (redis.key("workers", "all"), uuid::Uuid::new_v4().simple().to_string());
    let milliseconds = u64::try_from(COUNTS_FOR.as_millis()).unwrap_or(u64::MAX);
    let mut clock = tokio::time::interval(LOOK_EVERY);
    let mut too_much = 0;
    while stop.run_until_cancelled(clock.tick()).await.is_some() {
        let mine = seats.iter().filter(|seat| seat.is_active()).collect::<Vec<_>>();
        metrics::gauge!(names::BOTS_ACTIVE).set(f64::from(u32::try_from(mine.len()).unwrap_or(u32::MAX)));
        let lines = seats.iter().filter(|seat| seat.is_taken()).map(|seat| seat.bot.as_str());
        let what = std::iter::once(mine.len().to_string().as_str()).chain(lines).collect::<Vec<_>>().join(" ");
        let told = redis.call::<Vec<String>>(TELL.on(&[&key]).arg(&worker).arg(what).arg(milliseconds)).await;
        let others = told.unwrap_or_default().iter().filter_map(|text| Other::parse(text)).collect::<Vec<_>>();
        let waiting = waiting(mine.len(), &others);
        let Some(seat) = mine.iter().find(|seat| !seat.is_held() && waiting.contains(seat.bot.as_str())) else {
            too_much = 0;
            continue;
        };
        too_much += 1;
        if too_much == PATIENCE {
            too_much = 0;
            tracing::info!(
                bot = seat.bot,
                "this worker has more than its share of the bots; another may have this one"
            );
            seat.ask_to_leave();
        }
    }
    // Without Redis it is forgotten by itself.
    let _ = redis.call::<i64>(LEAVE.on(&[&key]).arg(&worker)).await;
}

/// The bots in whose line a worker with less than its share waits, where we have more than ours.
fn waiting(mine: usize, others: &[Other]) -> BTreeSet<&str> {
    let all = mine + others.iter().map(|other| other.active).sum::<usize>();
    let share = all.div_ceil(others.len() + 1);
    if mine <= share {
        return BTreeSet::new();
    }
    let poorer = others.iter().filter(|other| other.active < share);
    poorer.flat_map(|other| other.bots.iter().map(String::as_str)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn others(active: &[usize]) -> Vec<Other> {
        active.iter().map(|active| Other::parse(&format!("{active} bot")).unwrap()).collect()
    }

    #[test]
    fn the_share_is_rounded_up_so_that_nothing_moves_for_nothing() {
        let holds_too_much = |mine, active: &[usize]| !waiting(mine, &others(active)).is_empty();
        assert!(!holds_too_much(5, &[]), "alone");
        assert!(holds_too_much(2, &[0]));
        assert!(!holds_too_much(1, &[0]));
        assert!(!holds_too_much(2, &[1]));
        assert!(holds_too_much(3, &[1]));
        assert!(!holds_too_much(2, &[2, 0]), "four on three: two is a share, though one has none");
        assert!(holds_too_much(4, &[0, 0, 0]));
    }

    #[test]
    fn what_nobody_waits_for_is_kept() {
        let elsewhere = Other::parse("0 another-bot").unwrap();
        assert_eq!(waiting(4, &[elsewhere]), BTreeSet::from(["another-bot"]));
        assert!(waiting(4, &[Other::parse("0").unwrap()]).is_empty());
        assert_eq!(Other::parse("many bot"), None);
    }

    /// However many workers and queues: it comes to rest, with nobody over the share.
    #[test]
    fn letting_go_comes_to_rest() {
        for workers in 1..7_usize {
            for queues in 0..20_usize {
                // Each queue has its line of workers; the first has it.
                let mut lines = vec![(0..workers).collect::<VecDeque<_>>(); queues];
                let count = |lines: &[VecDeque<usize>], worker| lines.iter().filter(|line| line[0] == worker).count();
                let richest = |lines: &[VecDeque<usize>]| {
                    (0..workers).find(|worker| {
                        let active = (0..workers).filter(|other| other != worker).map(|other| count(lines, other));
                        !waiting(count(lines, *worker), &others(&active.collect::<Vec<_>>())).is_empty()
                    })
                };
                let mut moves = 0;
                while let Some(worker) = richest(&lines) {
                    lines.iter_mut().find(|line| line[0] == worker).unwrap().rotate_left(1);
                    moves += 1;
                    assert!(moves <= queues * workers, "{queues} queues on {workers} workers");
                }
            }
        }
    }
}
