//! Logs as JSON lines, and the metrics of the operator.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text::encode,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;

use crate::api::{ModelDeployment, Reason};
use crate::kept::{IS_READY, OTHER, UNREPORTED};
use crate::lease::Leadership;
use crate::store::{Facet, Store};
use crate::watches::Queues;
use crate::{model_cache, model_deployment};

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

/// An error with all its causes.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

tokio::task_local! {
    /// On behalf of which kind, and since when, the writes of a reconcile are made.
    static WAITED: (&'static str, Instant);
}

/// Runs a reconcile whose writes somebody has been waiting for since an event; a reconcile that a timer started is nobody's wait.
pub async fn waited_for<T>(
    kind: &'static str,
    since: Option<Instant>,
    reconcile: impl Future<Output = T>,
) -> T {
    match since {
        Some(since) => WAITED.scope((kind, since), reconcile).await,
        None => reconcile.await,
    }
}

/// Metrics of the operator. Labels have few values: never names of objects, never messages.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<ReconcileLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    seconds: Family<KindLabels, Histogram>,
    event_to_write: Family<KindLabels, Histogram>,
    watch_restarts: Family<WatchLabels, Counter>,
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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WatchLabels {
    kind: String,
}

/// What is read when the metrics are asked for, instead of being counted on the way.
pub struct Live {
    /// Every ModelDeployment.
    pub deployments: Store<ModelDeployment>,
    /// What waits.
    pub queues: Queues,
    /// Whether this process leads.
    pub leadership: Leadership,
}

impl Metrics {
    /// Metrics of an operator in this namespace.
    #[must_use]
    pub fn new(namespace: &str, live: Live) -> Self {
        let mut registry = Registry::with_prefix("chandler_operator");
        let reconciles = Family::default();
        let errors = Family::default();
        let watch_restarts = Family::default();
        // 1 ms to 16 s: a reconcile is a few requests to the API server.
        let histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let event_to_write = Family::new_with_constructor(histogram as fn() -> Histogram);
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
            "event_to_write_seconds",
            "Time from the watch event that woke an object to a write that it caused, by the object's kind",
            event_to_write.clone(),
        );
        registry.register(
            "watch_restarts",
            "Watches that were interrupted and started again, by kind",
            watch_restarts.clone(),
        );
        registry.register(
            "build",
            "Version and namespace of this operator",
            Info::new(vec![
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
                ("namespace", namespace.to_owned()),
            ]),
        );
        registry.register_collector(Box::new(live));
        Self {
            registry,
            reconciles,
            errors,
            seconds,
            event_to_write,
            watch_restarts,
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

    /// Notes a write, if an event is waiting for it.
    pub fn written(&self) {
        // An error means that a timer, not an event, started this reconcile, or that there is none.
        if let Ok((kind, since)) = WAITED.try_with(|waited| *waited) {
            self.event_to_write
                .get_or_create(&KindLabels { kind })
                .observe(since.elapsed().as_secs_f64());
        }
    }

    /// Counts a watch that starts again.
    pub fn watch_restarted(&self, kind: &str) {
        self.watch_restarts
            .get_or_create(&WatchLabels {
                kind: kind.to_owned(),
            })
            .inc();
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

impl fmt::Debug for Live {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let leads = i64::from(self.leadership.may_write());
        let metric = encoder.encode_descriptor(
            "leader",
            "1 while this process may write",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(leads).encode(metric)?;

        let mut metric = encoder.encode_descriptor(
            "queue_depth",
            "Objects that wait for their reconcile to start, by kind",
            None,
            MetricType::Gauge,
        )?;
        for (kind, depth) in [
            (model_deployment::KIND, self.queues.deployments.depth()),
            (model_cache::KIND, self.queues.caches.depth()),
        ] {
            let labels = KindLabels { kind };
            let depth = i64::try_from(depth).unwrap_or(i64::MAX);
            ConstGauge::new(depth).encode(metric.encode_family(&labels)?)?;
        }

        let mut metric = encoder.encode_descriptor(
            "model_deployments",
            "ModelDeployments, by the reason of their Ready condition",
            None,
            MetricType::Gauge,
        )?;
        for (reason, count) in by_reason(&self.deployments) {
            ConstGauge::new(count).encode(metric.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}

/// How many ModelDeployments there are for each reason of Ready; reasons that nobody has are left out.
fn by_reason(deployments: &Store<ModelDeployment>) -> impl Iterator<Item = (&'static str, i64)> {
    let ours = Reason::ALL.iter().map(|reason| reason.as_str());
    ours.chain([UNREPORTED, OTHER]).filter_map(|reason| {
        let count = deployments.count(&Facet::new("", IS_READY, reason));
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        (count > 0).then_some((reason, count))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kube::runtime::reflector::ObjectRef;
    use serde_json::json;

    use super::*;

    fn metrics() -> (Metrics, Store<ModelDeployment>, Queues) {
        let (deployments, queues) = (Store::default(), Queues::default());
        let live = Live {
            deployments: deployments.clone(),
            queues: queues.clone(),
            leadership: Leadership::uncontested(),
        };
        (Metrics::new("test", live), deployments, queues)
    }

    #[test]
    fn what_is_known_now_is_told_when_it_is_asked_for() {
        let (metrics, deployments, queues) = metrics();
        for (name, reason) in [
            ("a", "Fetching"),
            ("b", "Fetching"),
            ("c", "made-up"),
            ("d", ""),
        ] {
            let conditions = match reason {
                "" => json!([]),
                reason => json!([{
                    "type": "Ready", "status": "False", "reason": reason, "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }]),
            };
            let object = serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "n", "resourceVersion": "1"},
                "spec": {"model": {"card": "c"}}, "status": {"conditions": conditions},
            }))
            .unwrap();
            deployments.seen("", &object);
        }
        queues.deployments.open([ObjectRef::new("a")]);
        let text = metrics.text();
        for line in [
            "chandler_operator_leader 1",
            "chandler_operator_queue_depth{kind=\"ModelDeployment\"} 1",
            "chandler_operator_queue_depth{kind=\"ModelCache\"} 0",
            "chandler_operator_model_deployments{reason=\"Fetching\"} 2",
            "chandler_operator_model_deployments{reason=\"Other\"} 1",
            "chandler_operator_model_deployments{reason=\"Unreported\"} 1",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} in {text}");
        }
    }

    #[tokio::test]
    async fn only_writes_that_an_event_caused_are_timed() {
        let (metrics, ..) = metrics();
        metrics.written();
        let write = || async { metrics.written() };
        waited_for("ModelDeployment", None, write()).await;
        assert!(!metrics.text().contains("event_to_write_seconds_count{"));
        let since = Instant::now().checked_sub(Duration::from_secs(1));
        waited_for("ModelDeployment", since, write()).await;
        let text = metrics.text();
        let line = "chandler_operator_event_to_write_seconds_count{kind=\"ModelDeployment\"} 1";
        assert!(text.contains(line), "{text}");
    }
}
