//! Who may write: decisions of the leader election, without a clock of their own and without a request.
//!
//! The record in the Lease is only ever compared with what this process saw before; times in it are for people.
//! A holder counts as gone when its record has not changed for as long as it says, measured here by a clock that only runs forward,
//! so clocks of different machines never have to agree.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// A holder that has shown no sign of life for so long has lost the Lease.
pub const LEASE: Duration = Duration::from_secs(15);

/// A holder that could not renew for so long stops writing.
/// What remains of `LEASE` is longer than any write may take (`kubernetes::LONGEST_WRITE`), so the last one ends before another holder begins.
pub const RENEW: Duration = Duration::from_secs(10);

/// How often the Lease is looked at and renewed.
pub const RETRY: Duration = Duration::from_secs(2);

/// What to do with the Lease now.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Make it.
    Create(Box<LeaseSpec>),
    /// Write it, if nobody has written it since it was read.
    Replace(Box<LeaseSpec>),
    /// Leave it: somebody else holds it.
    Wait {
        /// Who.
        holder: String,
    },
}

/// How a look at the Lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// We hold it; asked for at this time.
    Held(Instant),
    /// Somebody else holds it.
    Foreign,
    /// Nobody knows: no answer, or somebody wrote at the same time.
    Unclear,
}

/// Whether this process may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// Not yet.
    Standby,
    /// It may, until this time.
    Until(Instant),
    /// It may: there is no election.
    Endless,
    /// It could, and must never again.
    Over,
}

impl Term {
    /// Whether a write may begin now.
    #[must_use]
    pub fn may_write(self, now: Instant) -> bool {
        match self {
            Self::Until(end) => now < end,
            Self::Endless => true,
            Self::Standby | Self::Over => false,
        }
    }

    /// The term after a look at the Lease.
    #[must_use]
    pub fn after(self, look: Look, now: Instant) -> Self {
        match (self, look) {
            (Self::Endless | Self::Over, _) => self,
            // Counted from the question: the API server may have taken the record at once and answered late.
            (_, Look::Held(asked)) => Self::Until(asked + RENEW),
            (Self::Standby, Look::Foreign | Look::Unclear) => Self::Standby,
            (Self::Until(_), Look::Foreign) => Self::Over,
            (Self::Until(end), Look::Unclear) if now >= end => Self::Over,
            (Self::Until(_), Look::Unclear) => self,
        }
    }
}

/// One candidate's memory.
pub struct Election {
    identity: String,
    seen: Option<(LeaseSpec, Instant)>,
}

impl Election {
    /// A candidate of this name.
    #[must_use]
    pub fn new(identity: String) -> Self {
        Self {
            identity,
            seen: None,
        }
    }

    /// The candidate's name.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What to do, after the Lease was read. `clock` only fills in the times that people read.
    #[must_use]
    pub fn step(&mut self, lease: Option<&Lease>, now: Instant, clock: Timestamp) -> Step {
        let Some(lease) = lease else {
            return Step::Create(Box::new(self.record(None, clock)));
        };
        let old = lease.spec.clone().unwrap_or_default();
        let changed = match &self.seen {
            Some((seen, at)) if *seen == old => *at,
            _ => now,
        };
        self.seen = Some((old.clone(), changed));
        let holder = old.holder_identity.as_deref().unwrap_or_default();
        let is_free = holder.is_empty() || now >= changed + lasts(&old);
        if holder == self.identity || is_free {
            Step::Replace(Box::new(self.record(Some(&old), clock)))
        } else {
            Step::Wait {
                holder: holder.to_owned(),
            }
        }
    }

    /// The record that gives the Lease back, if it is ours, so that another takes it at once.
    #[must_use]
    pub fn release(&self, lease: &Lease, clock: Timestamp) -> Option<LeaseSpec> {
        let old = lease.spec.as_ref()?;
        (old.holder_identity.as_deref() == Some(&self.identity)).then(|| LeaseSpec {
            holder_identity: None,
            lease_duration_seconds: Some(1),
            renew_time: Some(MicroTime(clock)),
            ..old.clone()
        })
    }

    fn record(&self, old: Option<&LeaseSpec>, clock: Timestamp) -> LeaseSpec {
        let old = old.cloned().unwrap_or_default();
        let is_ours = old.holder_identity.as_deref() == Some(&self.identity);
        // The Lease's first holder is no transition.
        let transitions = match (old.lease_transitions, is_ours) {
            (Some(count), false) => Some(count.saturating_add(1)),
            (Some(count), true) => Some(count),
            (None, _) => Some(0),
        };
        LeaseSpec {
            acquire_time: old
                .acquire_time
                .filter(|_| is_ours)
                .or(Some(MicroTime(clock))),
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(LEASE.as_secs()).unwrap_or(i32::MAX)),
            lease_transitions: transitions,
            renew_time: Some(MicroTime(clock)),
            ..LeaseSpec::default()
        }
    }
}

