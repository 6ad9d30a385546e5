//! The bot's budget of requests, shared by all workers: the generic cell rate algorithm (GCRA), in Redis and, while
//! Redis is away, in this process. The pause that a target asks for is kept in the same place, so that one round
//! trip per request tells both.
//!
//! A caller *reserves* the next free place in time and sleeps until then, so callers are served in order and ask
//! once. Rules:
//! - Redis' clock counts there, the process' own monotonic clock here; what crosses is a length of time.
//! - Changing over does not add budget: what one side has reserved ahead is carried to the other.
//! - The interval is rounded up to whole microseconds, so the rate is never above the setting.
//!
//! A place that was reserved by a caller who went away is lost; that costs one request at the most.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use redis::Script;
use tokio::time::{Instant, sleep_until};

use crate::config;
use crate::redis_link::RedisLink;

/// A budget: one request per interval, a few more at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Microseconds between requests.
    interval: u64,
    /// Microseconds by which requests may come early.
    tolerance: u64,
}

impl Budget {
    /// The budget of `per_second` requests with `burst` of them at once.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = 1_000_000_u64.div_ceil(u64::from(per_second.max(1)));
        Self { interval, tolerance: interval * u64::from(burst.max(1) - 1) }
    }
}

/// Where the algorithm stands, in microseconds on one clock: the time at which the next request would come if all
/// came evenly ("theoretical arrival time").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gcra {
    arrival: u64,
}

impl Gcra {
    /// Reserves the next place and tells how many microseconds after `now` it is.
    #[must_use]
    pub fn reserve(&mut self, budget: Budget, now: u64) -> u64 {
        let arrival = self.arrival.max(now);
        self.arrival = arrival + budget.interval;
        arrival.saturating_sub(budget.tolerance).saturating_sub(now)
    }

    /// How far ahead of `now` places are reserved, in microseconds.
    #[must_use]
    pub fn ahead(&self, now: u64) -> u64 {
        self.arrival.saturating_sub(now)
    }

    /// Makes sure that places are reserved for `ahead` microseconds from `now`.
    pub fn at_least(&mut self, ahead: u64, now: u64) {
        self.arrival = self.arrival.max(now + ahead);
    }
}

/// The same algorithm on Redis' clock. Keys: arrival time, end of the pause. Arguments: interval, tolerance, what
/// is reserved ahead elsewhere. Returns {0, wait, ahead} or, during a pause, {1, its rest, 0}.
static RESERVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local pause = redis.call('PTTL', KEYS[2])
if pause > 0 then return {1, pause * 1000, 0} end
local interval, tolerance, ahead = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now + ahead)
local wait = math.max(0, arrival - tolerance - now)
arrival = arrival + interval
redis.call('SET', KEYS[1], string.format('%.0f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1)
return {0, wait, arrival - now}
",
    )
});

/// Lengthens the pause, never shortens it. Key: end of the pause. Argument: milliseconds from now.
static PAUSE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], '1', 'PX', ARGV[1]) end
return 0
",
    )
});

/// The limiter of one bot.
#[derive(Debug)]
pub struct Limiter {
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
    paused_until: Option<Instant>,
}

enum Place {
    At(Instant),
    Paused,
}

impl Limiter {
    /// The limiter of a bot.
    #[must_use]
    pub fn new(bot: &config::Bot, redis: Arc<RedisLink>) -> Self {
        Self {
            budget: Budget::new(bot.requests_per_second, bot.burst),
            arrival_key: redis.key("limit", &bot.name),
            pause_key: redis.key("pause", &bot.name),
            redis,
            epoch: Instant::now(),
            local: Mutex::default(),
        }
    }

    /// Waits until a request may be sent, and tells how long that took. Waits out pauses.
    pub async fn acquire(&self) -> Duration {
        let asked = Instant::now();
        loop {
            if let Some(until) = self.paused_until() {
                sleep_until(until).await;
                continue;
            }
            if let Place::At(instant) = self.reserve().await {
                if Instant::now() < instant {
                    sleep_until(instant).await;
                }
                // Somebody may have been told to pause while we slept.
                if self.paused_until().is_none() {
                    return asked.elapsed();
                }
            }
        }
    }

