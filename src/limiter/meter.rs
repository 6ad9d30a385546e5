//! One budget, shared by all workers through Redis and kept here while Redis is away. Rules:
//! - Redis' clock counts there, the process' own monotonic clock here; what crosses is a length of time.
//! - Changing over does not add budget: what one side has reserved ahead is carried to the other.
//!
//! Places that were reserved by a caller who went away are lost.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::gcra::{Budget, Gcra};
use crate::redis_link::{RedisLink, Script};

/// How far apart places may be that are taken together: no timer here is finer.
const TOGETHER: Duration = Duration::from_millis(2);

/// [`Gcra::reserve_some`] on Redis' clock. Keys: arrival time, end of the pause. Arguments: interval, tolerance, what
/// is reserved ahead elsewhere, places wanted, how far apart. Returns {0, places, wait, ahead} or, during a pause,
/// {1, 0, its rest, 0}.
static RESERVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local pause = redis.call('PTTL', KEYS[2])
if pause > 0 then return {1, 0, pause * 1000, 0} end
local interval, tolerance, ahead = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local wanted, together = tonumber(ARGV[4]), tonumber(ARGV[5])
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now + ahead)
local within = math.floor((now + together + tolerance - arrival) / interval) + 1
local places = math.max(1, math.min(wanted, within))
local wait = math.max(0, arrival + (places - 1) * interval - tolerance - now)
arrival = arrival + places * interval
redis.call('SET', KEYS[1], string.format('%.0f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1)
return {0, places, wait, arrival - now}
",
    )
});

/// One budget.
#[derive(Debug)]
pub struct Meter {
    budget: Budget,
    redis: Arc<RedisLink>,
    arrival_key: String,
    pause_key: String,
    epoch: Instant,
    local: Mutex<Local>,
}

#[derive(Debug, Default)]
struct Local {
    gcra: Gcra,
    /// Whether the last place was reserved here, so that Redis does not know of it.
    apart: bool,
}

/// What a reservation comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// So many requests may go then.
    At(Instant, u32),
    /// No place: the budget is paused until then.
    PausedUntil(Instant),
}

impl Meter {
    /// A budget by its keys in Redis: where it stands, and whether it is paused.
    #[must_use]
    pub fn new(budget: Budget, arrival_key: String, pause_key: String, redis: Arc<RedisLink>) -> Self {
        Self { budget, redis, arrival_key, pause_key, epoch: Instant::now(), local: Mutex::default() }
    }

    /// Reserves the next places: at least one, and of `wanted` as many as may go at nearly the same time.
    pub async fn reserve(&self, wanted: u32) -> Place {
        let carried = {
            let local = self.local();
            if local.apart { local.gcra.ahead(self.micros(Instant::now())) } else { 0 }
        };
        let mut script = RESERVE.on(&[&self.arrival_key, &self.pause_key]);
        script.arg(self.budget.interval()).arg(self.budget.tolerance()).arg(carried);
        script.arg(wanted).arg(micros(TOGETHER));
        let answer = self.redis.call::<(u8, u32, u64, u64)>(&script).await;
        // Redis looked at its clock before now: counted from now, no request goes too early.
        let now = Instant::now();
        let mut local = self.local();
        match answer {
            Ok((0, places, wait, ahead)) => {
                local.gcra.at_least(ahead, self.micros(now));
                local.apart = false;
                Place::At(now + Duration::from_micros(wait), places)
            }
            Ok((_, _, rest, _)) => Place::PausedUntil(now + Duration::from_micros(rest)),
            Err(_) => {
                local.apart = true;
                let (wanted, now_here) = (u64::from(wanted), self.micros(now));
                let (places, wait) = local.gcra.reserve_some(self.budget, now_here, wanted, micros(TOGETHER));
                Place::At(now + Duration::from_micros(wait), u32::try_from(places).unwrap_or(1))
            }
        }
    }

    /// How many requests may go at once now, as far as the last answer tells.
    #[must_use]
    pub fn room(&self) -> u32 {
        let now = self.micros(Instant::now());
        u32::try_from(self.local().gcra.room(self.budget, now)).unwrap_or(u32::MAX)
    }

    fn micros(&self, instant: Instant) -> u64 {
        micros(instant.saturating_duration_since(self.epoch))
    }

    fn local(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
