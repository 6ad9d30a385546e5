//! `endpoints …`: what an operator sees of the webhook receivers and does with them. Settings come from the file,
//! the rest from RabbitMQ and Redis; a running relay follows within a second and needs no restart.

use std::process::ExitCode;

use anyhow::{anyhow, bail};
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::address_filter::VettedResolver;
use super::attempts::{self, Record};
use super::decision::explain_ending;
use super::delivery::{Ending, Receiver};
use super::event::Event;
use super::gate::Disabled;
use super::memory::Memory;
use super::removed::Removed;
use super::signature::{Signer, pair_secret, shared_secret};
use crate::cli::output::say;
use crate::config::{Config, Endpoint, show_duration};

mod known;

use known::Known;

/// `endpoints …`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Lists the webhook receivers: state, events that wait, reason
    List {
        /// One JSON object per endpoint
        #[arg(long)]
        json: bool,
    },
    /// Shows one endpoint: settings without secrets, state, the last tries
    Show {
        /// Its name in the settings
        name: String,
        /// How many tries
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=1000))]
        tries: u16,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Shows the tries of one event, at all endpoints
    Event {
        /// Its id: the webhook-id
        id: String,
        /// One JSON object per try
        #[arg(long)]
        json: bool,
    },
    /// Sends a signed example event, and explains what went wrong; exit code 1 if anything did
    Test {
        /// Its name in the settings
        name: String,
    },
    /// Ends being disabled, and tries a broken or held endpoint at once
    Enable {
        /// Its name in the settings
        name: String,
    },
    /// Stops deliveries; the events wait in the endpoint's queue
    Disable {
        /// Its name in the settings
        name: String,
        /// Why, for those who find it disabled
        #[arg(long, default_value = "disabled by an operator")]
        reason: String,
    },
    /// Makes a new signing secret and says how to bring it in without losing a delivery
    Rotate {
        /// Its name in the settings
        name: String,
        /// Make an ed25519 key (v1a) instead of a shared secret (v1)
        #[arg(long)]
        ed25519: bool,
    },
}

/// Runs `endpoints …`.
///
/// # Errors
/// No such endpoint; Redis or RabbitMQ where the command cannot do without.
pub async fn run(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    match command {
        Command::List { json } => list(&config, json).await,
        Command::Show { name, tries, json } => show(&config, find(&config, &name)?, tries, json).await,
        Command::Event { id, json } => event(&config, &id, json).await,
        Command::Test { name } => test(find(&config, &name)?).await,
        Command::Enable { name } => enable(&config, find(&config, &name)?).await,
        Command::Disable { name, reason } => disable(&config, find(&config, &name)?, reason).await,
        Command::Rotate { name, ed25519 } => rotate(find(&config, &name)?, ed25519),
    }
}

fn find<'c>(config: &'c Config, name: &str) -> anyhow::Result<&'c Endpoint> {
    if let Some(endpoint) = config.endpoints.get(name) {
        return Ok(endpoint);
    }
    let known = config.endpoints.keys().map(String::as_str).collect::<Vec<_>>();
    match known[..] {
        [] => bail!("there is no endpoint {name:?}: the settings have no [endpoints.…] at all"),
        _ => bail!("there is no endpoint {name:?}; the settings have {}", known.join(", ")),
    }
}

fn memory(config: &Config) -> anyhow::Result<Memory> {
    Memory::new(&config.redis).map_err(|error| anyhow!("redis.url ({}) cannot be used: {error}", config.redis.url))
}

/// The client's error tells its own cause, so no chain is made of it.
fn cannot_ask(config: &Config, error: &redis::RedisError) -> anyhow::Error {
    anyhow!("Redis at {} cannot be asked: {error}", config.redis.url)
}

async fn list(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let known = Known::gather(config).await;
    if config.endpoints.is_empty() {
        eprintln!("There are no webhook endpoints in the settings.");
    } else if !json {
        say!("{:<20} {:<10} {:>9}  {:<36} EVENTS", "ENDPOINT", "STATE", "WAITING", "RECEIVER")?;
    }
    for endpoint in config.endpoints.values() {
        let (state, reason) = known.state(endpoint);
        let waiting = known.waiting_of(endpoint);
        if json {
            let line = json!({
                "endpoint": endpoint.name, "state": state, "reason": reason, "waiting": waiting,
                "receiver": endpoint.url.to_string(), "events": endpoint.events,
            });
            say!("{line}")?;
            continue;
        }
        let waiting = waiting.map_or_else(|| "?".to_owned(), |count| count.to_string());
        let (name, url, events) = (&endpoint.name, endpoint.url.to_string(), endpoint.events.join(", "));
        say!("{name:<20} {state:<10} {waiting:>9}  {url:<36} {events}")?;
        if !reason.is_empty() {
            say!("{:<20} {reason}", "")?;
        }
    }
    for (name, Removed { waiting, advice }) in &known.queues.removed {
        if json {
            say!("{}", json!({ "endpoint": name, "state": "removed", "reason": advice, "waiting": waiting }))?;
        } else {
            say!("{name:<20} {:<10} {waiting:>9}\n{:<20} {advice}", "removed", "")?;
        }
    }
    known.gaps.iter().for_each(|gap| eprintln!("note: {gap}"));
    Ok(ExitCode::SUCCESS)
}

