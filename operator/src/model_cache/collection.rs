//! Which caches go although their policy is to stay: those that the operator made and nobody uses, where the installation says so. Pure.
//!
//! By age: so long after the last user went. By quota: while the caches of a namespace hold more than it may, the one that was left first.
//! A cache with the label `chandler.dev/pinned=true` never goes.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use serde::Deserialize;

use super::is_generated;
use crate::api::ModelCache;
use crate::child::PINNED;

/// When caches that nobody uses go; by default never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// How long one stays without a user.
    pub unused_for: Option<Duration>,
    /// Bytes that the caches of one namespace may hold together.
    pub namespace_quota: Option<i64>,
}

/// What counts of a cache of the same namespace.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holding {
    /// Its name.
    pub name: String,
    /// Bytes of its files.
    pub bytes: i64,
    /// Since when nobody has used it; nothing if it is used or may not go.
    pub idle_since: Option<Timestamp>,
}

/// What becomes of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays, and this is when to look again.
    Stays(Option<Duration>),
    /// It goes, and why.
    Goes(String),
}

/// How often a cache without users is looked at where a quota may tell it to go: it is about other caches, whose changes do not wake it.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Since when nobody has used a cache that may go; nothing for all others.
#[must_use]
pub fn idle_since(cache: &ModelCache) -> Option<Timestamp> {
    let is_pinned = cache.labels().get(PINNED).map(String::as_str) == Some("true");
    let status = cache.status.clone().unwrap_or_default();
    if !is_generated(cache) || is_pinned || !status.used_by.is_empty() {
        return None;
    }
    let time = status.last_used_time.or_else(|| cache.creation_timestamp());
    time.map(|time| time.0)
}

/// Decides about one cache; `holdings` are all of its namespace, itself among them.
#[must_use]
pub fn fate(cache: &ModelCache, holdings: &[Holding], policy: Policy, now: Timestamp) -> Fate {
    let Some(since) = idle_since(cache) else {
        return Fate::Stays(None);
    };
    let idle = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    if let Some(most) = policy.unused_for
        && idle >= most
    {
        let minutes = idle.as_secs() / 60;
        return Fate::Goes(format!("nobody has used it for {minutes} min"));
    }
    let left = policy.unused_for.map(|most| most.saturating_sub(idle));
    let Some(quota) = policy.namespace_quota else {
        return Fate::Stays(left);
    };
    let name = cache.name_any();
    if goes_for_room(&name, holdings, quota) {
        return Fate::Goes(format!(
            "the caches of its namespace hold more than {quota} bytes, and nobody uses it"
        ));
    }
    Fate::Stays(Some(left.map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN))))
}

/// Whether a cache is among those that have to go, the one that was left first before the others.
fn goes_for_room(name: &str, holdings: &[Holding], quota: i64) -> bool {
    let mut held: i64 = holdings.iter().map(|holding| holding.bytes).sum();
    let mut idle: Vec<(Timestamp, &Holding)> = holdings
        .iter()
        .filter_map(|holding| Some((holding.idle_since?, holding)))
        .collect();
    idle.sort_by(|one, other| (one.0, &one.1.name).cmp(&(other.0, &other.1.name)));
    for (_, holding) in idle {
        if held <= quota {
            return false;
        }
        if holding.name == name {
            return true;
        }
        held -= holding.bytes;
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hours * 3600).unwrap()
    }

    fn cache(name: &str, extra: &[(&str, &str)], used_by: &[&str]) -> ModelCache {
        let mut labels = json!({
            "app.kubernetes.io/managed-by": "chandler-operator", "chandler.dev/generated": "true",
        });
        for (key, value) in extra {
            labels[*key] = json!(value);
        }
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels, "creationTimestamp": at(0).to_string()},
            "spec": {"source": {"hub": {"id": "org/x"}}},
            "status": {"usedBy": used_by, "lastUsedTime": at(2).to_string()},
        }))
        .unwrap()
    }

    fn holding(name: &str, bytes: i64, idle_since: Option<i64>) -> Holding {
        Holding {
            name: name.to_owned(),
            bytes,
            idle_since: idle_since.map(at),
        }
    }

    #[test]
    fn a_cache_goes_when_nobody_has_used_it_for_long_enough() {
        let policy = Policy {
            unused_for: Some(5 * HOUR),
            namespace_quota: None,
        };
        let idle = cache("a", &[], &[]);
        assert_eq!(fate(&idle, &[], policy, at(4)), Fate::Stays(Some(3 * HOUR)));
        assert!(matches!(fate(&idle, &[], policy, at(7)), Fate::Goes(_)));
        for stays in [
            cache("a", &[], &["m"]),
            cache("a", &[(PINNED, "true")], &[]),
            cache("a", &[("chandler.dev/generated", "false")], &[]),
        ] {
            assert_eq!(fate(&stays, &[], policy, at(99)), Fate::Stays(None));
        }
        assert_eq!(
            fate(&idle, &[], Policy::default(), at(99)),
            Fate::Stays(None)
        );
    }

    #[test]
    fn the_cache_that_was_left_first_goes_until_the_others_have_room() {
        let policy = Policy {
            unused_for: None,
            namespace_quota: Some(100),
        };
        let holdings = [
            holding("used", 70, None),
            holding("late", 20, Some(5)),
            holding("early", 30, Some(1)),
        ];
        let goes = |name: &str| {
            matches!(
                fate(&cache(name, &[], &[]), &holdings, policy, at(9)),
                Fate::Goes(_)
            )
        };
        assert!(goes("early"));
        assert!(!goes("late"));
        let larger = [
            holding("used", 99, None),
            holdings[1].clone(),
            holdings[2].clone(),
        ];
        assert!(matches!(
            fate(&cache("late", &[], &[]), &larger, policy, at(9)),
            Fate::Goes(_)
        ));
    }
}
