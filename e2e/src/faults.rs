//! Systematic faults: each story is told once undisturbed, then again and again with one fault at one write.
//!
//! After each step of a disturbed run everything of ours must become what it was in the undisturbed run.

pub mod deletions;
pub mod points;
pub mod stories;

use std::fmt;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::end_state::EndState;
use crate::fault_proxy::{Fault, Write};
use crate::local_operator::Program;
use crate::stage::Stage;
use stories::Story;

/// What an undisturbed run showed.
pub struct Reference {
    /// The story.
    pub story: Story,
    /// The settled state after each step.
    pub states: Vec<EndState>,
    /// What the operator wrote.
    pub writes: Vec<Write>,
}

/// One fault at one write of one story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Point {
    /// Index of the story.
    pub story: usize,
    /// What happens.
    pub fault: Fault,
    /// At which write, counted from 1.
    pub write: usize,
}

/// How a disturbed run ended.
#[derive(Debug)]
pub enum Outcome {
    /// Every step came to its state.
    Converged,
    /// The run had fewer writes than the undisturbed one, so the fault never struck.
    NotStruck,
    /// A step did not come to its state; what differs.
    Failed(String),
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at write {}", self.fault, self.write)
    }
}

/// Tells a story undisturbed.
///
/// # Errors
/// When it does not settle: then there is nothing to compare with.
pub async fn tell(
    cluster: &Cluster,
    program: &Program,
    story: Story,
    namespace: &str,
) -> Result<Reference> {
    let stage = Stage::start(cluster, program, namespace, None).await?;
    let mut states = Vec::new();
    for step in &story.steps {
        let of = || format!("story {:?}, step {step}, undisturbed", story.name);
        step.act(&stage).await.with_context(of)?;
        states.push(stage.settled().await.with_context(of)?);
    }
    let writes = stage.proxy.writes();
    stage.end().await?;
    Ok(Reference {
        story,
        states,
        writes,
    })
}

/// Tells a story again, with a fault.
///
/// # Errors
/// When the run itself is not possible. What the operator does wrong is an [`Outcome`].
pub async fn disturb(
    cluster: &Cluster,
    program: &Program,
    reference: &Reference,
    plan: Option<(Fault, usize)>,
    namespace: &str,
) -> Result<Outcome> {
    let stage = Stage::start(cluster, program, namespace, plan).await?;
    for (step, state) in reference.story.steps.iter().zip(&reference.states) {
        step.act(&stage).await?;
        let what = format!("step {step} to come to its undisturbed state");
        if let Err(error) = stage.reaches(state, &what).await {
            // The namespace stays for a look at it; the operator's log does, too.
            return Ok(Outcome::Failed(format!(
                "{error}\n    the operator's log: {}",
                stage.operator.log.display()
            )));
        }
    }
    if stage.operator.ended_by_itself() > 0 {
        return Ok(Outcome::Failed(format!(
            "the operator ended by itself; its log: {}",
            stage.operator.log.display()
        )));
    }
    let is_struck = plan.is_none() || stage.proxy.is_struck();
    // It may converge into something that it then leaves again.
    if let Some(last) = reference.states.last()
        && let Err(error) = stage.reaches(last, "the last state to stay").await
    {
        return Ok(Outcome::Failed(format!("{error}")));
    }
    let _ = std::fs::remove_file(&stage.operator.log);
    stage.end().await?;
    Ok(if is_struck {
        Outcome::Converged
    } else {
        Outcome::NotStruck
    })
}
