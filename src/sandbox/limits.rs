//! The rate limits: a bucket of tokens for `context-v1`, a window for `cognigy-v2`, and the forms of `Retry-After`.
//! Pure: the clock is a parameter.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// An HTTP date ends with the year 9999; a century ahead is absurd enough.
const MAX_WAIT: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Admits `rate` requests per second, and `burst` at once.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: f64,
    burst: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket. A rate of 0 admits everything; a burst of 0 is one second's worth.
    pub fn new(rate: f64, burst: u32, now: Instant) -> Bucket {
        let burst = if burst == 0 { rate.max(1.0) } else { f64::from(burst) };
        Bucket { rate, burst, level: burst, at: now }
    }

    /// Admits one request, or says how long until the next one would be.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        if self.rate <= 0.0 {
            return Ok(());
        }
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.rate).min(self.burst);
        self.at = now;
        if self.level >= 1.0 {
            self.level -= 1.0;
            return Ok(());
        }
        Err(Duration::try_from_secs_f64((1.0 - self.level) / self.rate).unwrap_or(Duration::MAX))
    }
}

/// Admits a number of requests per fixed window.
#[derive(Debug)]
pub(super) struct Window {
    requests: u32,
    length: Duration,
    from: Instant,
    used: u32,
}

impl Window {
    /// A window that begins now. A number of 0 admits everything.
    pub fn new(requests: u32, length: Duration, now: Instant) -> Window {
        Window { requests, length, from: now, used: 0 }
    }

    /// Admits one request, or says how long until the next window.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        if self.requests == 0 {
            return Ok(());
        }
        let passed = now.saturating_duration_since(self.from);
        if passed >= self.length {
            self.from = now;
            self.used = 0;
        }
        if self.used < self.requests {
            self.used += 1;
            return Ok(());
        }
        Err(self.length.saturating_sub(passed))
    }
}

/// Whole seconds, at least one, as the header carries them.
pub(super) fn seconds(wait: Duration) -> String {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1).to_string()
}

/// The HTTP date at which the wait is over; a date has no fraction, so it is rounded up.
pub(super) fn date(now: SystemTime, wait: Duration) -> String {
    let at =
        now.checked_add(wait.min(MAX_WAIT)).and_then(|at| at.checked_add(Duration::from_millis(999))).unwrap_or(now);
    httpdate::fmt_http_date(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_admits_its_burst_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, 3, start);
        let admitted = (0..5).filter(|_| bucket.admit(start).is_ok()).count();
        assert_eq!(admitted, 3);
        let wait = bucket.admit(start).unwrap_err();
        assert!((90..=110).contains(&wait.as_millis()), "{wait:?}");
        assert!(bucket.admit(start + Duration::from_millis(101)).is_ok());
        assert!(bucket.admit(start + Duration::from_millis(101)).is_err());
    }

    #[test]
    fn a_rate_of_zero_admits_everything() {
        let start = Instant::now();
        let mut bucket = Bucket::new(0.0, 0, start);
        assert!((0..10_000).all(|_| bucket.admit(start).is_ok()));
    }

    #[test]
    fn a_window_opens_again_when_it_is_over() {
        let start = Instant::now();
        let mut window = Window::new(2, Duration::from_secs(300), start);
        assert!(window.admit(start).is_ok() && window.admit(start).is_ok());
        assert_eq!(window.admit(start + Duration::from_secs(100)).unwrap_err(), Duration::from_secs(200));
        assert!(window.admit(start + Duration::from_secs(300)).is_ok());
    }

    #[test]
    fn waits_are_rounded_up() {
        assert_eq!(seconds(Duration::from_millis(1)), "1");
        assert_eq!(seconds(Duration::from_millis(1001)), "2");
        let text = date(SystemTime::UNIX_EPOCH, Duration::from_millis(1500));
        assert!(httpdate::parse_http_date(&date(SystemTime::UNIX_EPOCH, Duration::MAX)).is_ok());
        assert_eq!(httpdate::parse_http_date(&text).ok(), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2)));
    }
}
