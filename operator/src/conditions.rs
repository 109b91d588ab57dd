//! Conditions as decided, and their way into a status list.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::{ConditionType, Reason};

/// Longest message that the API server takes.
const MAX_MESSAGE: usize = 32_768;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// Nobody can say yet.
    Unknown,
}

impl Holds {
    /// The word in a status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "True",
            Self::No => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What a decision says about one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it holds.
    pub holds: Holds,
    /// Why.
    pub reason: Reason,
    /// The same for a person.
    pub message: String,
}

impl Verdict {
    /// It holds.
    #[must_use]
    pub fn yes(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            holds: Holds::Yes,
            reason,
            message: message.into(),
        }
    }

    /// It does not hold.
    #[must_use]
    pub fn no(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            holds: Holds::No,
            reason,
            message: message.into(),
        }
    }

    /// Nobody can say before something else is done.
    #[must_use]
    pub fn waiting(message: impl Into<String>) -> Self {
        Self {
            holds: Holds::Unknown,
            reason: Reason::Waiting,
            message: message.into(),
        }
    }
}

/// The condition that goes with a Ready that does not hold, as kstatus reads it: it may come by itself, or somebody has to act.
#[must_use]
pub fn progress(ready: &Verdict, out_of_time: bool) -> Option<(ConditionType, Verdict)> {
    if ready.holds == Holds::Yes {
        return None;
    }
    let kind = if out_of_time || ready.reason.needs_a_person() {
        ConditionType::Stalled
    } else {
        ConditionType::Reconciling
    };
    Some((kind, Verdict::yes(ready.reason, &ready.message)))
}

/// The new list of conditions: a transition time moves only when the status word does.
#[must_use]
pub fn merge(
    old: &[Condition],
    verdicts: Vec<(ConditionType, Verdict)>,
    generation: i64,
    now: Timestamp,
) -> Vec<Condition> {
    verdicts
        .into_iter()
        .map(|(kind, verdict)| {
            let before = old
                .iter()
                .find(|condition| condition.type_ == kind.as_str());
            let last_transition_time = before
                .filter(|condition| condition.status == verdict.holds.as_str())
                .map_or_else(
                    || Time(now),
                    |condition| condition.last_transition_time.clone(),
                );
            Condition {
                type_: kind.as_str().to_owned(),
                status: verdict.holds.as_str().to_owned(),
                reason: verdict.reason.as_str().to_owned(),
                message: shortened(verdict.message, MAX_MESSAGE),
                observed_generation: Some(generation),
                last_transition_time,
            }
        })
        .collect()
}

/// A text of at most `most` bytes, cut at a character.
#[must_use]
pub fn shortened(mut text: String, most: usize) -> String {
    if text.len() > most {
        let at = (0..=most.saturating_sub(3))
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(at);
        text.push('…');
    }
    text
}

/// A condition of a list.
#[must_use]
pub fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions
        .iter()
        .find(|condition| condition.type_ == kind.as_str())
}

/// Something that a person should hear about: a condition has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Whether it is good news.
    pub good: bool,
    /// The new reason.
    pub reason: String,
    /// The new message.
    pub message: String,
    /// The condition.
    pub condition: &'static str,
}

/// The changes of `kinds` between two lists; the same reason is told once.
#[must_use]
pub fn transitions(
    old: &[Condition],
    new: &[Condition],
    kinds: &[ConditionType],
) -> Vec<Transition> {
    let mut told: Vec<Transition> = Vec::new();
    for kind in kinds {
        let Some(now) = find(new, *kind) else {
            continue;
        };
        let before = find(old, *kind).map(|condition| (&condition.status, &condition.reason));
        if before == Some((&now.status, &now.reason)) || now.status == "Unknown" {
            continue;
        }
        if told
            .iter()
            .any(|transition| transition.reason == now.reason && transition.message == now.message)
        {
            continue;
        }
        told.push(Transition {
            good: now.status == "True" || is_progress(&now.reason),
            reason: now.reason.clone(),
            message: now.message.clone(),
            condition: kind.as_str(),
        });
    }
    told
}

/// Reasons that say "not yet" rather than "something is wrong".
fn is_progress(reason: &str) -> bool {
    [
        Reason::Waiting,
        Reason::Resolving,
        Reason::Fetching,
        Reason::ClaimPending,
        Reason::Starting,
        Reason::RollingOut,
        Reason::Suspended,
    ]
    .iter()
    .any(|progress| progress.as_str() == reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn transition_time_moves_with_the_status_word_only() {
        let ready = |verdict| vec![(ConditionType::Ready, verdict)];
        let first = merge(&[], ready(Verdict::no(Reason::Fetching, "1 %")), 1, at(10));
        let second = merge(
            &first,
            ready(Verdict::no(Reason::Starting, "2 %")),
            1,
            at(20),
        );
        assert_eq!(second[0].last_transition_time.0, at(10));
        let third = merge(
            &second,
            ready(Verdict::yes(Reason::AllReplicasReady, "")),
            1,
            at(30),
        );
        assert_eq!(third[0].last_transition_time.0, at(30));
    }

    #[test]
    fn a_transition_is_told_once() {
        let kinds = [ConditionType::WeightsCached, ConditionType::Ready];
        let verdicts = |reason| {
            vec![
                (ConditionType::WeightsCached, Verdict::no(reason, "x")),
                (ConditionType::Ready, Verdict::no(reason, "x")),
            ]
        };
        let old = merge(&[], verdicts(Reason::Fetching), 1, at(1));
        let new = merge(&old, verdicts(Reason::StorageFull), 1, at(2));
        let told = transitions(&old, &new, &kinds);
        assert_eq!(told.len(), 1);
        assert!(!told[0].good);
        assert!(transitions(&new, &new, &kinds).is_empty());
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        assert_eq!(shortened("äöü".to_owned(), 6), "äöü");
        assert_eq!(shortened("äöüß".to_owned(), 7), "äö…");
    }
}
