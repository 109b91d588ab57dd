//! `bench-operator`: thousands of ModelDeployments on a real API server, their pods played, and what the operator takes for them.

#![expect(
    clippy::print_stdout,
    reason = "figures and failures are what this program is for"
)]

use std::time::Duration;

use anyhow::{Result, bail};
use chandler_e2e::cluster::{Cluster, MODEL_DEPLOYMENT, POD};
use chandler_e2e::fault_proxy::{FaultProxy, Kill};
use chandler_e2e::local_operator::{LocalOperator, Program};
use chandler_e2e::player::{Nodes, Player, crash, prepare};
use chandler_e2e::process::{memory, processor_time, unless_ended};
use chandler_e2e::scale::{Place, Tracker, fill, percentile, places};
use chandler_e2e::stage::{folder, remove_leftovers};
use chandler_e2e::wait::{Seen, until};
use clap::Parser;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval, sleep};

/// Measures the operator with many objects.
#[derive(Debug, Parser)]
struct Args {
    /// ModelDeployments.
    #[arg(long, env = "N", default_value_t = 10_000)]
    count: usize,

    /// Changes a second while events are followed.
    #[arg(long, env = "CHANGES", default_value_t = 100)]
    changes: u64,

    /// Seconds of changes, and of idleness.
    #[arg(long, env = "WATCH_SECONDS", default_value_t = 20)]
    seconds: u64,

    /// Pods that are let fail.
    #[arg(long, env = "FAILING", default_value_t = 30)]
    failing: usize,
}

/// An operator that takes less than this of a core has nothing to do.
const IDLE_SHARE: f64 = 0.02;

/// How long it must have had nothing to do.
const IDLE_FOR: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<()> {
    unless_ended(work(Args::parse())).await
}

async fn work(args: Args) -> Result<()> {
    let cluster = Cluster::attach().await?;
    let program = Program::find()?;
    prepare(&cluster).await?;
    let _player = Player::start(&cluster, Nodes::None);
    remove_leftovers(&cluster).await?;
    let tracker = Tracker::start(&cluster);
    let (kill, kills) = mpsc::channel(1);
    let proxy = FaultProxy::start(cluster.client.clone(), None, kill.clone()).await?;
    let operator = LocalOperator::start(&program, "", &folder(), &proxy, kills)?;

    let places = places(args.count);
    let began = Instant::now();
    fill(&cluster, &places).await?;
    all_ready(&tracker, places.len()).await?;
    println!(
        "figure operator_fill_s {:.1} s",
        began.elapsed().as_secs_f64()
    );
    quiet(&proxy, &operator).await?;
    println!(
        "figure operator_writes_per_object {:.1} writes",
        proxy.count() as f64 / args.count as f64
    );
    let peak = memory(operator.id())?.peak_mb;
    println!("figure operator_fill_peak_mb {peak:.1} MB");

    cold_start(&operator, &proxy, &kill).await?;
    let idle_writes = idle(&operator, &proxy, args.seconds).await?;
    follow_changes(&cluster, &proxy, &places, &args).await?;
    quiet(&proxy, &operator).await?;
    follow_failures(&cluster, &tracker, &places, args.failing).await?;
    println!(
        "figure operator_rss_mb {:.1} MB",
        memory(operator.id())?.resident_mb
    );
    if operator.ended_by_itself() > 0 {
        bail!(
            "the operator ended by itself; its log: {}",
            operator.log.display()
        );
    }
    if idle_writes > 0 {
        let writes = proxy.writes();
        bail!(
            "{idle_writes} writes of an idle operator; the last of all: {:?}",
            writes.last()
        );
    }
    Ok(())
}

async fn all_ready(tracker: &Tracker, count: usize) -> Result<()> {
    // Five a second are slow for any API server; some minutes more for the rest, on a machine that is busy with other things.
    let patience = Duration::from_secs(300 + count as u64 / 5);
    until(patience, "every ModelDeployment to be Ready", async || {
        let ready = tracker.ready();
        Ok(Seen::when(ready == count, || format!("{ready} of {count}")))
    })
    .await
}

/// Waits until the operator writes nothing and takes no time, and gives the moment since when it is so.
async fn quiet(proxy: &FaultProxy, operator: &LocalOperator) -> Result<Instant> {
    let mut before = (Instant::now(), processor_time(operator.id())?);
    let mut idle_since = before.0;
    until(
        Duration::from_secs(600),
        "the operator to have nothing to do",
        async || {
            let now = (Instant::now(), processor_time(operator.id())?);
            let (passed, taken) = (now.0 - before.0, now.1.saturating_sub(before.1));
            if passed >= Duration::from_secs(1) {
                if taken.as_secs_f64() > IDLE_SHARE * passed.as_secs_f64() {
                    idle_since = now.0;
                }
                before = now;
            }
            let quiet = idle_since.elapsed().min(proxy.quiet_for());
            Ok(if quiet >= IDLE_FOR {
                Seen::Yes(idle_since)
            } else {
                Seen::NotYet(format!("{} ms of quiet", quiet.as_millis()))
            })
        },
    )
    .await
}

