//! The floor: what the work costs at least. It consumes, takes a lease, makes the requests that the protocol needs,
//! publishes a confirmed outcome and acknowledges, with the same libraries as the worker and nothing else: no
//! order, no ledger, no validation, no repetition, no chain, no metrics. It promises nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use redis::aio::MultiplexedConnection;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

/// The argument that makes this program the floor; then: AMQP, Redis, API, in flight, `read` or `write`, and `plain`
/// or `telling`: with an event of the worker's size and headers.
pub const COMMAND: &str = "floor";

/// Bytes of the worker's event of a job with two sets.
const EVENT_BYTES: usize = 1_200;

#[derive(serde::Deserialize)]
struct Job<'a> {
    job_id: &'a str,
    conversation_id: &'a str,
    #[serde(borrow)]
    variables: BTreeMap<&'a str, Variable<'a>>,
}

#[derive(serde::Deserialize)]
struct Variable<'a> {
    #[serde(borrow, alias = "by")]
    value: &'a RawValue,
    #[serde(default)]
    scope: Option<&'a str>,
}

#[derive(serde::Serialize)]
struct Change<'a> {
    value: &'a RawValue,
    scope: &'a str,
}

#[derive(serde::Serialize)]
struct Patch<'a> {
    #[serde(rename = "conversationId")]
    conversation: &'a str,
    context: BTreeMap<&'a str, Change<'a>>,
}

#[derive(serde::Deserialize)]
struct State {
    #[serde(rename = "contextVersion")]
    version: u64,
}

struct Floor {
    http: reqwest::Client,
    api: String,
    token: String,
    redis: MultiplexedConnection,
    release: redis::Script,
    channel: Channel,
    reads: bool,
    tells: bool,
}

pub async fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [amqp, redis, api, in_flight, first, told] = arguments else { anyhow::bail!("floor: arguments are missing") };
    let in_flight: u16 = in_flight.parse()?;
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let (taking, publishing) = (connection.create_channel().await?, connection.create_channel().await?);
    taking.basic_qos(2 * in_flight, BasicQosOptions::default()).await?;
    publishing.confirm_select(ConfirmSelectOptions::default()).await?;
    let http = reqwest::Client::builder().http1_only().no_proxy().build()?;
    let token = http.post(format!("{api}/api/v1/auth/token")).send().await?.json::<serde_json::Value>().await?;
    let floor = Arc::new(Floor {
        http,
        api: api.clone(),
        token: token["access_token"].as_str().context("no token")?.to_owned(),
        redis: redis::Client::open(redis.as_str())?.get_multiplexed_async_connection().await?,
        release: redis::Script::new(
            "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end",
        ),
        channel: publishing,
        reads: first == "read",
        tells: told == "telling",
    });
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut jobs = taking.basic_consume("context.jobs.default".into(), "".into(), options, none).await?;
    println!("taking jobs");
    let places = Arc::new(Semaphore::new(in_flight.into()));
    while let Some(delivery) = jobs.next().await {
        let delivery = delivery?;
        let place = Arc::clone(&places).acquire_owned().await?;
        let floor = Arc::clone(&floor);
        tokio::spawn(async move {
            if let Err(error) = floor.work(delivery).await {
                println!("{error:#}");
            }
            drop(place);
        });
    }
    Ok(())
}

impl Floor {
    async fn work(&self, delivery: Delivery) -> anyhow::Result<()> {
        let job: Job<'_> = serde_json::from_slice(&delivery.data)?;
        let (key, token) = (format!("floor:{}", job.conversation_id), job.job_id);
        let mut redis = self.redis.clone();
        loop {
            let mut lease = redis::cmd("SET");
            lease.arg(&key).arg(token).arg("NX").arg("PX").arg(10_000);
            if lease.query_async::<Option<String>>(&mut redis).await?.is_some() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        self.write(&job).await?;
        let _: i64 = self.release.key(&key).arg(token).invoke_async(&mut redis).await?;
        let (outcome, properties) = self.outcome(&job);
        let (exchange, routing_key) = ("context.outcomes".into(), "default.applied".into());
        let options = BasicPublishOptions::default();
        self.channel.basic_publish(exchange, routing_key, options, outcome.as_bytes(), properties).await?.await?;
        delivery.ack(BasicAckOptions::default()).await?;
        Ok(())
    }

    /// Who subscribed finds the job's number in it; the worker's event is made only as far as to be as long.
    fn outcome(&self, job: &Job<'_>) -> (String, BasicProperties) {
        let mut outcome = format!(
            r#"{{"type":"floor.outcome","data":{{"job_id":"{}","conversation_id":"{}","verdict":"applied"}}}}"#,
            job.job_id, job.conversation_id
        );
        let mut properties = BasicProperties::default().with_delivery_mode(2);
        if self.tells {
            outcome.push_str(&" ".repeat(EVENT_BYTES.saturating_sub(outcome.len())));
            let mut headers = FieldTable::default();
            let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
            properties = properties
                .with_content_type("application/cloudevents+json".into())
                .with_message_id("b9bd8f52-3c5e-5a9c-8a52-0a9a3e0e1c53".into())
                .with_type("context-injector.outcome.v1".into())
                .with_timestamp(1_795_000_000)
                .with_headers(headers);
        }
        (outcome, properties)
    }

    async fn write(&self, job: &Job<'_>) -> anyhow::Result<()> {
        let changes = job.variables.iter().map(|(key, variable)| {
            (*key, Change { value: variable.value, scope: variable.scope.unwrap_or("conversation") })
        });
        let context = changes.collect();
        let body = serde_json::to_vec(&Patch { conversation: job.conversation_id, context })?;
        let url = format!("{}/api/v1/context", self.api);
        loop {
            let version = if self.reads {
                let state =
                    self.http.get(format!("{url}/{}", job.conversation_id)).bearer_auth(&self.token).send().await?;
                serde_json::from_slice::<State>(&state.bytes().await?)?.version
            } else {
                1
            };
            let patch = self.http.patch(&url).bearer_auth(&self.token).header("if-match", version);
            let answer = patch.header("content-type", "application/json").body(body.clone()).send().await?;
            let status = answer.status();
            answer.bytes().await?;
            match status.as_u16() {
                200 => return Ok(()),
                409 => {}
                other => anyhow::bail!("the API answered {other}"),
            }
        }
    }
}
