//! Places that are asked for one by one, reserved together: who asks while a question is under way waits for its end,
//! and then one asks for all who wait.
//!
//! The second request of a batch (a read, then the write) asks for its place alone; a round trip for each would be
//! the same question many times at once. Who asked first is served first. What a question reserved for somebody who
//! went away meanwhile is the next one's.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::meter::{Meter, Place};

/// Those who wait for one place each.
#[derive(Debug, Default)]
pub(super) struct Joint {
    waiting: Mutex<VecDeque<oneshot::Sender<Place>>>,
    /// Held by the one who asks.
    asking: tokio::sync::Mutex<()>,
}

impl Joint {
    /// Reserves the next place. Cancelling it is safe.
    pub async fn reserve(&self, meter: &Meter) -> Place {
        let (sender, mut place) = oneshot::channel();
        self.waiting().push_back(sender);
        loop {
            tokio::select! {
                biased;
                Ok(place) = &mut place => return place,
                _asking = self.asking.lock() => {
                    let wanted = self.wanted();
                    self.hand_out(meter.reserve(wanted).await);
                }
            }
        }
    }

    /// How many wait; whoever asks is one of them.
    fn wanted(&self) -> u32 {
        let mut waiting = self.waiting();
        waiting.retain(|sender| !sender.is_closed());
        u32::try_from(waiting.len()).unwrap_or(u32::MAX).max(1)
    }

    fn hand_out(&self, reserved: Place) {
        let mut waiting = self.waiting();
        let (each, mut left) = match reserved {
            Place::At(instant, places) => (Place::At(instant, 1), places),
            paused @ Place::PausedUntil(_) => (paused, u32::MAX),
        };
        while left > 0
            && let Some(sender) = waiting.pop_front()
        {
            left -= u32::from(sender.send(each).is_ok());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<oneshot::Sender<Place>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use tokio::time::Instant;

    use super::*;
    use crate::limiter::gcra::Budget;
    use crate::redis_link::RedisLink;

    fn meter(per_second: u32, burst: u32) -> Meter {
        Meter::new(Budget::new(per_second, burst), String::new(), String::new(), RedisLink::absent())
    }

    #[tokio::test]
    async fn as_many_places_come_as_are_asked_for_and_no_earlier_than_alone() {
        let (joint, meter, start) = (Joint::default(), meter(100, 3), Instant::now());
        let places = join_all((0..10).map(|_| joint.reserve(&meter))).await;
        let mut times = places.into_iter().map(|place| match place {
            Place::At(instant, 1) => instant.saturating_duration_since(start),
            other => panic!("{other:?}"),
        });
        for place in 0..10_u64 {
            let alone = Duration::from_millis(10 * place.saturating_sub(2));
            assert!(times.next().unwrap() >= alone, "place {place}");
        }
    }

    #[tokio::test]
    async fn who_went_away_is_not_served_and_keeps_nobody_waiting() {
        let (joint, meter) = (Arc::new(Joint::default()), meter(1_000, 1_000));
        let asking = joint.asking.lock().await;
        let mut gone = Box::pin(joint.reserve(&meter));
        assert!((&mut gone).now_or_never().is_none());
        let mut stays = Box::pin(joint.reserve(&meter));
        assert!((&mut stays).now_or_never().is_none());
        drop(gone);
        assert_eq!(joint.wanted(), 1);
        drop(asking);
        assert!(matches!(stays.await, Place::At(_, 1)));
        assert!(joint.waiting().is_empty());
    }

    #[tokio::test]
    async fn a_place_for_somebody_who_went_away_is_the_next_one_s_and_a_pause_is_everybody_s() {
        let joint = Joint::default();
        let mut askers = (0..4).map(|_| oneshot::channel()).collect::<Vec<_>>();
        let (senders, mut receivers): (Vec<_>, Vec<_>) = askers.drain(..).unzip();
        joint.waiting().extend(senders);
        drop(receivers.remove(0));
        let now = Instant::now();
        joint.hand_out(Place::At(now, 1));
        assert_eq!(receivers[0].try_recv(), Ok(Place::At(now, 1)));
        joint.hand_out(Place::PausedUntil(now));
        assert!(receivers[1..].iter_mut().all(|receiver| receiver.try_recv() == Ok(Place::PausedUntil(now))));
    }
}
