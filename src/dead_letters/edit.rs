//! `dead-letters edit`: another body for one letter, which stays a dead letter.
//!
//! The letter is found and given back, so that nothing is held while a person types. Then: record, confirm;
//! the edited letter, confirm; ack the original. Killed in between, the original is still there, perhaps beside the
//! edited one; the same command again finds that and only takes the original away. The edited letter is the last
//! of its queue, the others keep their places.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::browse::Browser;
use super::changes::changes;
use super::editor::Draft;
use super::operation::{Act, Operator, Recorder};
use super::repair::{self, MAX_ORIGINAL, edited, patched};
use super::results::agreed;
use super::{Kind, Letter, whole};
use crate::broker::topology::Names;
use crate::broker::{Broker, Mandatory, Message, Publisher};
use crate::cli::output::{printable, say};
use crate::config::Config;

/// `dead-letters edit`.
#[derive(Debug, clap::Args)]
pub struct EditArgs {
    /// Id of the letter, or its message id
    id: String,
    /// Which queue
    #[arg(long, value_enum, default_value_t = Kind::Jobs)]
    kind: Kind,
    /// Change the body by this JSON merge patch (RFC 7396) instead of opening $VISUAL or $EDITOR
    #[arg(long, value_name = "JSON", value_parser = repair::read_patch)]
    patch: Option<Value>,
    #[command(flatten)]
    operator: Operator,
    /// Write the original letter into this file, as export does; needed where its body is too large for a header
    #[arg(long, value_name = "FILE")]
    save_original: Option<PathBuf>,
    /// Show what would be changed, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Edits.
pub(super) async fn edit(args: EditArgs, config: &Config, broker: &Broker) -> anyhow::Result<ExitCode> {
    if !args.kind.is_jobs() {
        bail!(
            "an event tells what happened, and its hash is a link of the audit chain: it is not rewritten. Replay it, \
             or discard it"
        );
    }
    let names = Names::new(&config.amqp.prefix);
    let (letter, message) = find(&args, &names, broker).await?;
    let (body, draft) = match &args.patch {
        Some(patch) => match patched(&message.body, patch) {
            Ok(body) => (body, None),
            Err(refusal) => return refused(&args, &letter, &refusal, None),
        },
        None => {
            let draft = Draft::of(&message.body)?;
            (draft.edit()?, Some(draft))
        }
    };
    if changes(&message.body, &body).is_empty() {
        say!("Nothing was changed.")?;
        return Ok(ExitCode::SUCCESS);
    }
    let keeps = args.save_original.is_some() || message.body.len() <= MAX_ORIGINAL;
    let now = Timestamp::now();
    let new = match edited(args.kind, config, &letter, &message, body, args.operator.by(), now) {
        Ok(new) => new,
        Err(refusal) => return refused(&args, &letter, &refusal, draft),
    };
    let id = super::letter::id_of(&new);
    show_changes(&args, &message.body, &new.body)?;
    if !keeps {
        bail!(
            "the original body has {} bytes and is kept in a header up to {MAX_ORIGINAL}; say --save-original FILE{}",
            message.body.len(),
            kept(draft)
        );
    }
    if args.dry_run {
        return told(&args, "dry_run", &letter.id, &id);
    }
    if !args.yes && !args.json && std::io::stdin().is_terminal() && !agreed("Write the edited letter?")? {
        say!("Nothing was changed{}", kept(draft))?;
        return Ok(ExitCode::FAILURE);
    }
    if let Some(path) = &args.save_original {
        save(path, &whole::to_row(args.kind, &letter, &message))?;
    }
    if let Err(error) = exchange(&args, config, broker, &names, (&letter, &message), (&id, &new)).await {
        bail!("{error:#}{}", kept(draft));
    }
    told(&args, "edited", &letter.id, &id)
}

/// The oldest letter of that name.
async fn find(args: &EditArgs, names: &Names, broker: &Broker) -> anyhow::Result<(Letter, Message)> {
    let queue = args.kind.queue(names);
    let mut browser = Browser::open(broker, queue.clone()).await?;
    let mut found = None::<(Letter, Message)>;
    let mut other = None;
    while let Some(incoming) = browser.next().await? {
        let letter = Letter::read(args.kind, names, &incoming);
        if letter.is_called(&args.id) {
            match &found {
                None => found = Some((letter, incoming.message)),
                Some((first, _)) if first.id != letter.id => other = Some(letter.id),
                Some(_the_same_again) => {}
            }
        }
        browser.leave(incoming.receipt);
    }
    browser.close().await?.note();
    match (found, other) {
        (None, _) => bail!("no letter {:?} in {queue}; `dead-letters list --kind …` names them", args.id),
        (Some((first, _)), Some(other)) => {
            bail!("{:?} is the name of several letters, {} and {other}: name one of them", args.id, first.id)
        }
        (Some(found), None) => Ok(found),
    }
}

/// Puts the edited letter in the place of the original.
async fn exchange(
    args: &EditArgs,
    config: &Config,
    broker: &Broker,
    names: &Names,
    (letter, message): (&Letter, &Message),
    (new_id, new): (&str, &Message),
) -> anyhow::Result<()> {
    let mut browser = Browser::open(broker, args.kind.queue(names)).await?;
    let (mut original, mut is_there) = (None, false);
    while let Some(incoming) = browser.next().await? {
        let is = |one: &Message| incoming.message.message_id() == one.message_id() && incoming.message.body == one.body;
        is_there |= is(new);
        if original.is_none() && is(message) {
            browser.hold();
            original = Some(incoming.receipt);
        } else {
            browser.leave(incoming.receipt);
        }
    }
    let Some(original) = original else {
        browser.close().await?.note();
        if is_there {
            // A command like this one did it, and was killed before it could say so.
            return Ok(());
        }
        bail!("letter {} is no longer there: somebody replayed or discarded it. Nothing was changed", letter.id);
    };
    let publisher = Publisher::new(broker);
    let recorder = Recorder::new(&publisher, names, config);
    let act = Act::Edit { id: new_id, body: &new.body };
    let recorded = recorder.hand_over(&args.operator, args.kind, letter, &message.body, act).confirm.wait().await;
    let written = match recorded {
        Err(error) => Err(error).context("nothing was changed: it cannot be recorded in the audit stream"),
        // A command like this one was killed before it took the original away.
        Ok(()) if is_there => Ok(()),
        Ok(()) => {
            let (exchange, key) = repair::home(args.kind, names, &repair::Told::of(letter));
            let published = publisher.publish(&exchange, &key, new, Mandatory::Yes).await;
            published.context("the edited letter is not known to be written; the original is still there")
        }
    };
    let done = match written {
        Ok(()) => original.ack().await.context(
            "the edited letter is written, but the original could not be taken away; the same command again does it",
        ),
        Err(error) => {
            original.leave();
            Err(error)
        }
    };
    recorder.close().await;
    let closed = browser.close().await;
    done.and(closed.map(drop))
}

fn save(path: &Path, row: &Value) -> anyhow::Result<()> {
    let name = path.display();
    // Not over another one.
    let mut file = std::fs::File::create_new(path).with_context(|| format!("cannot create {name}"))?;
    writeln!(file, "{row}").and_then(|()| file.sync_all()).with_context(|| format!("cannot write {name}"))
}

fn show_changes(args: &EditArgs, before: &[u8], after: &[u8]) -> anyhow::Result<()> {
    if args.json {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    for change in changes(before, after) {
        writeln!(out, "  {}", printable(&change)).context("cannot write to standard output")?;
    }
    Ok(())
}

fn refused(
    args: &EditArgs,
    letter: &Letter,
    refusal: &repair::Refusal,
    draft: Option<Draft>,
) -> anyhow::Result<ExitCode> {
    let repair::Refusal { code, text, pointer } = refusal;
    if args.json {
        let row = json!({ "id": letter.id, "result": "refused", "code": code, "pointer": pointer, "text": text });
        say!("{row}")?;
    } else {
        let place = pointer.as_ref().map(|pointer| format!(" at {pointer}")).unwrap_or_default();
        say!("{} refused: {code}{place}: {text}. Nothing was changed{}", letter.id, kept(draft))?;
    }
    Ok(ExitCode::FAILURE)
}

/// Where the text of the editor is, so that nobody types it twice.
fn kept(draft: Option<Draft>) -> String {
    draft.map(|draft| format!(". Your text is kept in {}", draft.keep().display())).unwrap_or_default()
}

fn told(args: &EditArgs, result: &str, id: &str, new_id: &str) -> anyhow::Result<ExitCode> {
    let line = match (args.json, result) {
        (true, _) => json!({ "id": id, "result": result, "id_after": new_id }).to_string(),
        (false, "dry_run") => format!("{id} would become {new_id}"),
        (false, _) => format!("{id} is now {new_id}, the last of its queue; `dead-letters replay {new_id}` replays it"),
    };
    say!("{line}")?;
    Ok(ExitCode::SUCCESS)
}
