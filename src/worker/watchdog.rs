//! Notices that work waits and nothing moves: a consumer that the broker has forgotten, a batch that never ends. First
//! the channel is made anew, then the process ends, so that whoever looks after it starts another one.
//!
//! Pure. What counts:
//! - Progress is a new message that came, a batch that ended, or a queue that became shorter: then another worker is at
//!   it, and we stand by.
//! - A bot that is held on purpose (breaker, pause) does not stand still, nor does one without work.
//! - Only a worker that had the queue ends itself. One that stands by cannot tell a stuck queue from one whose worker
//!   holds its bot on purpose; it makes its channel anew at the most, which costs its place in the line of standbys.

use std::time::Duration;

use tokio::time::Instant;

/// How long nothing may move while work waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Until the channel is made anew.
    pub rebuild_after: Duration,
    /// Until the process ends.
    pub exit_after: Duration,
}

/// What there is to do, as far as this worker sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Messages in the queue.
    pub ready: u32,
    /// Jobs in this process.
    pub held: usize,
    /// Whether the bot is held on purpose.
    pub on_purpose: bool,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// Make the channel anew.
    Rebuild,
    /// End the process.
    Exit,
}

/// The watchdog of one queue.
#[derive(Debug)]
pub struct Watchdog {
    limits: Limits,
    moved: Instant,
    rebuilt: Instant,
    ready: u32,
    /// Whether the last that moved the queue was this worker.
    ours: bool,
}

impl Watchdog {
    /// A watchdog that begins to count now.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self { limits, moved: now, rebuilt: now, ready: 0, ours: false }
    }

    /// A batch ended.
    pub fn progress(&mut self, now: Instant) {
        self.moved = now;
        self.ours = true;
    }

    /// A message came. One that came before is no progress: a new channel brings what the old one held.
    pub fn message(&mut self, redelivered: bool, now: Instant) {
        self.ours = true;
        if !redelivered {
            self.moved = now;
        }
    }

    /// There was no channel for a while, and now there is.
    pub fn begin_anew(&mut self, now: Instant) {
        self.moved = now;
        self.rebuilt = now;
    }

    /// What is to be done; to be asked every few seconds.
    pub fn look(&mut self, waiting: Waiting, now: Instant) -> Option<Alarm> {
        let shorter = waiting.ready < self.ready;
        self.ready = waiting.ready;
        if shorter && waiting.held == 0 && now - self.moved > self.limits.rebuild_after / 2 {
            self.ours = false;
        }
        if shorter || waiting.on_purpose || (waiting.ready == 0 && waiting.held == 0) {
            self.moved = now;
            return None;
        }
        if self.ours && now - self.moved >= self.limits.exit_after {
            return Some(Alarm::Exit);
        }
        if now - self.moved.max(self.rebuilt) >= self.limits.rebuild_after {
            self.rebuilt = now;
            return Some(Alarm::Rebuild);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { rebuild_after: Duration::from_secs(60), exit_after: Duration::from_secs(180) };
    const STUCK: Waiting = Waiting { ready: 7, held: 0, on_purpose: false };

    /// The alarms of `seconds` with these facts, one look a second.
    fn alarms(
        watchdog: &mut Watchdog,
        start: Instant,
        seconds: std::ops::Range<u64>,
        waiting: Waiting,
    ) -> Vec<(u64, Alarm)> {
        let looks = seconds.map(|second| (second, watchdog.look(waiting, start + Duration::from_secs(second))));
        looks.filter_map(|(second, alarm)| Some((second, alarm?))).collect()
    }

    #[test]
    fn the_channel_is_made_anew_each_minute_and_after_three_the_process_ends() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMITS, start);
        watchdog.progress(start);
        assert_eq!(alarms(&mut watchdog, start, 1..61, STUCK), [(60, Alarm::Rebuild)]);
        watchdog.message(true, start + Duration::from_secs(61));
        assert_eq!(alarms(&mut watchdog, start, 62..181, STUCK), [(120, Alarm::Rebuild), (180, Alarm::Exit)]);
    }

    #[test]
    fn a_batch_that_never_ends_is_noticed_without_anything_in_the_queue() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMITS, start);
        watchdog.progress(start);
        let waiting = Waiting { ready: 0, held: 3, on_purpose: false };
        assert_eq!(alarms(&mut watchdog, start, 1..100, waiting), [(60, Alarm::Rebuild)]);
    }

    #[test]
    fn nothing_is_wrong_with_no_work_or_with_a_bot_that_is_held() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMITS, start);
        watchdog.progress(start);
        let idle = Waiting { ready: 0, held: 0, on_purpose: false };
        assert_eq!(alarms(&mut watchdog, start, 1..500, idle), []);
        assert_eq!(alarms(&mut watchdog, start, 500..999, Waiting { on_purpose: true, ..STUCK }), []);
        assert_eq!(alarms(&mut watchdog, start, 999..1050, STUCK), [], "and the time begins after it");
    }

    #[test]
    fn a_queue_that_becomes_longer_does_not_move_and_one_that_becomes_shorter_does() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMITS, start);
        watchdog.progress(start);
        let at = |second| start + Duration::from_secs(second);
        for second in 1..60 {
            let ready = u32::try_from(second).unwrap();
            assert_eq!(watchdog.look(Waiting { ready, ..STUCK }, at(second)), None);
        }
        assert_eq!(watchdog.look(Waiting { ready: 60, ..STUCK }, at(60)), Some(Alarm::Rebuild));
        assert_eq!(watchdog.look(Waiting { ready: 59, ..STUCK }, at(61)), None);
        assert_eq!(alarms(&mut watchdog, start, 62..120, Waiting { ready: 59, ..STUCK }), []);
    }

    #[test]
    fn a_standby_never_ends_itself() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMITS, start);
        let at_most = |alarms: Vec<(u64, Alarm)>| alarms.iter().all(|(_, alarm)| *alarm == Alarm::Rebuild);
        assert!(at_most(alarms(&mut watchdog, start, 1..1000, STUCK)), "it never had the queue");
        watchdog.progress(start + Duration::from_secs(1000));
        assert_eq!(watchdog.look(Waiting { ready: 6, ..STUCK }, start + Duration::from_secs(1050)), None);
        assert!(at_most(alarms(&mut watchdog, start, 1051..2000, Waiting { ready: 6, ..STUCK })), "another has it now");
    }
}
