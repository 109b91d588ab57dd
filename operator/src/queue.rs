//! Which objects of one kind are to be looked at, since when, and how many wait.
//!
//! A watch is never held up here: an object that waits already is not put in line again, so the line is no longer than there are objects.
//! An object is with one reconcile at a time; what wakes it meanwhile lets it wait for the next one.
//! While the queue is closed (no leader), nothing waits; whoever opens it names every object there is.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::kubernetes::Kind;

/// Objects of one kind that wait. Cloning gives another handle to the same line.
pub struct Queue<K: Kind>(Arc<Shared<K>>);

struct Shared<K: Kind> {
    line: Mutex<Line<K>>,
    news: Notify,
}

struct Line<K: Kind> {
    is_open: bool,
    /// Objects that wait for a reconcile to start, and since which event; none where only a timer has run out.
    waiting: HashMap<ObjectRef<K>, Option<Instant>>,
    /// Those of them that are with no reconcile, in the order in which they were woken.
    next: VecDeque<ObjectRef<K>>,
    running: HashSet<ObjectRef<K>>,
    /// Since when somebody has been waiting for an object whose reconcile failed.
    failed: HashMap<ObjectRef<K>, Instant>,
    timers: Timers<K>,
}

/// At most one time for each object.
struct Timers<K: Kind> {
    by_time: BTreeMap<(Instant, u64), ObjectRef<K>>,
    by_name: HashMap<ObjectRef<K>, (Instant, u64)>,
    /// Tells apart what is due at the same moment.
    made: u64,
}

impl<K: Kind> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Kind> Default for Queue<K> {
    fn default() -> Self {
        Self(Arc::new(Shared {
            line: Mutex::new(Line {
                is_open: false,
                waiting: HashMap::new(),
                next: VecDeque::new(),
                running: HashSet::new(),
                failed: HashMap::new(),
                timers: Timers {
                    by_time: BTreeMap::new(),
                    by_name: HashMap::new(),
                    made: 0,
                },
            }),
            news: Notify::new(),
        }))
    }
}

impl<K: Kind> Queue<K> {
    /// Something about the object has changed.
    pub fn wake(&self, reference: ObjectRef<K>) {
        let mut line = self.line();
        if line.is_open {
            line.wait(reference, Some(Instant::now()));
            drop(line);
            self.0.news.notify_one();
        }
    }

    /// From now on objects wait, these first.
    pub fn open(&self, all: impl IntoIterator<Item = ObjectRef<K>>) {
        self.line().is_open = true;
        all.into_iter().for_each(|reference| self.wake(reference));
    }

    /// Waits for the object whose turn it is, and hands it over until [`Self::settled`] or [`Self::failed`].
    /// With it comes since when it was waited for; nothing if a timer started it. One reader only.
    pub async fn next(&self) -> (ObjectRef<K>, Option<Instant>) {
        loop {
            let due = {
                let mut line = self.line();
                line.take_due(Instant::now());
                if let Some(reference) = line.next.pop_front() {
                    let since = line.start(&reference);
                    return (reference, since);
                }
                line.timers.first()
            };
            match due {
                Some(due) => tokio::select! {
                    () = self.0.news.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => self.0.news.notified().await,
            }
        }
    }

    /// The reconcile is done, and comes again after this time if nothing wakes the object before.
    pub fn settled(&self, reference: &ObjectRef<K>, again: Option<Duration>) {
        self.line().end(reference, again);
        self.0.news.notify_one();
    }

    /// The reconcile failed and comes again after this pause. Whoever has waited for it since an event still does.
    pub fn failed(&self, reference: &ObjectRef<K>, since: Option<Instant>, pause: Duration) {
        let mut line = self.line();
        if let Some(since) = since {
            line.failed.insert(reference.clone(), since);
        }
        line.end(reference, Some(pause));
        drop(line);
        self.0.news.notify_one();
    }

    /// How many objects wait for their reconcile to start.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.line().waiting.len()
    }