async fn show(config: &Config, endpoint: &Endpoint, tries: u16, json: bool) -> anyhow::Result<ExitCode> {
    let known = Known::gather(config).await;
    let (state, reason) = known.state(endpoint);
    let signer = Signer::new(&endpoint.secret, endpoint.previous_secret.as_ref());
    let public_keys = signer.map(|signer| signer.public_keys()).unwrap_or_default();
    let records = attempts::of_endpoint(&memory(config)?, &endpoint.name, isize::try_from(tries)?).await;
    if json {
        let shown = json!({
            "endpoint": endpoint.name, "state": state, "reason": reason, "waiting": known.waiting_of(endpoint),
            "receiver": endpoint.url.to_string(), "events": endpoint.events,
            "headers": endpoint.headers.keys().collect::<Vec<_>>(), "public_keys": public_keys,
            "rotating": endpoint.previous_secret.is_some(), "tries": records.unwrap_or_default(),
        });
        say!("{shown:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let line = |name: &str, value: String| say!("{name:<16} {value}");
    line("endpoint", endpoint.name.clone())?;
    line("state", if reason.is_empty() { state.to_owned() } else { format!("{state}: {reason}") })?;
    line("waiting", known.waiting_of(endpoint).map_or_else(|| "?".to_owned(), |count| format!("{count} events")))?;
    line("receiver", format!("{} (the rest of the url is not shown)", endpoint.url))?;
    line("events", endpoint.events.join(", "))?;
    line("limits", limits(endpoint))?;
    for header in endpoint.headers.keys() {
        line("header", format!("{header} (value not shown)"))?;
    }
    for key in public_keys {
        line("public key", key)?;
    }
    if endpoint.previous_secret.is_some() {
        line("rotation", "under way: previous_secret signs too".to_owned())?;
    }
    match records {
        Ok(records) if records.is_empty() => say!("\nNo tries are recorded.")?,
        Ok(records) => {
            say!("\nThe last tries, newest first:")?;
            print_records(&records, false)?;
        }
        Err(error) => eprintln!("note: {}", cannot_ask(config, &error)),
    }
    known.gaps.iter().for_each(|gap| eprintln!("note: {gap}"));
    Ok(ExitCode::SUCCESS)
}

fn limits(endpoint: &Endpoint) -> String {
    let rate = match endpoint.requests_per_second {
        0 => "no rate limit".to_owned(),
        rate => format!("{rate} per second"),
    };
    let (timeout, connect) = (show_duration(endpoint.timeout), show_duration(endpoint.connect_timeout));
    format!("{} at the same time, {rate}, {timeout} a try, {connect} to connect", endpoint.max_in_flight)
}

fn print_records(records: &[Record], with_endpoint: bool) -> anyhow::Result<()> {
    for record in records {
        let status = record.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
        let probe = if record.probe { ", probe" } else { "" };
        let first = if with_endpoint { &record.endpoint } else { &record.event };
        say!(
            "{:.3}  {first}  try {}{probe}  {status} in {} ms  {}",
            record.at,
            record.number,
            record.took_ms,
            record.fate
        )?;
        for text in [&record.reason, &record.answer].into_iter().filter(|text| !text.is_empty()) {
            // An answer is somebody else's text: no control characters reach the terminal.
            say!("    {}", text.escape_debug())?;
        }
    }
    Ok(())
}

async fn event(config: &Config, id: &str, json: bool) -> anyhow::Result<ExitCode> {
    let endpoints = config.endpoints.keys().cloned().collect::<Vec<_>>();
    let records =
        attempts::of_event(&memory(config)?, id, &endpoints).await.map_err(|error| cannot_ask(config, &error))?;
    if json {
        for record in &records {
            say!("{}", serde_json::to_string(record)?)?;
        }
    } else if records.is_empty() {
        say!("No try of {id} is recorded: the last 1,000 of each endpoint are, and the last 2,000 that failed.")?;
    } else {
        print_records(&records, true)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn test(endpoint: &Endpoint) -> anyhow::Result<ExitCode> {
    let receiver = match Receiver::new(endpoint) {
        Ok(receiver) => receiver,
        Err(unusable) => {
            say!("Not sent: {unusable}.")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    if let Ok(url) = url::Url::parse(endpoint.url.expose())
        && let Some(url::Host::Domain(name)) = url.host()
    {
        let filter = super::address_filter::AddressFilter::new(&endpoint.name, &endpoint.allow_networks);
        if let Ok(addresses) = VettedResolver::new(filter).addresses(name).await {
            let addresses = addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>();
            say!("{name} is {}.", addresses.join(", "))?;
        }
    }
    let event = example()?;
    say!("Sending the signed example {} to {} …", event.id, endpoint.url)?;
    let tried = receiver.send(&event).await;
    let took = tried.took.as_millis();
    match &tried.ending {
        Ending::Answered { status, .. } if (200..300).contains(status) => {
            say!("Delivered: the receiver answered {status} in {took} ms.")?;
            if let Some(rest) = tried.rest {
                rest.drain().await;
            }
            Ok(ExitCode::SUCCESS)
        }
        ending => {
            say!("Not delivered after {took} ms: {}.", explain_ending(ending))?;
            if !tried.excerpt.is_empty() {
                say!("Its answer begins: {}", String::from_utf8_lossy(&tried.excerpt).escape_debug())?;
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

/// An event that no program takes for an outcome: its type is another.
fn example() -> anyhow::Result<Event> {
    let body = json!({
        "specversion": "1.0", "type": "context-injector.test.v1", "id": uuid::Uuid::new_v4().to_string(),
        "source": "/endpoints/test", "time": Timestamp::now().to_string(), "datacontenttype": "application/json",
        "data": { "text": "This is a test. A real event has the type context-injector.outcome.v1." },
    });
    Ok(Event::read(body.to_string().into())?)
}

async fn enable(config: &Config, endpoint: &Endpoint) -> anyhow::Result<ExitCode> {
    let name = &endpoint.name;
    let was_disabled = memory(config)?.enable(name).await.map_err(|error| cannot_tell(config, &error))?;
    if was_disabled {
        say!("{name} is enabled; a running relay delivers its events from now on.")?;
    } else {
        say!("{name} was not disabled; if it is broken or held, a running relay tries it now.")?;
    }
    if let Err(unusable) = Receiver::new(endpoint) {
        say!("It still cannot be used: {unusable}.")?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

async fn disable(config: &Config, endpoint: &Endpoint, reason: String) -> anyhow::Result<ExitCode> {
    let disabled = Disabled { since: Timestamp::now(), reason };
    memory(config)?.disable(&endpoint.name, &disabled).await.map_err(|error| cannot_tell(config, &error))?;
    let name = &endpoint.name;
    say!("{name} is disabled; its events wait until `context-injector endpoints enable {name}`.")?;
    Ok(ExitCode::SUCCESS)
}

fn cannot_tell(config: &Config, error: &redis::RedisError) -> anyhow::Error {
    anyhow!("nothing was changed: Redis at {} cannot be told: {error}", config.redis.url)
}

fn rotate(endpoint: &Endpoint, ed25519: bool) -> anyhow::Result<ExitCode> {
    let name = &endpoint.name;
    if endpoint.previous_secret.is_some() {
        bail!(
            "a rotation of {name} is under way: remove endpoints.{name}.previous_secret (or previous_secret_file) \
             when the receiver verifies with the newer secret, then rotate again"
        );
    }
    let bytes = rand::random::<[u8; 32]>();
    let secret = if ed25519 { pair_secret(&bytes) } else { shared_secret(&bytes) };
    say!("The new secret of {name}; it is shown once and kept nowhere:\n\n  {}\n", secret.expose_secret())?;
    let public = Signer::new(&secret, None).map(|signer| signer.public_keys()).unwrap_or_default();
    let for_receiver = public.first().map_or("the new secret".to_owned(), |key| format!("the public key {key}"));
    say!("1. In [endpoints.{name}], move the present secret to previous_secret (or its file to")?;
    say!("   previous_secret_file), set the new one, and restart the relay. From then on both sign.")?;
    say!("2. Give the receiver {for_receiver}.")?;
    say!("3. When it verifies with that, remove previous_secret and restart the relay.")?;
    Ok(ExitCode::SUCCESS)
}
