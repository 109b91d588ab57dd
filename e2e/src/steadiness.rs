//! What tools of GitOps may see of an object in the course of time. Pure: recorded states in, violations out.
//!
//! - A spec that the operator has not seen is never reported as done.
//! - Ready says what kstatus says, and what Argo CD's health says.
//! - At one generation, what was done stays done, and what failed and went on does not fail again, except once for each disturbance.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::model::condition;

/// How a state is read, as the program `kstatus` tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct Judgement {
    status: String,
    health: Health,
}

#[derive(Debug, Clone, Deserialize)]
struct Health {
    status: String,
}

/// One state of one object.
#[derive(Debug, Clone)]
pub struct State {
    object: String,
    generation: i64,
    observed: i64,
    ready: String,
    is_ready: bool,
    judgement: Judgement,
}

/// What a record holds, in the order in which it happened.
#[derive(Debug, Clone)]
pub enum Entry {
    /// An object got into this state.
    State(State),
    /// From now on something that was ready may stop being so once.
    Disturbance,
}

impl State {
    /// The state of an object as the API server told it.
    #[must_use]
    pub fn new(object: &Value, judgement: Judgement) -> Self {
        let metadata = &object["metadata"];
        let ready = condition(object, "Ready");
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            // A second object of the same name begins anew.
            object: format!(
                "{} {} ({})",
                word(&object["kind"]),
                word(&metadata["name"]),
                word(&metadata["uid"])
            ),
            generation: metadata["generation"].as_i64().unwrap_or_default(),
            observed: object["status"]["observedGeneration"]
                .as_i64()
                .unwrap_or(-1),
            ready: format!(
                "Ready={} {}: {}",
                word(&ready["status"]),
                word(&ready["reason"]),
                word(&ready["message"])
            ),
            is_ready: ready["status"] == "True",
            judgement,
        }
    }

    fn is(&self, status: &str) -> bool {
        self.judgement.status == status
    }

    fn describe(&self) -> String {
        format!(
            "generation {} observed {}: {} ({}), {}",
            self.generation,
            self.observed,
            self.judgement.status,
            self.judgement.health.status,
            self.ready
        )
    }

    /// What is wrong with this state, whatever came before it.
    fn untruth(&self) -> Option<&'static str> {
        if self.is("Terminating") {
            return None;
        }
        let is_seen = self.observed == self.generation;
        if !is_seen && !self.is("InProgress") {
            return Some("a spec that the operator has not seen is not InProgress");
        }
        if (is_seen && self.is_ready) != self.is("Current") {
            return Some("Ready and kstatus disagree");
        }
        let is_agreed = match self.judgement.health.status.as_str() {
            "Healthy" | "Suspended" => self.is("Current"),
            "Degraded" => self.is("Failed"),
            "Progressing" => self.is("InProgress"),
            _ => false,
        };
        (!is_agreed).then_some("Argo CD's health and kstatus disagree")
    }
}

/// How far one object has come at its present generation.
#[derive(Default)]
struct Course {
    generation: i64,
    was_current: bool,
    has_failed: bool,
    /// Status of the last state.
    last: String,
    /// Turns for the worse that disturbances up to now account for.
    spent: usize,
    states: Vec<String>,
}

/// Everything that breaks a promise, one text for each, with the states of the object up to there.
#[must_use]
pub fn violations(entries: &[Entry]) -> Vec<String> {
    let mut courses: BTreeMap<&str, Course> = BTreeMap::new();
    let mut disturbances = 0;
    let mut found = Vec::new();
    for entry in entries {
        let state = match entry {
            Entry::State(state) => state,
            Entry::Disturbance => {
                disturbances += 1;
                continue;
            }
        };
        let course = courses.entry(&state.object).or_default();
        course.states.push(state.describe());
        for what in [state.untruth(), course.step(state, disturbances)]
            .into_iter()
            .flatten()
        {
            found.push(format!(
                "{}: {what}\n  {}",
                state.object,
                course.states.join("\n  ")
            ));
        }
    }
    found
}

