//! A child process that ends when we end, however we end.
//!
//! Why a shell between us and the child: a process that is killed with SIGKILL runs no code of its own any more,
//! so somebody else must end its children. The shell holds the reading end of a pipe whose writing end only we
//! have; when we are gone the pipe closes, and the shell kills what it started. (`PR_SET_PDEATHSIG` would need
//! unsafe code and is bound to a thread, not to a process.)
//!
//! Rules:
//! - Signals go through the same pipe, by name, one a line. The shell is the child's parent, so the child's
//!   process id cannot be given to another process before the shell has taken its end.
//! - The shell and its child are a process group of their own, so that Ctrl-C at a terminal reaches only us.
//! - Nothing here needs an async runtime to live on: a child may be shared by tests that have one runtime each.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::watch;

/// `$1` is the log, the rest the command. `HELPER` is a command that must run as long as the child does,
/// `CONTAINER` the container in which the child really runs, `SCRATCH` a directory to remove when we are gone.
const SCRIPT: &str = r#"
log=$1 helper=$HELPER container=$CONTAINER scratch=$SCRATCH
shift
unset SCRIPT HELPER CONTAINER SCRATCH
exec 3<&0 </dev/null
helped= ended=
hit() {
    case ${container:+in-}$1 in
    in-STOP) docker pause "$container" ;; # a signal would reach its first process alone
    in-CONT) docker unpause "$container" ;;
    in-*) docker kill -s "$1" "$container" ;;
    *) kill -s "$1" "$child" ;;
    esac >/dev/null 2>&1
}
trap '[ -n "$ended" ] || { hit KILL; [ -z "$container" ] || kill -s KILL "$child"; }' USR1
if [ -n "$helper" ]; then $helper 3<&- >/dev/null 2>&1 & helped=$!; fi
"$@" 3<&- >>"$log" 2>&1 &
child=$!
echo "$child"
(
    leave=
    while read -r word <&3; do
        case $word in leave) leave=1 ;; *) hit "$word" ;; esac
    done
    kill -s USR1 $$
    [ -n "$leave" ]
) >/dev/null 2>&1 &
watcher=$!
# A trap interrupts the wait; then the child is waited for again.
while wait "$child"; status=$?; [ "$status" -gt 128 ] && kill -0 "$child" 2>/dev/null; do :; done
ended=1
trap '' PIPE # nobody may be left to hear
[ -z "$helped" ] || { kill -s KILL "$helped"; wait "$helped" 2>/dev/null; }
echo "$status" 2>/dev/null
exec >/dev/null 2>&1
# A signal can interrupt the wait even though the watcher has ended meanwhile: then the next one tells how.
while wait "$watcher"; left=$?; [ "$left" -gt 128 ]; do :; done
if [ "$left" -ne 0 ]; then
    # A container that docker was still making when its client was killed comes late.
    [ -z "$container" ] || { docker container inspect "$container" || sleep 3; docker rm -fv "$container"; }
    [ -z "$scratch" ] || rm -rf "$scratch" || { sleep 1; rm -rf "$scratch"; }
fi
"#;

/// What to start.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Set in its environment, beside ours.
    pub env: Vec<(String, OsString)>,
    /// Taken out of the environment: every variable with one of these prefixes.
    pub env_remove: Vec<&'static str>,
    /// Where its output and its errors are appended.
    pub log: PathBuf,
    /// A command that runs as long as it does.
    pub helper: Option<String>,
    /// The container in which it really runs, killed and removed with it.
    pub container: Option<String>,
    /// A directory that goes when *we* end without having dropped it.
    pub scratch: Option<PathBuf>,
}

/// A running child. Dropping it kills it and waits until it is gone.
#[derive(Debug)]
pub struct Watched {
    shell: Child,
    /// Closing it is the order to end.
    orders: Mutex<Option<ChildStdin>>,
    pid: u32,
    ended: watch::Receiver<Option<i32>>,
    log: PathBuf,
}

impl Watched {
    /// Starts the child.
    ///
    /// # Errors
    /// Where the shell cannot be started. A command that is not there ends with status 127.
    pub fn spawn(spec: &Spec) -> std::io::Result<Watched> {
        let mut command = Command::new("/bin/sh");
        // In the environment, where it does not fill the list of processes.
        command.args(["-c", "eval \"$SCRIPT\"", "watched"]).arg(&spec.log).args(&spec.command);
        for (name, _) in std::env::vars_os() {
            if spec.env_remove.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .env("SCRIPT", SCRIPT)
            .env("HELPER", spec.helper.clone().unwrap_or_default())
            .env("CONTAINER", spec.container.clone().unwrap_or_default())
            .env("SCRATCH", spec.scratch.clone().unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null()) // where the shell reports who was killed
            .process_group(0);
        let mut shell = command.spawn()?;
        let orders = shell.stdin.take();
        let mut lines = BufReader::new(shell.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?);
        let mut first = String::new();
        lines.read_line(&mut first)?;
        let pid = first.trim().parse().map_err(|_| std::io::Error::other("the shell has not started the child"))?;
        let (tell, ended) = watch::channel(None);
        std::thread::spawn(move || {
            let mut last = String::new();
            let _ = lines.read_line(&mut last);
            // A shell that was killed itself says nothing: the child's status is unknown then.
            tell.send_replace(Some(last.trim().parse().unwrap_or(-1)));
        });
        Ok(Watched { shell, orders: Mutex::new(orders), pid, ended, log: spec.log.clone() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last 40 lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Sends it a signal by name (`TERM`, `KILL`, `STOP`, `CONT`); nothing happens if it has ended.
    pub fn signal(&self, name: &str) {
        if self.ended().is_none() {
            self.order(name);
        }
    }

    /// Its exit status if it has ended; 128 + n for signal n.
    #[must_use]
    pub fn ended(&self) -> Option<i32> {
        *self.ended.borrow()
    }

    /// Waits until it has ended.
    pub async fn wait(&self) -> i32 {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or(-1),
            Err(_) => -1,
        }
    }

    /// Its container and its directory are to stay when this is dropped.
    pub(super) fn leave(&self) {
        self.order("leave");
    }

    /// Closes the pipe, as the system does for us when we are killed.
    pub(super) fn hang_up(&self) {
        if let Ok(mut orders) = self.orders.lock() {
            orders.take();
        }
    }

    fn order(&self, word: &str) {
        if let Ok(mut orders) = self.orders.lock()
            && let Some(orders) = orders.as_mut()
        {
            // The shell may be gone; then so is the child.
            let _ = orders.write_all(format!("{word}\n").as_bytes());
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.hang_up();
        let _ = self.shell.wait();
    }
}

/// A temporary directory that goes when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes it under the system's place for temporary files, readable by us only.
    ///
    /// # Errors
    /// Where the directory cannot be made.
    pub fn new(name: &str) -> std::io::Result<Scratch> {
        use std::os::unix::fs::DirBuilderExt;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("context-injector-{name}-{}-{count}", std::process::id()));
        // A name of a dead process that had our id may be left over.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Scratch { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A server's last helper may still write: once more, then it is left to the system's own cleaning.
        if std::fs::remove_dir_all(&self.path).is_err() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
