//! What happened at the doors, and what there is, in numbers for Prometheus.
//!
//! ```text
//! GET /metrics        reflinkd_requests_total{door="docker",operation="Create",outcome="ok"} 17
//!                     reflinkd_request_duration_seconds_bucket{...,le="0.064"} 16
//!                     reflinkd_trees{owner="docker",stage="active"} 4
//! ```
//!
//! Names are for good: who watches keeps them in his rules.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::Kind;
use crate::engine::Engine;

mod store;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels = [(&'static str, &'static str); 3];

/// What is counted.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    requests: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    pub(super) in_flight: Gauge,
    pub(super) received: Counter,
    pub(super) sent: Counter,
    tended: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(buckets),
            in_flight: Gauge::default(),
            received: Counter::default(),
            sent: Counter::default(),
            tended: Family::default(),
        }
    }
}

/// From one millisecond to an hour, as a clone may take the one and a layer the other.
fn buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 12))
}

impl Metrics {
    pub(super) fn observe(&self, door: &'static str, operation: &'static str, outcome: &'static str, took: Duration) {
        let labels = [("door", door), ("operation", operation), ("outcome", outcome)];
        self.requests.get_or_create(&labels).inc();
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(super) fn tended(&self, outcome: &'static str) {
        self.tended.get_or_create(&[("outcome", outcome)]).inc();
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("requests", "Requests answered, by what became of them", self.requests.clone());
        registry.register(
            "request_duration_seconds",
            "From the beginning of a request until it was answered, tars included",
            self.seconds.clone(),
        );
        registry.register("requests_in_flight", "Requests that are being worked on", self.in_flight.clone());
        registry.register("tar_received_bytes", "Bytes of layers taken in as tars", self.received.clone());
        registry.register("tar_sent_bytes", "Bytes of layers given out as tars", self.sent.clone());
        registry.register("tends", "How often the store was tended in the background", self.tended.clone());
    }
}

/// How an error is called in labels.
pub(super) fn outcome(kind: Kind) -> &'static str {
    match kind {
        Kind::Invalid => "invalid",
        Kind::NotFound => "not_found",
        Kind::Exists => "exists",
        Kind::InUse => "in_use",
        Kind::BadInput => "bad_input",
        Kind::NoSpace => "no_space",
        Kind::Unsupported => "unsupported",
        Kind::Denied => "denied",
        Kind::Interrupted => "interrupted",
        Kind::Damaged => "damaged",
        Kind::System => "system",
    }
}

/// The answer to a scrape.
pub(super) fn router(engine: Arc<Engine>, metrics: &Metrics) -> Router {
    let mut registry = Registry::with_prefix("reflinkd");
    metrics.register(&mut registry);
    registry.register_collector(Box::new(store::Collector { engine }));
    Router::new().route("/metrics", get(scrape)).with_state(Arc::new(registry))
}

async fn scrape(State(registry): State<Arc<Registry>>) -> Response {
    let encoded = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode_registry(&mut text, &registry).map(|()| plain(&text))
    });
    match encoded.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// OpenMetrics as Prometheus's own text, which everybody reads: there a counter is called `..._total` where it is described,
/// too.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let kind = if line.starts_with("# HELP ") { lines.get(at + 1).unwrap_or(&"") } else { line };
        let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        match described.and_then(|rest| rest.split_once(' ')) {
            Some((name, rest)) if kind.starts_with("# TYPE ") && kind.ends_with(" counter") => {
                plain.push_str(&format!("{} {name}_total {rest}\n", &line[..6]));
            }
            _ => {
                plain.push_str(line);
                plain.push('\n');
            }
        }
    }
    plain
}
