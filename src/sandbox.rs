//! The sandbox: a simulated bot platform, stateful and faulty on request, that speaks both dialects on one port.
//!
//! Much rests on it: what the worker promises is tested against this model, so it keeps to `context-v1` and
//! `cognigy-v2` as closely as is known, can fail in every way that a network and a platform can, and keeps a history by
//! which a checker can judge. It shares no code with the worker, so that a mistake is not made twice in the same way.
//!
//! ```text
//! server ─▶ dispatch ─▶ context_v1 | cognigy_v2 | token ─▶ platform (state, history) ─▶ answer
//!    │          └ faults before and after                         ▲
//!    └▶ control  (/_sandbox/…)                    second_writer ──┘
//! ```
//!
//! Tests start it in their own process ([`start`]); the demo and operators as `context-injector sandbox`.

mod answer;
mod args;
mod cognigy_v2;
mod context_v1;
mod control;
mod dispatch;
mod exchange;
pub mod faults;
pub mod history;
mod limits;
mod numbers;
mod platform;
pub mod second_writer;
mod server;
pub mod settings;
pub mod state;
mod state_faults;
pub mod stats;
mod token;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use tokio::net::TcpListener;

pub use self::args::{Args, run};
pub use self::faults::{Faults, Kind, Only, Operation, Rule};
pub use self::history::{Answer, Entry, Event, Folded, Writer, fold};
pub use self::second_writer::{Conversations, SecondWriter};
pub use self::settings::{ConflictStatus, RetryAfter, Settings, V2Merge, V2Settings, VersionForm};
pub use self::state::{Changed, Context, Scope};
pub use self::stats::Counts;

use self::platform::Platform;

/// A running sandbox. It stops when this is dropped; [`Sandbox::stop`] also waits until it has stopped.
pub struct Sandbox {
    platform: Arc<Platform>,
    address: SocketAddr,
}

/// A conversation as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct ConversationView {
    /// The version as a count.
    pub version: u64,
    /// The version as clients see it.
    pub shown_version: String,
    /// The variables.
    pub context: Arc<Context>,
}

impl ConversationView {
    /// The value of a variable.
    pub fn get(&self, scope: Scope, key: &str) -> Option<&Value> {
        self.context.get(&(Arc::from(key), scope)).map(Arc::as_ref)
    }

    /// The variables as a read shows them.
    pub fn as_json(&self) -> Value {
        context_v1::as_json(&self.context)
    }
}

/// Starts a sandbox in this process.
///
/// # Errors
/// The address cannot be bound, or `conversation_id_pattern` is no regular expression.
pub async fn start(settings: Settings) -> io::Result<Sandbox> {
    let listener = TcpListener::bind(settings.listen).await?;
    let address = listener.local_addr()?;
    let platform = Platform::new(settings).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("conversation_id_pattern is no regular expression: {error}"),
        )
    })?;
    platform.tasks.spawn(server::accept(Arc::clone(&platform), listener));
    platform.tasks.spawn(second_writer::run(Arc::clone(&platform)));
    Ok(Sandbox { platform, address })
}

impl Sandbox {
    /// The base URL, without a path: `http://127.0.0.1:41234`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The client id that the token endpoints accept.
    pub fn client_id(&self) -> &str {
        &self.platform.settings.client_id
    }

    /// The client secret that the token endpoints accept.
    pub fn client_secret(&self) -> &str {
        &self.platform.settings.client_secret
    }

    /// The key that `cognigy-v2` accepts.
    pub fn api_key(&self) -> &str {
        &self.platform.settings.api_key
    }

    /// A conversation, where it exists; also `session/<session>/<user>` and `profile/<profile>` of `cognigy-v2`.
    pub fn conversation(&self, id: &str) -> Option<ConversationView> {
        let world = self.platform.world();
        let conversation = world.get(id)?;
        Some(ConversationView {
            version: conversation.version,
            shown_version: world.versions().shown(id, conversation.version),
            context: Arc::clone(&conversation.context),
        })
    }

    /// Ids and versions of all conversations, in the order in which they came into being.
    pub fn conversations(&self) -> Vec<(Arc<str>, u64)> {
        self.platform.world().list()
    }