/// Kills the operator and follows its successor until it has looked at everything.
async fn cold_start(
    operator: &LocalOperator,
    proxy: &FaultProxy,
    kill: &mpsc::Sender<Kill>,
) -> Result<()> {
    let before = proxy.count();
    let (dead, died) = oneshot::channel();
    kill.send(dead).await?;
    died.await?;
    let began = Instant::now();
    let ready = format!("http://{}/readyz", operator.probes);
    until(
        Duration::from_secs(300),
        "the operator to be ready",
        async || {
            let answer = reqwest::get(&ready).await?;
            Ok(Seen::when(answer.status().is_success(), || {
                answer.status().to_string()
            }))
        },
    )
    .await?;
    println!(
        "figure operator_cold_ready_s {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let settled = quiet(proxy, operator).await?;
    println!(
        "figure operator_cold_settle_s {:.1} s",
        (settled - began).as_secs_f64()
    );
    println!(
        "figure operator_cold_writes {} writes",
        proxy.count() - before
    );
    let memory = memory(operator.id())?;
    println!("figure operator_cold_rss_mb {:.1} MB", memory.resident_mb);
    println!("figure operator_cold_peak_mb {:.1} MB", memory.peak_mb);
    Ok(())
}

/// Watches an operator to which nothing happens. Time itself is what this is about.
async fn idle(operator: &LocalOperator, proxy: &FaultProxy, seconds: u64) -> Result<usize> {
    let (writes, time, began) = (
        proxy.count(),
        processor_time(operator.id())?,
        Instant::now(),
    );
    sleep(Duration::from_secs(seconds)).await;
    let taken = processor_time(operator.id())?.saturating_sub(time);
    let share = taken.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    let writes = proxy.count() - writes;
    println!("figure operator_idle_writes {writes} writes");
    println!("figure operator_idle_cpu_percent {share:.2} %");
    Ok(writes)
}

/// Changes specs at a steady rate, and measures from each change to the operator's first write for it.
async fn follow_changes(
    cluster: &Cluster,
    proxy: &FaultProxy,
    places: &[Place],
    args: &Args,
) -> Result<()> {
    let number = (args.changes * args.seconds) as usize;
    let mut beat = interval(Duration::from_secs(1) / u32::try_from(args.changes)?);
    let from = proxy.count();
    let mut changes = Vec::new();
    for (round, place) in places.iter().cycle().take(number).enumerate() {
        beat.tick().await;
        let (cluster, place) = (cluster.clone(), place.clone());
        changes.push(tokio::spawn(async move {
            // The Service alone changes, so no pod does.
            let sent = Instant::now();
            let patch = json!({ "spec": { "service": { "annotations": { "example.com/round": round.to_string() } } } });
            cluster.change(MODEL_DEPLOYMENT, &place.namespace, &place.name, &patch).await?;
            anyhow::Ok((place.name, sent, Instant::now()))
        }));
    }
    let mut changed = Vec::new();
    for change in changes {
        changed.push(change.await??);
    }
    let mut late = Vec::new();
    until(
        Duration::from_secs(120),
        "a write for each change",
        async || {
            let writes = proxy.writes();
            // The answer to a change and its event are on their way at the same time, so a write may come before the answer.
            let first = |name: &str, sent: Instant, answered: Instant| {
                let what = format!("PATCH services/{name}");
                let mut later = writes[from..].iter().filter(|write| write.at >= sent);
                let write = later.find(|write| write.what == what)?;
                Some(write.at.saturating_duration_since(answered))
            };
            let found: Vec<Duration> = changed
                .iter()
                .filter_map(|(name, sent, answered)| first(name, *sent, *answered))
                .collect();
            let count = found.len();
            late = found;
            Ok(Seen::when(count == changed.len(), || {
                format!("{count} of {}", changed.len())
            }))
        },
    )
    .await?;
    println!(
        "figure operator_event_to_write_p50_ms {:.1} ms",
        percentile(late.clone(), 0.5).as_secs_f64() * 1e3
    );
    println!(
        "figure operator_event_to_write_p99_ms {:.1} ms",
        percentile(late, 0.99).as_secs_f64() * 1e3
    );
    Ok(())
}

/// Lets serving pods fail one after the other, and measures until their ModelDeployments say so.
async fn follow_failures(
    cluster: &Cluster,
    tracker: &Tracker,
    places: &[Place],
    count: usize,
) -> Result<()> {
    let client = &cluster.client;
    let mut late = Vec::new();
    for place in places.iter().rev().take(count) {
        let selector = format!(
            "chandler.dev/model-deployment={},app.kubernetes.io/component=serve",
            place.name
        );
        for pod in cluster.list(POD, &place.namespace, &selector).await? {
            let pod = serde_json::from_value(pod)?;
            let began = Instant::now();
            crash(client, &pod).await?;
            let what = format!("{} to say that its pod fails", place.name);
            let known = until(Duration::from_secs(30), &what, async || {
                Ok(match tracker.told().unhealthy.get(&place.name) {
                    Some(at) => Seen::Yes(*at),
                    None => Seen::NotYet("nothing of it".to_owned()),
                })
            })
            .await?;
            late.push(known.saturating_duration_since(began));
        }
    }
    println!(
        "figure failed_pod_to_status_p50_ms {:.0} ms",
        percentile(late.clone(), 0.5).as_secs_f64() * 1e3
    );
    println!(
        "figure failed_pod_to_status_p99_ms {:.0} ms",
        percentile(late, 0.99).as_secs_f64() * 1e3
    );
    Ok(())
}