/// How long a record is good without a change; our own duration where it does not say.
fn lasts(record: &LeaseSpec) -> Duration {
    let seconds = record.lease_duration_seconds;
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    seconds.map_or(LEASE, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn clock(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn lease(spec: &LeaseSpec) -> Lease {
        Lease {
            spec: Some(spec.clone()),
            ..Lease::default()
        }
    }

    /// The record that a candidate writes, or nothing if it waits.
    fn written(step: Step) -> Option<LeaseSpec> {
        match step {
            Step::Create(record) | Step::Replace(record) => Some(*record),
            Step::Wait { .. } => None,
        }
    }

    fn first(identity: &str, at: i64) -> LeaseSpec {
        let mut election = Election::new(identity.to_owned());
        written(election.step(None, Instant::now(), clock(at))).unwrap()
    }

    #[test]
    fn an_absent_lease_is_made_and_the_holder_renews_it() {
        let (mut one, now) = (Election::new("one".to_owned()), Instant::now());
        let made = one.step(None, now, clock(0));
        assert!(matches!(made, Step::Create(_)), "{made:?}");
        let made = written(made).unwrap();
        assert_eq!(made.lease_transitions, Some(0));
        let renewed = written(one.step(Some(&lease(&made)), now + 2 * SECOND, clock(2))).unwrap();
        assert_eq!(renewed.lease_transitions, Some(0));
        assert_eq!(renewed.acquire_time, made.acquire_time);
        assert_ne!(renewed.renew_time, made.renew_time);
    }

    #[test]
    fn a_lease_that_nobody_renews_is_taken_when_it_has_run_out() {
        let (mut two, now) = (Election::new("two".to_owned()), Instant::now());
        let old = lease(&first("one", 0));
        for second in [0, 5, 14] {
            let step = two.step(Some(&old), now + second * SECOND, clock(0));
            assert_eq!(written(step), None, "after {second} s");
        }
        let taken = written(two.step(Some(&old), now + 15 * SECOND, clock(15))).unwrap();
        assert_eq!(taken.holder_identity.as_deref(), Some("two"));
        assert_eq!(taken.lease_transitions, Some(1));
    }

    #[test]
    fn a_lease_that_is_renewed_is_never_taken() {
        let (mut one, mut two) = (
            Election::new("one".to_owned()),
            Election::new("two".to_owned()),
        );
        let now = Instant::now();
        let mut record = first("one", 0);
        for round in 1..100 {
            let now = now + round * 14 * SECOND;
            record =
                written(one.step(Some(&lease(&record)), now, clock(i64::from(round)))).unwrap();
            assert_eq!(
                written(two.step(Some(&lease(&record)), now, clock(0))),
                None
            );
        }
    }

    #[test]
    fn clocks_that_disagree_by_hours_change_nothing() {
        for skew in [-7_200, 7_200] {
            let (mut two, now) = (Election::new("two".to_owned()), Instant::now());
            let old = lease(&first("one", skew));
            assert_eq!(written(two.step(Some(&old), now, clock(0))), None);
            let renewed = lease(&first("one", skew + 2));
            assert_eq!(
                written(two.step(Some(&renewed), now + 14 * SECOND, clock(14))),
                None
            );
            assert_eq!(
                written(two.step(Some(&renewed), now + 28 * SECOND, clock(28))),
                None
            );
            assert!(written(two.step(Some(&renewed), now + 29 * SECOND, clock(29))).is_some());
        }
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let (one, mut two) = (
            Election::new("one".to_owned()),
            Election::new("two".to_owned()),
        );
        let held = lease(&first("one", 0));
        let now = Instant::now();
        assert_eq!(written(two.step(Some(&held), now, clock(0))), None);
        assert_eq!(two.release(&held, clock(1)), None);
        let released = lease(&one.release(&held, clock(1)).unwrap());
        let taken = written(two.step(Some(&released), now + SECOND, clock(1))).unwrap();
        assert_eq!(taken.lease_transitions, Some(1));
    }

    #[test]
    fn whoever_loses_a_race_waits_for_the_winner() {
        let mut two = Election::new("two".to_owned());
        let now = Instant::now();
        let free = lease(&LeaseSpec::default());
        assert!(written(two.step(Some(&free), now, clock(0))).is_some());
        // The API server answered 409, because another was faster.
        assert_eq!(Term::Standby.after(Look::Unclear, now), Term::Standby);
        let won = lease(&first("one", 0));
        assert_eq!(
            two.step(Some(&won), now + 2 * SECOND, clock(2)),
            Step::Wait {
                holder: "one".to_owned()
            }
        );
    }

    #[test]
    fn a_leader_that_cannot_renew_stops_writing_before_another_may_begin() {
        let asked = Instant::now();
        let term = Term::Standby.after(Look::Held(asked), asked + SECOND);
        assert!(term.may_write(asked + 9 * SECOND));
        assert!(!term.may_write(asked + RENEW));
        assert_eq!(term.after(Look::Unclear, asked + 9 * SECOND), term);
        assert_eq!(term.after(Look::Unclear, asked + RENEW), Term::Over);
        // The last write begins before RENEW has passed and ends within its own time, before LEASE has passed.
        assert!(RENEW + crate::kubernetes::LONGEST_WRITE < LEASE);
    }

    #[test]
    fn a_term_that_is_over_never_comes_back() {
        let now = Instant::now();
        let over = Term::Until(now + SECOND).after(Look::Foreign, now);
        assert_eq!(over, Term::Over);
        assert_eq!(over.after(Look::Held(now), now), Term::Over);
        assert!(!over.may_write(now));
        assert!(Term::Endless.after(Look::Foreign, now).may_write(now));
    }
}
