//! The admin HTTP server: `/livez`, `/readyz` with reasons, `/metrics`, and a status page at `/`; and the command
//! that asks them, which is the container's health check.
//!
//! Rules:
//! - `/livez` says that the process runs; only a hang makes it fail, so that nobody kills a process for a broker
//!   that is away.
//! - `/readyz` is 503 while any part is not ready, and names it. A part that works with less (Redis away) stays
//!   ready and says so.
//! - Nothing here shows credentials or values.

mod health;
mod page;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

pub use health::{Condition, Health};

/// How long the health check waits for an answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// The running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    task: AbortHandle,
}

#[derive(Debug, Clone)]
struct Pages {
    health: Health,
    metrics: PrometheusHandle,
}

impl Admin {
    /// Installs the metrics, listens, and logs `admin listening on http://…`.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start(listen: SocketAddr, health: Health) -> anyhow::Result<Self> {
        let pages = Pages { health, metrics: crate::metrics::install() };
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen} (setting admin.listen; port 0 takes any free port)"))?;
        let address = listener.local_addr().context("the admin server has no address")?;
        let router = Router::new()
            .route("/", get(status_page))
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readiness))
            .route("/metrics", get(render_metrics))
            .with_state(pages);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the admin server ended");
            }
        });
        tracing::info!("admin listening on http://{address}");
        Ok(Self { address, task: task.abort_handle() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn readiness(State(pages): State<Pages>) -> Response {
    let report = pages.health.report();
    let status = if report.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(report.to_json())).into_response()
}

async fn render_metrics(State(pages): State<Pages>) -> Response {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], pages.metrics.render()).into_response()
}

async fn status_page(State(pages): State<Pages>) -> Html<String> {
    Html(page::render(&pages.health.report(), &pages.metrics.render()))
}

/// `health`.
#[derive(Debug, clap::Args)]
pub struct HealthArgs {
    /// Address of the admin server
    #[arg(long, default_value = "http://127.0.0.1:9464", env = "CONTEXT_INJECTOR_HEALTH_URL")]
    url: url::Url,
    /// Ask whether the process lives (/livez) instead of whether it is ready (/readyz)
    #[arg(long)]
    live: bool,
}

/// Asks a running process; exit code 0 where it is well, else 1 with the reasons.
///
/// # Errors
/// Nobody answers.
pub async fn health(args: HealthArgs) -> anyhow::Result<ExitCode> {
    let path = if args.live { "livez" } else { "readyz" };
    let url = crate::config::below(&args.url, path);
    let host = crate::config::show_host(url.as_str());
    let client = reqwest::Client::builder().timeout(ASK_TIMEOUT).no_proxy().build().context("no HTTP client")?;
    let answer = client.get(url).send().await.map_err(reqwest::Error::without_url);
    let answer = answer.with_context(|| format!("no answer from {host}/{path}; is the process running?"))?;
    let status = answer.status();
    let text = answer.text().await.map_err(reqwest::Error::without_url).context("the answer broke off")?;
    crate::cli::output::say!("{}", text.trim_end())?;
    Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get_page(admin: &Admin, path: &str) -> (u16, String) {
        rustls::crypto::ring::default_provider().install_default().ok();
        let url = format!("http://{}{path}", admin.address());
        let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    #[tokio::test]
    async fn readiness_names_what_is_missing_and_what_only_works_with_less() {
        let health = Health::new();
        let admin = Admin::start(([127, 0, 0, 1], 0).into(), health.clone()).await.unwrap();
        assert_eq!(get_page(&admin, "/livez").await.0, 200);
        let (status, text) = get_page(&admin, "/readyz").await;
        assert_eq!((status, text.contains("starting")), (503, true), "{text}");

        health.set("rabbitmq", Condition::NotReady("cannot reach RabbitMQ at amqp://x:1".into()));
        health.set("redis", Condition::Degraded("redis is away <b>".into()));
        let (status, text) = get_page(&admin, "/readyz").await;
        assert_eq!((status, text.contains("amqp://x:1")), (503, true), "{text}");

        health.set("rabbitmq", Condition::Ready);
        let (status, text) = get_page(&admin, "/readyz").await;
        assert_eq!((status, text.contains("redis is away")), (200, true), "{text}");
        let (_, page) = get_page(&admin, "/").await;
        assert!(page.contains("redis is away &lt;b&gt;"), "{page}");

        health.stop();
        let (status, text) = get_page(&admin, "/readyz").await;
        assert_eq!((status, text.contains("stopping")), (503, true), "{text}");
        health.set("rabbitmq", Condition::Ready);
        assert_eq!(get_page(&admin, "/readyz").await.0, 503, "a process that stops does not become ready again");
    }

    #[tokio::test]
    async fn metrics_are_there_as_text() {
        let admin = Admin::start(([127, 0, 0, 1], 0).into(), Health::new()).await.unwrap();
        metrics::counter!(crate::metrics::REPLANS, "bot" => "admin-test").increment(1);
        let (status, text) = get_page(&admin, "/metrics").await;
        assert_eq!(status, 200);
        assert!(text.contains("context_injector_replans_total{bot=\"admin-test\"} 1"), "{text}");
    }

    #[tokio::test]
    async fn a_taken_port_is_explained_with_the_setting() {
        let first = Admin::start(([127, 0, 0, 1], 0).into(), Health::new()).await.unwrap();
        let error = Admin::start(first.address(), Health::new()).await.unwrap_err().to_string();
        assert!(error.contains("admin.listen"), "{error}");
    }

    #[tokio::test]
    async fn the_health_check_says_what_the_process_says() {
        rustls::crypto::ring::default_provider().install_default().ok();
        let health = Health::new();
        let admin = Admin::start(([127, 0, 0, 1], 0).into(), health.clone()).await.unwrap();
        let ask = async |live| {
            let url = format!("http://{}", admin.address()).parse().unwrap();
            super::health(HealthArgs { url, live }).await.unwrap()
        };
        assert_eq!(ask(true).await, ExitCode::SUCCESS);
        assert_eq!(ask(false).await, ExitCode::FAILURE);
        health.set("part", Condition::Ready);
        assert_eq!(ask(false).await, ExitCode::SUCCESS);
        let nobody = HealthArgs { url: "http://127.0.0.1:1".parse().unwrap(), live: true };
        assert!(super::health(nobody).await.is_err());
    }
}
