//! The intake's permits: those that the bot has at hand, else bought for all lanes that are ready in one go, one purchase
//! at a time.

use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::bot::{Bot, Permit};

/// Permits at hand, and those that are being bought.
pub struct Permits {
    bot: Arc<Bot>,
    at_hand: Vec<Permit>,
    buying: Option<BoxFuture<'static, Vec<Permit>>>,
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at_hand, buying) = (self.at_hand.len(), self.buying.is_some());
        f.debug_struct("Permits").field("at_hand", &at_hand).field("buying", &buying).finish_non_exhaustive()
    }
}

impl Permits {
    /// None yet.
    #[must_use]
    pub fn new(bot: Arc<Bot>) -> Self {
        Self { bot, at_hand: Vec::new(), buying: None }
    }

    /// A permit that is good; where there is none at hand, `wanted` of them are bought, and [`Self::bought`] tells when.
    pub fn take(&mut self, wanted: usize) -> Option<Permit> {
        while let Some(permit) = self.at_hand.pop() {
            if permit.is_fresh() {
                return Some(permit);
            }
        }
        if let Some(permit) = self.bot.permit_at_hand() {
            return Some(permit);
        }
        if self.buying.is_none() {
            let bot = Arc::clone(&self.bot);
            self.buying = Some(async move { bot.permits(wanted).await }.boxed());
        }
        None
    }

    /// Waits for the end of the purchase under way; for ever where there is none. Cancelling it is safe.
    pub async fn bought(&mut self) {
        match &mut self.buying {
            Some(buying) => self.at_hand = buying.await,
            None => std::future::pending().await,
        }
        self.buying = None;
    }

    /// Nobody needs those at hand now; they would be too old when somebody does.
    pub fn put_back(&mut self) {
        self.at_hand.clear();
    }

    /// Nothing is to be started.
    pub fn give_up(&mut self) {
        self.buying = None;
        self.at_hand.clear();
    }
}
