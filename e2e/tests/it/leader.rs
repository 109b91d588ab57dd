//! Two operators, one leader: when the leader's process dies, the other goes on, and at no time do both write.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chandler_e2e::cluster::{Cluster, LEASE, SERVICE};
use chandler_e2e::model::NAME;
use chandler_e2e::operator::{self, NAMESPACE, RELEASE};
use chandler_e2e::story::{Company, story};
use chandler_e2e::tools::run;
use chandler_e2e::wait::{Seen, until};

/// The Lease runs out 15 s after its last renewal; the rest is the pause between two looks at it, and a busy machine.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(25);

/// The operator's Lease.
const LEASE_NAME: &str = "chandler-operator";

/// The pod that leads, and how often the lead has changed.
async fn leader(cluster: &Cluster) -> Result<Option<(String, i64)>> {
    let lease = cluster.get(LEASE, NAMESPACE, LEASE_NAME).await?;
    Ok(lease.and_then(|lease| {
        let spec = &lease["spec"];
        let (pod, _) = spec["holderIdentity"].as_str()?.rsplit_once('_')?;
        Some((pod.to_owned(), spec["leaseTransitions"].as_i64()?))
    }))
}

async fn scale(replicas: usize) -> Result<()> {
    let deployment = format!("deployment/{RELEASE}");
    let replicas = format!("--replicas={replicas}");
    run(
        "kubectl",
        &["scale", &deployment, &replicas, "-n", NAMESPACE],
    )
    .await?;
    Ok(())
}

/// How many writes the operator in this pod has told of in its log.
async fn writes(pod: &str) -> Result<usize> {
    let log = run("kubectl", &["logs", pod, "-n", NAMESPACE]).await?;
    let tells = |line: &&str| {
        line.contains(r#""message":"applied""#) || line.contains(r#""message":"deleted""#)
    };
    Ok(log.lines().filter(tells).count())
}

#[test]
fn the_second_operator_goes_on_when_the_leader_dies() {
    story("leader", Company::Alone, async |story| {
        let cluster = &story.world.cluster;
        scale(2).await?;
        let both = until(Duration::from_secs(90), "two ready operators", async || {
            let pods = operator::ready_pods(cluster).await?;
            Ok(match pods.len() {
                2 => Seen::Yes(pods),
                count => Seen::NotYet(format!("{count} ready")),
            })
        })
        .await?;
        let (first, before) = leader(cluster).await?.context("nobody leads")?;
        let second = both
            .iter()
            .find(|pod| **pod != first)
            .context("the leader is no pod of the operator")?;
        story.deploy().await?;
        story.ready().await?;
        ensure!(writes(&first).await? > 0, "the leader told of no write");
        let early = writes(second).await?;
        ensure!(early == 0, "the standby wrote {early} times");

        operator::kill_process(&first).await?;
        let began = Instant::now();
        cluster.delete(SERVICE, &story.namespace, NAME).await?;
        until(
            TAKEOVER_WITHIN,
            "the Service to be made again",
            async || {
                let service = cluster.get(SERVICE, &story.namespace, NAME).await?;
                Ok(Seen::when(service.is_some(), || "no Service".to_owned()))
            },
        )
        .await?;
        println!(
            "figure leader_takeover_s {:.1} s",
            began.elapsed().as_secs_f64()
        );

        // The first one's container runs again, and may win the race for the Lease that it lost.
        let (now, after) = leader(cluster).await?.context("nobody leads")?;
        ensure!(
            after == before + 1,
            "{} changes of the lead",
            after - before
        );
        ensure!(writes(&now).await? > 0, "somebody else made the Service");
        let other = if now == first { second } else { &first };
        let strange = writes(other).await?;
        ensure!(
            strange == 0,
            "{other} wrote {strange} times without the lead"
        );
        scale(1).await?;
        until(Duration::from_secs(60), "one operator", async || {
            let pods = operator::ready_pods(cluster).await?;
            Ok(Seen::when(pods.len() == 1, || {
                format!("{} ready", pods.len())
            }))
        })
        .await
    });
}
