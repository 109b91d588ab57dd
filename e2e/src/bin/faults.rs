//! `faults`: kills the operator and spoils its requests at each single write, and looks whether it converges.

use std::time::Instant;

use anyhow::{Result, bail};
use chandler_e2e::cluster::Cluster;
use chandler_e2e::faults::{Outcome, Point, Reference, disturb, points, stories, tell};
use chandler_e2e::local_operator::Program;
use chandler_e2e::player::{Nodes, Player, prepare};
use chandler_e2e::stage::remove_leftovers;
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};

/// Spoils the operator's writes, one in each run, and compares with an undisturbed run.
#[derive(Debug, Parser)]
struct Args {
    /// How many points to try; 0 tries all.
    #[arg(long, env = "POINTS", default_value_t = 300)]
    points: usize,

    /// Which part of all points is tried.
    #[arg(long, env = "SEED", default_value_t = 1)]
    seed: u64,

    /// Only stories with this in their name.
    #[arg(long, env = "STORY", default_value = "")]
    story: String,

    /// Runs at the same time, each with an operator of its own.
    #[arg(long, env = "PARALLEL", default_value_t = 6)]
    parallel: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let began = Instant::now();
    let cluster = Cluster::attach().await?;
    let program = Program::find().await?;
    prepare(&cluster).await?;
    let _player = Player::start(&cluster, Nodes::Bound);
    // With the player: bound pods that are deleted end by its word only.
    remove_leftovers(&cluster).await?;

    let references = references(&cluster, &program, &args).await?;
    let all = points::all(&references);
    println!("{} points are possible", all.len());
    let count = if args.points == 0 {
        all.len()
    } else {
        args.points
    };
    let picked = points::some(all, count, args.seed);
    let mut converged = 0;
    let mut tried = 0;
    let mut failures = Vec::new();
    let mut runs = stream::iter(picked.into_iter().enumerate())
        .map(|(number, point)| run(&cluster, &program, &references, number, point))
        .buffer_unordered(args.parallel);
    while let Some((point, outcome)) = runs.try_next().await? {
        let reference = &references[point.story];
        match outcome {
            Outcome::NotStruck => println!("not struck: {} in {:?}", point, reference.story.name),
            Outcome::Converged => {
                tried += 1;
                converged += 1;
            }
            Outcome::Failed(why) => {
                tried += 1;
                let failure = describe(point, reference, &why);
                println!("{failure}");
                failures.push(failure);
            }
        }
    }
    println!("figure fault_points_tried {tried} points");
    println!("figure fault_points_converged {converged} points");
    println!("figure faults_s {} s", began.elapsed().as_secs());
    if !failures.is_empty() {
        println!("\n{}", failures.join("\n"));
        bail!("{} of {tried} points did not converge", failures.len());
    }
    Ok(())
}

/// The undisturbed runs, and each a second time: what differs then says nothing about faults.
async fn references(cluster: &Cluster, program: &Program, args: &Args) -> Result<Vec<Reference>> {
    let stories: Vec<_> = stories::all()
        .into_iter()
        .filter(|story| story.name.contains(&args.story))
        .enumerate()
        .collect();
    stream::iter(stories)
        .map(async |(number, story)| {
            let name = story.name;
            let reference = tell(cluster, program, story, &format!("undisturbed-{number}")).await?;
            println!("{name:?} takes {} writes", reference.writes.len());
            let namespace = format!("again-{number}");
            let again = disturb(cluster, program, &reference, None, &namespace).await?;
            if let Outcome::Failed(why) = again {
                bail!("story {name:?} ends in another way the second time, undisturbed: {why}");
            }
            Ok(reference)
        })
        .buffered(args.parallel)
        .try_collect()
        .await
}

async fn run(
    cluster: &Cluster,
    program: &Program,
    references: &[Reference],
    number: usize,
    point: Point,
) -> Result<(Point, Outcome)> {
    let namespace = format!("point-{number}");
    let plan = Some((point.fault, point.write));
    let reference = &references[point.story];
    let outcome = disturb(cluster, program, reference, plan, &namespace).await?;
    Ok((point, outcome))
}

fn describe(point: Point, reference: &Reference, why: &str) -> String {
    let write = point
        .write
        .checked_sub(1)
        .and_then(|index| reference.writes.get(index));
    format!(
        "NOT CONVERGED: {:?}, {point} ({}): {why}",
        reference.story.name,
        write.map_or("the whole run", |write| &write.what)
    )
}