impl Course {
    /// Goes on to the next state, and says what is wrong with getting there.
    fn step(&mut self, state: &State, disturbances: usize) -> Option<&'static str> {
        if state.generation != self.generation {
            self.generation = state.generation;
            self.was_current = false;
            self.has_failed = false;
            self.last.clear();
        }
        let status = state.judgement.status.as_str();
        let turn = match status {
            "InProgress" | "Failed" if self.last == "Current" => {
                Some("it was Current and is no longer, and no disturbance was declared")
            }
            "Failed" if self.has_failed && self.last != "Failed" => {
                Some("it failed, went on and failed again, and no disturbance was declared")
            }
            _ => None,
        };
        self.has_failed |= status == "Failed";
        status.clone_into(&mut self.last);
        turn?;
        self.spent += 1;
        if self.spent <= disturbances {
            return None;
        }
        // Told once; the next turn needs one disturbance more, not two.
        self.spent = disturbances;
        turn
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A state told as `generation/observed Ready kstatus`, such as `1/1 True Current`.
    fn entries(states: &[&str]) -> Vec<Entry> {
        states.iter().map(|text| entry(text)).collect()
    }

    fn entry(text: &str) -> Entry {
        if text == "disturbance" {
            return Entry::Disturbance;
        }
        let words: Vec<&str> = text.split([' ', '/']).collect();
        let health = match words[3] {
            "Current" => "Healthy",
            "Failed" => "Degraded",
            _ => "Progressing",
        };
        let object = json!({
            "kind": "ModelDeployment",
            "metadata": { "name": "x", "uid": "u", "generation": words[0].parse::<i64>().unwrap() },
            "status": {
                "observedGeneration": words[1].parse::<i64>().unwrap(),
                "conditions": [{ "type": "Ready", "status": words[2], "reason": "R", "message": "m" }],
            },
        });
        let judgement = json!({ "status": words[3], "health": { "status": health } });
        Entry::State(State::new(
            &object,
            serde_json::from_value(judgement).unwrap(),
        ))
    }

    #[track_caller]
    fn check(states: &[&str], wanted: &[&str]) {
        let found = violations(&entries(states));
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for (text, part) in found.iter().zip(wanted) {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    }

    const TO_READY: [&str; 3] = [
        "1/-1 - InProgress",
        "1/1 False InProgress",
        "1/1 True Current",
    ];

    fn after_ready(more: &[&'static str]) -> Vec<&'static str> {
        [&TO_READY, more].concat()
    }

    #[test]
    fn the_way_to_ready_and_through_a_change_is_fine() {
        check(
            &after_ready(&[
                "2/1 True InProgress",
                "2/2 False InProgress",
                "2/2 True Current",
            ]),
            &[],
        );
    }

    #[test]
    fn an_unseen_spec_must_not_read_as_done_or_failed() {
        check(
            &["2/1 True Current"],
            &["a spec that the operator has not seen"],
        );
        check(
            &["2/1 False Failed"],
            &["a spec that the operator has not seen"],
        );
    }

    #[test]
    fn ready_and_kstatus_must_say_the_same() {
        check(&["1/1 True InProgress"], &["Ready and kstatus disagree"]);
        check(&["1/1 False Current"], &["Ready and kstatus disagree"]);
    }

    #[test]
    fn what_was_current_falls_only_once_for_each_disturbance() {
        check(&after_ready(&["1/1 False InProgress"]), &["it was Current"]);
        check(&after_ready(&["1/1 False Failed"]), &["it was Current"]);
        check(
            &after_ready(&["disturbance", "1/1 False InProgress", "1/1 True Current"]),
            &[],
        );
        check(
            &after_ready(&[
                "disturbance",
                "1/1 False InProgress",
                "1/1 True Current",
                "1/1 False InProgress",
                "1/1 True Current",
            ]),
            &["it was Current"],
        );
    }

    #[test]
    fn a_disturbance_excuses_nothing_that_came_before_it() {
        check(
            &after_ready(&["1/1 False InProgress", "disturbance"]),
            &["it was Current"],
        );
    }

    #[test]
    fn what_failed_may_get_well_and_not_fail_again() {
        let failed = [
            "1/1 False InProgress",
            "1/1 False Failed",
            "1/1 False InProgress",
        ];
        check(&[&failed[..], &["1/1 True Current"]].concat(), &[]);
        check(
            &[&failed[..], &["1/1 False Failed"]].concat(),
            &["failed again"],
        );
        check(
            &[&failed[..], &["disturbance", "1/1 False Failed"]].concat(),
            &[],
        );
        check(&[&failed[..], &["2/2 False Failed"]].concat(), &[]);
    }

    #[test]
    fn an_object_that_goes_may_say_anything() {
        check(
            &after_ready(&["1/1 True Terminating", "1/1 False Terminating"]),
            &[],
        );
    }
}