    /// Lets no request of the bot go for that long, on any worker that can reach Redis.
    pub async fn pause(&self, time: Duration) {
        self.pause_here(time);
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, 86_400_000);
        // Without Redis the others find out by a 429 of their own.
        let _ = self.redis.call::<i64>(PAUSE.key(&self.pause_key).arg(milliseconds)).await;
    }

    /// Lets no request of the bot go for that long, on this worker.
    pub fn pause_here(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut local = self.local();
        local.paused_until = Some(local.paused_until.map_or(until, |known| known.max(until)));
    }

    /// The end of the pause as far as this worker knows; `None`: there is none.
    #[must_use]
    pub fn paused_until(&self) -> Option<Instant> {
        let mut local = self.local();
        local.paused_until = local.paused_until.filter(|until| Instant::now() < *until);
        local.paused_until
    }

    async fn reserve(&self) -> Place {
        let carried = {
            let local = self.local();
            if local.apart { local.gcra.ahead(self.micros(Instant::now())) } else { 0 }
        };
        let mut script = RESERVE.key(&self.arrival_key);
        script.key(&self.pause_key).arg(self.budget.interval).arg(self.budget.tolerance).arg(carried);
        let answer = self.redis.call::<(u8, u64, u64)>(&script).await;
        // Redis looked at its clock before now: counted from now, no request goes too early.
        let now = Instant::now();
        let mut local = self.local();
        match answer {
            Ok((0, wait, ahead)) => {
                local.gcra.at_least(ahead, self.micros(now));
                local.apart = false;
                Place::At(now + Duration::from_micros(wait))
            }
            Ok((_, rest, _)) => {
                let until = now + Duration::from_micros(rest);
                local.paused_until = Some(local.paused_until.map_or(until, |known| known.max(until)));
                Place::Paused
            }
            Err(_) => {
                local.apart = true;
                Place::At(now + Duration::from_micros(local.gcra.reserve(self.budget, self.micros(now))))
            }
        }
    }

    fn micros(&self, instant: Instant) -> u64 {
        u64::try_from(instant.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }

    fn local(&self) -> std::sync::MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The instants at which requests go that are asked for at `asked`.
    fn served(budget: Budget, asked: &[u64]) -> Vec<u64> {
        let mut gcra = Gcra::default();
        asked.iter().map(|now| now + gcra.reserve(budget, *now)).collect()
    }

    #[test]
    fn after_a_rest_the_burst_goes_at_once_and_the_others_evenly() {
        let budget = Budget::new(100, 5);
        let at = served(budget, &[1_000_000; 8]).into_iter().map(|at| at - 1_000_000).collect::<Vec<_>>();
        assert_eq!(at, [0, 0, 0, 0, 0, 10_000, 20_000, 30_000]);
    }

    #[test]
    fn a_rate_that_does_not_divide_a_second_is_rounded_down() {
        assert_eq!(Budget::new(3, 1).interval, 333_334);
        assert_eq!(Budget::new(0, 0), Budget::new(1, 1));
    }

    proptest! {
        #[test]
        fn no_window_has_more_than_the_burst_and_its_share(
            per_second in 1_u32..2_000, burst in 1_u32..20,
            gaps in proptest::collection::vec(0_u64..50_000, 1..300), window in 1_u64..3_000_000,
        ) {
            let mut now = 0;
            let asked = gaps.iter().map(|gap| { now += gap; now }).collect::<Vec<_>>();
            let at = served(Budget::new(per_second, burst), &asked);
            for (index, start) in at.iter().enumerate() {
                let inside = at[index..].iter().take_while(|instant| **instant < start + window).count() as u64;
                let share = window.div_ceil(Budget::new(per_second, burst).interval);
                prop_assert!(inside <= u64::from(burst) + share, "{inside} requests in {window} µs");
            }
        }

        #[test]
        fn callers_are_served_in_order_and_nobody_waits_while_there_is_budget(
            gaps in proptest::collection::vec(0_u64..50_000, 1..300),
        ) {
            let budget = Budget::new(100, 5);
            let mut now = 0;
            let asked = gaps.iter().map(|gap| { now += gap; now }).collect::<Vec<_>>();
            let at = served(budget, &asked);
            prop_assert!(at.is_sorted());
            // Work conserving: who waits goes exactly one interval after somebody before.
            for (index, (asked, at_)) in asked.iter().zip(&at).enumerate() {
                if at_ > asked {
                    prop_assert!(index >= 5 && *at_ - at[index - 5] <= 5 * budget.interval);
                }
            }
        }
    }
}
