//! `faults`: kills the operator and spoils its requests at each single write, and looks whether it converges.

#![expect(
    clippy::print_stdout,
    reason = "figures and failures are what this program is for"
)]

use std::time::Instant;

use anyhow::{Context, Result, bail};
use chandler_e2e::cluster::{CRD, Cluster};
use chandler_e2e::collector;
use chandler_e2e::faults::deletions::{CASES, check};
use chandler_e2e::faults::{Outcome, Point, Reference, disturb, points, stories, tell};
use chandler_e2e::local_operator::Program;
use chandler_e2e::player::{Nodes, Player, prepare};
use chandler_e2e::process::unless_ended;
use chandler_e2e::spec_walk::values::{self, Field};
use chandler_e2e::spec_walk::walk;
use chandler_e2e::stage::remove_leftovers;
use clap::Parser;
use futures::future::join_all;
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

    /// Only faults with this in their name, such as `Kill` or `Refuse(409)`.
    #[arg(long, env = "FAULT", default_value = "")]
    fault: String,

    /// Runs at the same time, each with an operator of its own.
    #[arg(long, env = "PARALLEL", default_value_t = 6)]
    parallel: usize,

    /// What to do: points, walk, deletions.
    #[arg(
        long,
        env = "PARTS",
        value_delimiter = ',',
        default_value = "points,walk,deletions"
    )]
    parts: Vec<String>,

    /// Walk only every so many-th field of the spec.
    #[arg(long, env = "EVERY_FIELD", default_value_t = 1)]
    every_field: usize,
}

impl Args {
    fn does(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    unless_ended(work(Args::parse())).await
}

async fn work(args: Args) -> Result<()> {
    let began = Instant::now();
    let cluster = Cluster::attach().await?;
    let program = Program::find()?;
    prepare(&cluster).await?;
    collector::knows_our_kinds(&cluster).await?;
    let player = Player::start(&cluster, Nodes::Bound);
    // With the player: bound pods that are deleted end by its word only.
    remove_leftovers(&cluster).await?;

    let mut failures = Vec::new();
    if args.does("points") {
        failures.extend(try_points(&cluster, &program, &args).await?);
    }
    if args.does("walk") {
        failures.extend(walk_spec(&cluster, &program, &args).await?);
    }
    if args.does("deletions") {
        failures.extend(delete_all(&cluster, &program, &player).await?);
    }
    println!("figure faults_s {} s", began.elapsed().as_secs());
    if !failures.is_empty() {
        bail!("{} failures:\n{}", failures.len(), failures.join("\n"));
    }
    Ok(())
}

async fn try_points(cluster: &Cluster, program: &Program, args: &Args) -> Result<Vec<String>> {
    let references = references(cluster, program, args).await?;
    let mut all = points::all(&references);
    all.retain(|point| format!("{:?}", point.fault).contains(&args.fault));
    println!("{} points are possible", all.len());
    let count = if args.points == 0 {
        all.len()
    } else {
        args.points
    };
    let picked = points::some(all, count, args.seed);
    let mut tried = 0;
    let mut failures = Vec::new();
    let mut runs = stream::iter(picked.into_iter().enumerate())
        .map(|(number, point)| run(cluster, program, &references, number, point))
        .buffer_unordered(args.parallel);
    while let Some((point, outcome)) = runs.try_next().await? {
        let reference = &references[point.story];
        tried += 1;
        match outcome {
            Outcome::Converged => {}
            Outcome::NotStruck => {
                tried -= 1;
                println!("not struck: {} in {:?}", point, reference.story.name);
            }
            Outcome::Failed(why) => {
                let failure = describe(point, reference, &why);
                println!("{failure}");
                failures.push(failure);
            }
        }
    }
    println!("figure fault_points_tried {tried} points");
    println!(
        "figure fault_points_converged {} points",
        tried - failures.len()
    );
    Ok(failures)
}

async fn walk_spec(cluster: &Cluster, program: &Program, args: &Args) -> Result<Vec<String>> {
    let definition = cluster
        .get(CRD, "", "modeldeployments.chandler.dev")
        .await?
        .context("the kind ModelDeployment is gone")?;
    let schema =
        &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let every = args.every_field.max(1);
    let fields: Vec<Field> = values::fields(schema).into_iter().step_by(every).collect();
    let base = stories::all().swap_remove(0);
    let base = tell(cluster, program, base, "walk-base").await?;
    let mut walked = 0;
    let mut failures = Vec::new();
    let mut walks = stream::iter(fields.iter().enumerate())
        .map(async |(number, field)| {
            let namespace = format!("walk-{number}");
            let complaints = walk(cluster, program, &base, field, &namespace).await?;
            anyhow::Ok((field, complaints))
        })
        .buffer_unordered(args.parallel);
    while let Some((field, complaints)) = walks.try_next().await? {
        walked += field.samples.len();
        for complaint in complaints {
            println!("NOT BACK: {complaint}");
            failures.push(complaint);
        }
    }
    println!("figure spec_fields_walked {} fields", fields.len());
    println!("figure spec_values_walked {walked} values");
    Ok(failures)
}

async fn delete_all(cluster: &Cluster, program: &Program, player: &Player) -> Result<Vec<String>> {
    let checks = CASES.iter().enumerate().map(async |(number, case)| {
        let namespace = format!("deletion-{number}");
        check(cluster, program, player, case, &namespace).await
    });
    let mut failures = Vec::new();
    for result in join_all(checks).await {
        if let Err(error) = result {
            println!("NOT GONE: {error:#}");
            failures.push(format!("{error:#}"));
        }
    }
    println!(
        "figure deletions_bounded {} cases",
        CASES.len() - failures.len()
    );
    Ok(failures)
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