    /// Sets the whole context of a conversation, as somebody else would: the version moves on.
    pub fn seed<'a>(&self, id: &str, variables: impl IntoIterator<Item = (Scope, &'a str, Value)>) {
        let context = variables.into_iter().map(|(scope, key, value)| ((Arc::from(key), scope), Arc::new(value)));
        self.platform.world().put(id, context.collect(), &control::origin());
    }

    /// Changes single variables (`null` removes), as somebody else would: the version moves on.
    pub fn change<'a>(&self, id: &str, variables: impl IntoIterator<Item = (Scope, &'a str, Value)>) {
        let mut world = self.platform.world();
        let mut context = world.get(id).map(|now| Context::clone(&now.context)).unwrap_or_default();
        for (scope, key, value) in variables {
            if value.is_null() {
                context.remove(&(Arc::from(key), scope));
            } else {
                context.insert((Arc::from(key), scope), Arc::new(value));
            }
        }
        world.put(id, context, &control::origin());
    }

    /// Clears a conversation; its version starts again. False where there is none.
    pub fn reset_conversation(&self, id: &str) -> bool {
        self.platform.world().reset(id, &control::origin())
    }

    /// Loads the state `back` writes ago again, version and all. False where there is none.
    pub fn rollback_conversation(&self, id: &str, back: usize) -> bool {
        self.platform.world().rollback(id, back, &control::origin())
    }

    /// Deletes a conversation: requests get 404 from now on. False where there is none.
    pub fn delete_conversation(&self, id: &str) -> bool {
        self.platform.world().delete(id, &control::origin())
    }

    /// Replaces all faults; their counters start again.
    pub fn set_faults(&self, faults: Faults) {
        self.platform.set_faults(faults);
    }

    /// Replaces what the second writer does.
    pub fn set_second_writer(&self, settings: SecondWriter) {
        second_writer::change(&self.platform, settings);
    }

    /// Ends all tokens.
    pub fn revoke_tokens(&self) {
        self.platform.tokens.revoke();
    }

    /// The whole history that is kept.
    pub fn history(&self) -> Vec<Entry> {
        self.history_after(0, usize::MAX).0
    }

    /// Up to `limit` entries after a position, and the position to go on from.
    pub fn history_after(&self, after: u64, limit: usize) -> (Vec<Entry>, u64) {
        self.platform.world().history.after(after, limit)
    }

    /// The counts.
    pub fn stats(&self) -> Counts {
        control::counts(&self.platform)
    }

    /// Compares the history, dropped entries included, with the state.
    ///
    /// # Errors
    /// A sentence that names the first difference: a history whose links do not meet, a conversation whose variables
    /// or version are not what its entries add up to.
    pub fn check_history(&self) -> Result<(), String> {
        let (folded, state) = {
            let world = self.platform.world();
            let there = |id: &Arc<str>| Some((Arc::clone(id), world.get(id)?.clone()));
            (world.history.folded()?, world.ids().iter().filter_map(there).collect::<Vec<_>>())
        };
        for (id, conversation) in &state {
            let (version, context) = match folded.get(id) {
                Some(folded) if !folded.exists => return Err(format!("{id} exists, the history says it was deleted")),
                Some(folded) => (folded.version, folded.context.clone()),
                None => (1, Context::new()),
            };
            if version != conversation.version {
                let is = conversation.version;
                return Err(format!("{id} is at version {is}, its history ends at {version}"));
            }
            if context != *conversation.context {
                return Err(format!("{id} has other variables than its history adds up to"));
            }
        }
        let gone = folded.iter().find(|(id, folded)| folded.exists && !state.iter().any(|(there, _)| there == *id));
        gone.map_or(Ok(()), |(id, _)| Err(format!("{id} is in the history and does not exist")))
    }

    /// Stops it and waits until its last task has ended.
    pub async fn stop(self) {
        self.platform.stop.cancel();
        self.platform.tasks.close();
        self.platform.tasks.wait().await;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.platform.stop.cancel();
        self.platform.tasks.close();
    }
}
