//! The order to stop, as a value: SIGTERM and SIGINT cancel a token, a second one ends the process at once.
//!
//! Whoever gets the token stops its intake, finishes what it holds and gives up loudly at its deadline; nothing
//! is cut off in the middle by the token itself.

use std::io::Write as _;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a process that was told twice to stop: 128 + SIGINT, as a shell has it.
pub const EXIT_NOW: i32 = 130;

/// The order to stop. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// Listens to SIGTERM and SIGINT from now on; needs a tokio runtime.
    ///
    /// # Errors
    /// The system does not let us listen.
    pub fn on_signals() -> std::io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::default();
        let token = shutdown.token.clone();
        tokio::spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                }
            };
            let name = next().await;
            tracing::info!("{name}: finishing what is under way; a second signal ends the process at once");
            token.cancel();
            let name = next().await;
            // Not through the log: it may be what hangs.
            let _ = writeln!(
                std::io::stderr(),
                "{name} again: ending now; what is unfinished is delivered again to the next worker"
            );
            std::process::exit(EXIT_NOW);
        });
        Ok(shutdown)
    }

    /// The token that is cancelled by the order to stop.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Gives the order from inside.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// Waits for the order.
    pub async fn ordered(&self) {
        self.token.cancelled().await;
    }
}
