//! Which points are tried: all of them, or a part that is the same in each run.

use sha2::{Digest, Sha256};

use super::{Point, Reference};
use crate::fault_proxy::Fault;

/// Faults that fall on a single write.
const AT_A_WRITE: [Fault; 10] = [
    Fault::KillBefore,
    Fault::KillAfter,
    Fault::Refuse(409),
    Fault::Refuse(429),
    Fault::Refuse(500),
    Fault::CutBefore,
    Fault::CutAfter,
    Fault::TimeOut,
    Fault::FreezeWatches,
    Fault::DropWatches,
];

/// Faults of a whole run: watches that are late by so many milliseconds.
const OF_A_RUN: [Fault; 2] = [Fault::LagWatches(500), Fault::LagWatches(2_000)];

/// Every fault at every write of every story.
#[must_use]
pub fn all(references: &[Reference]) -> Vec<Point> {
    let mut points = Vec::new();
    for (story, reference) in references.iter().enumerate() {
        for fault in OF_A_RUN {
            points.push(Point {
                story,
                fault,
                write: 0,
            });
        }
        for fault in AT_A_WRITE {
            for write in 1..=reference.writes.len() {
                points.push(Point {
                    story,
                    fault,
                    write,
                });
            }
        }
    }
    points
}

/// At most `count` of the points, spread evenly over all and the same for the same seed.
#[must_use]
pub fn some(mut points: Vec<Point>, count: usize, seed: u64) -> Vec<Point> {
    points.sort_by_cached_key(|point| Sha256::digest(format!("{seed} {point:?}")));
    points.truncate(count);
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_picks_the_same_points() {
        let points: Vec<Point> = (1..100)
            .map(|write| Point {
                story: 0,
                fault: Fault::KillBefore,
                write,
            })
            .collect();
        let picked = some(points.clone(), 10, 1);
        assert_eq!(picked.len(), 10);
        assert_eq!(picked, some(points.clone(), 10, 1));
        assert_ne!(picked, some(points, 10, 2));
    }
}
