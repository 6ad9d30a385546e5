//! RabbitMQ: one connection that is re-made for ever, confirmed publishing, consuming with manual settlement,
//! and the exchanges and queues that all of it needs.
//!
//! Rules:
//! - Nothing is acked whose successor was not confirmed. [`Publisher::publish`] resolves on the confirm and on
//!   nothing else; a message that nobody takes (a *return*) is an error.
//! - lapin's own recovery stays off: [`Broker`] owns the loop, and whoever holds a channel learns of its end
//!   ([`Subscription::next`] gives `None`) and asks for the next connection.
//! - Addresses are shown as scheme and host, message bodies never.

mod acks;
mod connection;
mod consumer;
mod message;
mod publisher;
pub mod topology;
mod wire;

pub use connection::{Broker, State, Unreachable};
pub use consumer::{Incoming, Offset, Options, Receipt, SettleError, Subscription, subscribe};
pub use message::{Message, header};
pub use publisher::{Confirm, Mandatory, PublishError, Publisher};