    fn line(&self) -> MutexGuard<'_, Line<K>> {
        // Every change leaves the line whole, so a panic elsewhere spoils nothing.
        self.0.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kind> Line<K> {
    fn wait(&mut self, mut reference: ObjectRef<K>, since: Option<Instant>) {
        // Version and UID are of no use here, and thousands may wait.
        reference.extra = Default::default();
        if let Some(waits) = self.waiting.get_mut(&reference) {
            *waits = waits.or(since);
            return;
        }
        self.waiting.insert(reference.clone(), since);
        if !self.running.contains(&reference) {
            self.next.push_back(reference);
        }
    }

    fn take_due(&mut self, now: Instant) {
        while let Some(reference) = self.timers.take_due(now) {
            self.wait(reference, None);
        }
    }

    fn start(&mut self, reference: &ObjectRef<K>) -> Option<Instant> {
        // The reconcile that starts now says anew when it wants to be looked at again.
        self.timers.drop(reference);
        self.running.insert(reference.clone());
        let woken = self.waiting.remove(reference).flatten();
        self.failed.remove(reference).or(woken)
    }

    fn end(&mut self, reference: &ObjectRef<K>, again: Option<Duration>) {
        self.running.remove(reference);
        if self.waiting.contains_key(reference) {
            self.next.push_back(reference.clone());
        }
        if let Some(again) = again {
            self.timers.set(reference, Instant::now() + again);
        }
    }
}

impl<K: Kind> Timers<K> {
    fn set(&mut self, reference: &ObjectRef<K>, at: Instant) {
        self.drop(reference);
        self.made += 1;
        let key = (at, self.made);
        self.by_time.insert(key, reference.clone());
        self.by_name.insert(reference.clone(), key);
    }

    fn drop(&mut self, reference: &ObjectRef<K>) {
        if let Some(key) = self.by_name.remove(reference) {
            self.by_time.remove(&key);
        }
    }

    fn first(&self) -> Option<Instant> {
        self.by_time.keys().next().map(|(at, _)| *at)
    }

    fn take_due(&mut self, now: Instant) -> Option<ObjectRef<K>> {
        let first = self.by_time.first_entry()?;
        if first.key().0 > now {
            return None;
        }
        let reference = first.remove();
        self.by_name.remove(&reference);
        Some(reference)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use k8s_openapi::api::batch::v1::Job;

    use super::*;

    fn one() -> ObjectRef<Job> {
        ObjectRef::new("one")
    }

    /// The names of those whose turn it is.
    fn turns(queue: &Queue<Job>) -> Vec<String> {
        std::iter::from_fn(|| queue.next().now_or_never())
            .map(|(reference, _)| reference.name)
            .collect()
    }

    fn open() -> Queue<Job> {
        let queue = Queue::default();
        queue.open([]);
        queue
    }

    #[tokio::test]
    async fn an_object_waits_once_and_is_with_one_reconcile_at_a_time() {
        let queue = open();
        queue.wake(one());
        queue.wake(ObjectRef::new("two"));
        queue.wake(one());
        assert_eq!(queue.depth(), 2);
        assert_eq!(turns(&queue), ["one", "two"]);
        queue.wake(one());
        assert_eq!((turns(&queue), queue.depth()), (vec![], 1));
        queue.settled(&one(), None);
        assert_eq!((turns(&queue), queue.depth()), (vec!["one".into()], 0));
        queue.settled(&one(), None);
        assert!(turns(&queue).is_empty());
    }

    #[tokio::test]
    async fn a_closed_queue_keeps_nothing_and_an_opened_one_begins_with_everything() {
        let queue = Queue::default();
        queue.wake(ObjectRef::new("early"));
        assert_eq!(queue.depth(), 0);
        queue.open([ObjectRef::new("all")]);
        assert_eq!(turns(&queue), ["all"]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_failed_reconcile_waits_since_the_first_event() {
        let queue = open();
        queue.wake(one());
        let (_, first) = queue.next().await;
        tokio::time::advance(Duration::from_secs(1)).await;
        queue.failed(&one(), first, Duration::from_secs(60));
        queue.wake(one());
        assert_eq!(queue.next().await, (one(), first));
        queue.settled(&one(), None);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert!(
            turns(&queue).is_empty(),
            "the pause went with the reconcile"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_comes_again_when_its_time_has_come_and_nobody_waited_for_it() {
        let queue = open();
        queue.wake(one());
        queue.next().await;
        let began = Instant::now();
        queue.settled(&one(), Some(Duration::from_secs(3)));
        assert_eq!(queue.next().await, (one(), None));
        assert_eq!(began.elapsed().as_secs(), 3);
        // An event that comes while the time runs is not waited with.
        queue.settled(&one(), Some(Duration::from_secs(3)));
        queue.wake(one());
        assert_eq!(queue.next().await, (one(), Some(Instant::now())));
        queue.settled(&one(), None);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(turns(&queue).is_empty());
    }
}
