//! Logs as JSON lines, and the metrics of the operator.

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

/// Starts writing log lines to standard error.
///
/// # Errors
///
/// When the filter cannot be read.
pub fn start_logs(filter: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .init();
    Ok(())
}

/// Counters of the operator. Labels have few values: never names of objects, never messages.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<ReconcileLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    seconds: Family<KindLabels, Histogram>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReconcileLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorLabels {
    kind: &'static str,
    reason: &'static str,
}

impl Metrics {
    /// Metrics of an operator in this namespace.
    #[must_use]
    pub fn new(namespace: &str) -> Self {
        let mut registry = Registry::with_prefix("chandler_operator");
        let reconciles = Family::default();
        let errors = Family::default();
        // 1 ms to 16 s: a reconcile is a few requests to the API server.
        let seconds = Family::new_with_constructor(
            (|| Histogram::new(exponential_buckets(0.001, 2.0, 15))) as fn() -> Histogram,
        );
        registry.register(
            "reconciles",
            "Reconciles, by kind and outcome",
            reconciles.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Failed reconciles, by kind and reason",
            errors.clone(),
        );
        registry.register(
            "reconcile_seconds",
            "Duration of reconciles",
            seconds.clone(),
        );
        registry.register(
            "build",
            "Version and namespace of this operator",
            Info::new(vec![
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
                ("namespace", namespace.to_owned()),
            ]),
        );
        Self {
            registry,
            reconciles,
            errors,
            seconds,
        }
    }

    /// Counts a reconcile that went well.
    pub fn reconciled(&self, kind: &'static str, seconds: f64) {
        self.reconciles
            .get_or_create(&ReconcileLabels {
                kind,
                outcome: "done",
            })
            .inc();
        self.seconds
            .get_or_create(&KindLabels { kind })
            .observe(seconds);
    }

    /// Counts a reconcile that failed.
    pub fn failed(&self, kind: &'static str, reason: &'static str, seconds: f64) {
        self.reconciles
            .get_or_create(&ReconcileLabels {
                kind,
                outcome: "failed",
            })
            .inc();
        self.errors
            .get_or_create(&ErrorLabels { kind, reason })
            .inc();
        self.seconds
            .get_or_create(&KindLabels { kind })
            .observe(seconds);
    }

    /// All metrics in Prometheus' text form.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# failed to write the metrics: {error}\n"),
        }
    }
}
